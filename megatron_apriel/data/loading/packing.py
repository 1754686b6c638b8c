"""Which documents fill which sequence: the packing plan of a corpus.

Documents are much shorter than a sequence, and of every length. Padding each to the sequence would waste most of the
computation; cutting a running stream of documents into sequences would tear them apart. So whole documents are fitted
into sequences ("packs") as boxes into containers: longest first, each into the fullest pack that still has room (best
fit, decreasing). On the length distributions of text and reasoning traces that leaves well under 1% of padding.

Attention never crosses documents, so it does not matter which documents share a pack; the order in which packs come
does. Therefore the packs of a corpus are made once, and each epoch visits all of them in a random order of its own:
every document exactly once per epoch, and the number and tokens of an epoch's packs are constants. The last packs of a
corpus are left padded instead of being completed from the next epoch.

A plan is a pure function of the documents' lengths (and, where documents are longer than the sequence, of their images'
places), the sequence length, the seed, what is to happen to documents that are too long, and which others are left out.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_apriel.config.choices import LongDocuments
from megatron_apriel.data.corpus.on_disk import Corpus
from megatron_apriel.data.loading.cutting import NO_DOCUMENTS, LongDocumentsReport, cut_documents
from megatron_apriel.data.loading.order import shuffled

WINDOW = 1 << 20
"""Documents packed together. Bounds the memory of packing; a window this large loses nothing measurable."""


def document_dtype(corpus: Corpus) -> np.dtype[np.integer]:
    """Of the document numbers in the plans of a corpus."""
    return np.dtype(np.int32 if len(corpus) < 2**31 else np.int64)


class Piece(NamedTuple):
    """Part of a document, usually all of it, as it stands in a pack."""

    document: int
    start: int
    length: int


@dataclass(frozen=True)
class PackingPlan:
    """The packs of a corpus.

    Attributes:
        sequence_length: tokens of a full pack.
        seed: decides which of equally long documents go where, and the order of each epoch.
        documents: integer [pieces], document numbers, pack after pack.
        starts, lengths: int32 [pieces], which tokens of each; both empty where every document is whole.
        offsets: int64 [packs + 1], where each pack begins in ``documents``.
        tokens: int32 [packs], tokens of each pack, padding excluded.
        long_documents: what became of documents longer than the sequence.
    """

    sequence_length: int
    seed: int
    documents: NDArray[np.integer]
    starts: NDArray[np.int32]
    lengths: NDArray[np.int32]
    offsets: NDArray[np.int64]
    tokens: NDArray[np.int32]
    long_documents: LongDocumentsReport

    @property
    def num_packs(self) -> int:
        """Packs of one epoch."""
        return len(self.tokens)

    @property
    def epoch_tokens(self) -> int:
        """Tokens of one epoch, padding excluded."""
        return int(self.tokens.sum(dtype=np.int64))

    @property
    def padding(self) -> float:
        """Share of padding in an epoch's sequences."""
        return 1 - self.epoch_tokens / (self.num_packs * self.sequence_length)

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Pack numbers in the order in which ``epoch`` visits them, int64 [packs]."""
        return shuffled(self.num_packs, self.seed, 1, epoch)

    def pieces(self, pack: int, corpus: Corpus) -> list[Piece]:
        """The documents of a pack, in order."""
        span = slice(int(self.offsets[pack]), int(self.offsets[pack + 1]))
        documents = self.documents[span].tolist()
        if self.lengths.size == 0:
            return [Piece(document, 0, int(corpus.documents["tokens"][document])) for document in documents]
        return list(map(Piece, documents, self.starts[span].tolist(), self.lengths[span].tolist()))


def best_fit_decreasing(lengths: NDArray[np.integer], capacity: int) -> tuple[NDArray[np.int64], int]:
    """Put every length into a bin: longest first, into the fullest bin that has room, into a new one if none has.

    Args:
        lengths: integers [n] from 1 to ``capacity``. Equal lengths are placed in the order given.
        capacity: size of a bin.

    Returns:
        The bin of each length, int64 [n], and the number of bins.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    chosen = np.empty(len(lengths), dtype=np.int64)
    bins: list[int] = []
    rooms: list[int] = []  # distinct free spaces of open bins, ascending
    by_room: dict[int, list[int]] = {}
    number = 0
    for length in lengths[order].tolist():
        place = bisect_left(rooms, length)
        if place == len(rooms):
            bin_, room = number, capacity
            number += 1
        else:
            room = rooms[place]
            stack = by_room[room]
            bin_ = stack.pop()
            if not stack:
                del by_room[room], rooms[place]
        bins.append(bin_)
        room -= length
        if room:
            if room in by_room:
                by_room[room].append(bin_)
            else:
                by_room[room] = [bin_]
                insort(rooms, room)
    chosen[order] = bins
    return chosen, number


def make_plan(
    corpus: Corpus,
    sequence_length: int,
    seed: int,
    long_documents: LongDocuments = "error",
    left_out: NDArray[np.int64] = NO_DOCUMENTS,
) -> PackingPlan:
    """The packing plan of a corpus without the documents ``left_out``.

    Raises DataError if a document is longer than the sequence and ``long_documents`` is ``error``, if an image to be
    kept by ``split`` is, or if no document is left.
    """
    cut = cut_documents(corpus, sequence_length, long_documents, left_out)
    whole = np.flatnonzero(cut.whole)
    documents = np.concatenate([whole, cut.pieces.documents])
    starts = np.concatenate([np.zeros(whole.size, dtype=np.int64), cut.pieces.starts])
    lengths = np.concatenate([corpus.documents["tokens"][whole], cut.pieces.lengths])
    order = shuffled(len(documents), seed, 0)
    bins = np.empty(len(documents), dtype=np.int64)
    number = 0
    for first in range(0, len(order), WINDOW):
        window = order[first : first + WINDOW]
        bins[first : first + WINDOW], used = best_fit_decreasing(lengths[window], sequence_length)
        bins[first : first + WINDOW] += number
        number += used
    # Stable, so that the documents of a pack stand in random order and not by length.
    order = order[np.argsort(bins, kind="stable")]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(bins, minlength=number))])
    none = np.zeros(0, dtype=np.int32)
    parts = cut.pieces.documents.size > 0
    return PackingPlan(
        sequence_length=sequence_length,
        seed=seed,
        documents=documents[order].astype(document_dtype(corpus)),
        starts=starts[order].astype(np.int32) if parts else none,
        lengths=lengths[order].astype(np.int32) if parts else none,
        offsets=offsets,
        tokens=np.add.reduceat(lengths[order], offsets[:-1]).astype(np.int32),
        long_documents=cut.report,
    )
