"""The batches of a run, for one rank: training sequences by number, and held-out sequences.

Step k takes the sequences k*B to (k+1)*B - 1 of the run, B being sequences per step. Micro-batch m of data rank r of d
is sequence k*B + m*d + r, or where they are dealt evenly another one of the step's (``dealing.py``). So the ranks of a
step together read the same sequences whatever the layout, and the loader's whole state is the number of sequences that
the run has consumed.

Ranks that share a sequence (tensor, context, pipeline) each read its tokens for themselves, which is cheap and needs no
communication; context-parallel ranks keep their own part of them. Of its images, each decodes its own share only, and
later pipeline stages none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from megatron_apriel.batch import Batch
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.data.loading.dealing import EvenDealing
from megatron_apriel.data.loading.mixture import RUN_BEGINS, Beginning, Mixture
from megatron_apriel.data.loading.prefetch import Prefetcher
from megatron_apriel.data.loading.sequences import SequenceReader, open_reader
from megatron_apriel.data.loading.sources import Source
from megatron_apriel.data.loading.stage_data import StageData, open_held_out
from megatron_apriel.errors import ConfigError, DataError, printable
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.parallel.data_place import WHOLE, DataPlace
from megatron_apriel.quantities import counted

PREFETCHED = 4
"""Batches ready ahead of the step. A batch of 16384 tokens that are all image has 48 MB of pixels."""


class _Loader(ABC):
    """What both loaders are: a reader of sequences, in a background thread, to be closed."""

    def __init__(self, reader: SequenceReader) -> None:
        self._reader = reader

    @property
    def sources(self) -> Sequence[Source]:
        """The sources, opened."""
        return self._reader.sources

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the background thread and release the image decoder."""
        self._stop()
        self._reader.close()

    @abstractmethod
    def _stop(self) -> None:
        """End the background thread; it may have ended."""


class TrainingLoader(_Loader):
    """An iterator over this rank's batches of a run, prepared ahead in a background thread.

    Ends with the run. Use as a context manager, or call :meth:`close`.
    """

    def __init__(
        self,
        config: StageConfig,
        architecture: Architecture,
        place: DataPlace = WHOLE,
        *,
        first_sequence: int = 0,
        beginning: Beginning = RUN_BEGINS,
        directory: Path | None = None,
    ) -> None:
        """Open the mixture of ``config`` and start at sequence ``first_sequence``.

        Args:
            config: the stage.
            architecture: of the model that reads the batches.
            place: this rank's part of the data.
            first_sequence: how many sequences the run has consumed.
            beginning: where the mixture begins, if it was changed within the run; not behind ``first_sequence``.
            directory: with the model's processor files, if there are any.

        Raises DataError if a corpus is damaged, does not fit the model, or has too few tokens for its ``max_epochs``;
        ConfigError if the step cannot be divided over the data-parallel ranks.
        """
        per_step, data_size = config.sequences_per_step, place.data_size
        if per_step % data_size:
            raise ConfigError(
                f"batch_tokens={config.batch_tokens} makes {counted(per_step, 'sequence')} of {config.sequence_length}"
                f" per step, which {counted(data_size, 'data-parallel rank')} cannot share.",
                "Every rank runs the same number of sequences.",
                f"Set batch_tokens to a multiple of {data_size * config.sequence_length}.",
            )
        self._number = config.steps * per_step
        if not 0 <= first_sequence <= self._number or (self._number - first_sequence) % data_size:
            raise DataError(
                f"a run of {self._number} sequences cannot continue at sequence {first_sequence} with {data_size} "
                "data-parallel ranks.",
                "Every rank must get the same number of the sequences that are left.",
            )
        self.data = StageData.open(config, architecture, directory, beginning)
        super().__init__(open_reader(self.data.sources, architecture, config, place))
        numbers: Iterable[int] = place.sequences(first_sequence, self._number)
        if config.parallel.dealing == "evenly" and data_size > 1:
            dealing = EvenDealing(config, architecture, self.sources, self.mixture, place)
            numbers = dealing.sequences(first_sequence, self._number)
        self._batches = Prefetcher(self._batch, numbers, PREFETCHED)

    @property
    def mixture(self) -> Mixture:
        """Which source gives each sequence."""
        return self.data.mixture

    @property
    def wait_seconds(self) -> float:
        """Seconds that the consumer has waited for batches so far."""
        return self._batches.wait_seconds

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def _stop(self) -> None:
        self._batches.close()

    def describe(self, sequence: int) -> dict[str, Any]:
        """Where a sequence of the run comes from: its source, corpus and sample numbers, fit for JSON."""
        number, pack = self.mixture.place(sequence)
        source = self._reader.sources[number]
        return {
            "sequence": sequence,
            "source": source.label,
            "corpus": printable(source.corpus.path),
            "samples": [piece.document for piece in source.plan.pieces(pack, source.corpus)],
        }

    def _batch(self, sequence: int) -> Batch:
        return self._reader.batch(sequence, *self.mixture.place(sequence))


class ValidationLoader(_Loader):
    """This rank's batches of held-out sequences; iterating again gives the same ones again.

    The first sequences of each corpus, corpus after corpus, are dealt out over the data-parallel ranks. Where they do
    not divide, some ranks get a last batch of padding without loss, since all ranks must run equally many. A corpus
    with fewer sequences than asked for gives all that it has, once.

    Attributes:
        micro_batches: batches of one pass.
    """

    def __init__(
        self,
        config: StageConfig,
        architecture: Architecture,
        place: DataPlace = WHOLE,
        *,
        micro_batch_multiple: int = 1,
        directory: Path | None = None,
    ) -> None:
        """Open the corpora of ``config.validation``; arguments and errors as of :class:`TrainingLoader`.

        ``micro_batch_multiple``: what the number of a rank's batches must be a multiple of (interleaved pipelines).
        """
        if config.validation is None:
            raise ConfigError(
                "the stage has no validation section, so there are no held-out sequences.",
                fix="Give validation.corpora.",
            )
        sources = open_held_out(config, architecture, directory)
        super().__init__(open_reader(sources, architecture, config, place))
        places = [
            (source, int(pack))
            for source, opened in enumerate(self._reader.sources)
            for pack in opened.plan.order(0)[: config.validation.sequences]
        ]
        self.micro_batches = -(-len(places) // (place.data_size * micro_batch_multiple)) * micro_batch_multiple
        numbers = place.sequences(0, self.micro_batches * place.data_size)
        self._own = [(number, *places[number]) if number < len(places) else (number, 0, None) for number in numbers]
        self._running: Prefetcher[Any, Batch] | None = None

    def __iter__(self) -> Iterator[Batch]:
        self._stop()
        self._running = Prefetcher(lambda place: self._batch(*place), self._own, PREFETCHED)
        return self._running

    def _stop(self) -> None:
        if self._running is not None:
            self._running.close()

    def _batch(self, number: int, source: int, pack: int | None) -> Batch:
        return self._reader.padding(number, source) if pack is None else self._reader.batch(number, source, pack)
