"""Which of a step's sequences each data-parallel rank trains on, where all are to have about as much to compute.

Sequences are equally long and not equally much work: attention costs the square of each document's length, and a
sequence of one long document takes half as much again as one of many short ones. Every rank waits for the slowest at
the end of a step. Dealt in order, each rank has what chance gives it, and the more ranks there are, the worse the
unluckiest has it. Here the largest sequence goes first, each to the rank with the least so far that has room; all get
equally many, as the schedules want it. The global batch of a step, and so the gradient, is the same but for rounding.

Every rank computes the same answer from the packing plans. No torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from megatron_apriel.config.schema import StageConfig
from megatron_apriel.data.loading.mixture import Mixture
from megatron_apriel.data.loading.packing import Piece
from megatron_apriel.data.loading.sources import Source
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.flops import model_flops
from megatron_apriel.parallel.data_place import DataPlace


def even_shares(work: Sequence[float], ranks: int) -> list[list[int]]:
    """Numbers of each rank's sequences, ascending and equally many.

    Args:
        work: of each sequence of a step; a multiple of ``ranks``.
        ranks: data-parallel ranks.
    """
    each, rest = divmod(len(work), ranks)
    if rest:
        raise ValueError(f"{len(work)} sequences are not equally many for each of {ranks} ranks")
    shares: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0.0] * ranks
    # sorted() is stable, so sequences of equal work keep their order.
    for number in sorted(range(len(work)), key=lambda number: -work[number]):
        rank = min((rank for rank in range(ranks) if len(shares[rank]) < each), key=loads.__getitem__)
        shares[rank].append(number)
        loads[rank] += work[number]
    return [sorted(numbers) for numbers in shares]


class EvenDealing:
    """The sequences of a rank, step by step.

    Args:
        config: the stage.
        architecture: of the model.
        sources, mixture: what the stage trains on.
        place: the rank's part of the data.
    """

    def __init__(
        self,
        config: StageConfig,
        architecture: Architecture,
        sources: Sequence[Source],
        mixture: Mixture,
        place: DataPlace,
    ) -> None:
        self._config, self._architecture = config, architecture
        self._sources, self._mixture, self._place = sources, mixture, place

    def sequences(self, first: int, stop: int) -> Iterator[int]:
        """Numbers of the rank's sequences out of ``first`` to ``stop - 1``, in their order."""
        per_step = self._config.sequences_per_step
        while first < stop:
            after = min((first // per_step + 1) * per_step, stop)
            work = [self._work(number) for number in range(first, after)]
            yield from (first + number for number in even_shares(work, self._place.data_size)[self._place.data_rank])
            first = after

    def _work(self, sequence: int) -> int:
        """Operations of a sequence's forward and backward pass, by the FLOPs rule."""
        number, pack = self._mixture.place(sequence)
        source, length = self._sources[number], self._config.sequence_length
        pieces = source.plan.pieces(pack, source.corpus)
        padding = length - sum(piece.length for piece in pieces)
        squares = sum(piece.length**2 for piece in pieces) + padding**2
        patches = [count for piece in pieces for count in _image_patches(source, piece)]
        return model_flops(self._architecture, length, squares, patches, self._config.train)


def _image_patches(source: Source, piece: Piece) -> list[int]:
    """Patches of each image of a piece, in which its first token decides."""
    rows = source.corpus.images(piece.document)
    places = rows["start"] - piece.start
    inside = rows[(places >= 0) & (places < piece.length)]
    counts: list[int] = (inside["rows"] * inside["columns"]).tolist()
    return counts
