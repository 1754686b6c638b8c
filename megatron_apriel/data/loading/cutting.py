"""What becomes of documents longer than a sequence: cut into pieces, shortened, left out, or refused.

Documents that are to be left out for another reason (``targets.py``) are left out here too, so that what stands whole
in a plan and what stands in pieces is decided in one place.

A piece has as many tokens as a sequence, or fewer where it would end inside an image: it then ends before that image,
for an image is never cut. Everything here works on whole columns, so that cutting costs little beside packing: it is
done once to make a packing plan, and again by everyone who reads one (``plan_checks.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_apriel.config.choices import LongDocuments
from megatron_apriel.data.corpus.on_disk import Corpus
from megatron_apriel.errors import DataError
from megatron_apriel.quantities import counted


@dataclass(frozen=True)
class LongDocumentsReport:
    """What became of the documents longer than the sequence."""

    documents: int = 0
    """How many there were."""
    dropped_documents: int = 0
    dropped_tokens: int = 0
    """Tokens left out by dropping or truncating."""


class Pieces(NamedTuple):
    """Parts of documents in order: document numbers, first tokens in them, and lengths, int64 [pieces] each."""

    documents: NDArray[np.int64]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]


NO_DOCUMENTS: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
"""Left out besides those that are too long."""


@dataclass(frozen=True)
class CutDocuments:
    """Which documents of a corpus stand whole in a sequence, and the pieces that are kept of the others.

    Attributes:
        whole: bool [documents]; the others are too long, or left out.
        pieces: what is kept of those.
        report: what is not kept of those that are too long.
    """

    whole: NDArray[np.bool_]
    pieces: Pieces
    report: LongDocumentsReport


def cut_documents(
    corpus: Corpus, limit: int, long_documents: LongDocuments, left_out: NDArray[np.int64] = NO_DOCUMENTS
) -> CutDocuments:
    """Cut the documents of more than ``limit`` tokens as ``long_documents`` says, and leave out ``left_out``.

    Raises DataError if there are such documents and it says ``error``, if an image to be kept by ``split`` is longer
    than ``limit``, or if no document is left.
    """
    tokens = corpus.documents["tokens"]
    are_long = np.asarray(tokens > limit)
    long = np.flatnonzero(are_long)
    if long.size and long_documents == "error":
        longest = int(tokens.argmax())
        raise DataError(
            f"{corpus.path}: {long.size} of {len(corpus)} documents are longer than sequence_length={limit}; "
            f"the longest is document {longest} with {int(tokens[longest])} tokens, the first is {int(long[0])}.",
            "A document is neither cut nor dropped unless the configuration says so.",
            "Set long_documents of this source to split, truncate or drop, or choose a longer sequence_length.",
        )
    none = np.zeros(0, dtype=np.int64)
    pieces = Pieces(none, none, none)
    if long.size and long_documents != "drop":
        cutter = _Cutter(corpus, are_long, limit)
        pieces = cutter.all_pieces(long) if long_documents == "split" else cutter.first_pieces(long)
    report = LongDocumentsReport(
        documents=long.size,
        dropped_documents=long.size - len(np.unique(pieces.documents)),
        dropped_tokens=int(tokens[long].sum() - pieces.lengths.sum()),
    )
    whole = ~are_long
    if left_out.size:
        whole[left_out] = False
        stay = np.isin(pieces.documents, left_out, invert=True)
        pieces = Pieces(*(column[stay] for column in pieces))
    if not whole.any() and not pieces.documents.size:
        raise DataError(
            f"{corpus.path}: none of its {counted(len(corpus), 'document')} fits into sequences of {limit} tokens.",
            f"long_documents is '{long_documents}'.",
            "Choose a longer sequence_length, or long_documents: split.",
        )
    return CutDocuments(whole, pieces, report)


class _Cutter:
    """Cuts many documents at once; places are counted through all tokens of the corpus."""

    def __init__(self, corpus: Corpus, are_long: NDArray[np.bool_], limit: int) -> None:
        self._corpus, self._limit, self._first = corpus, limit, corpus.first_tokens
        rows = corpus.image_rows[are_long[corpus.image_rows["document"]]]
        self._images = self._first[rows["document"]] + rows["start"]
        self._image_ends = self._images + rows["rows"].astype(np.int64) * (rows["columns"].astype(np.int64) + 1)

    def first_pieces(self, documents: NDArray[np.int64]) -> Pieces:
        """The first piece of each document; none of one that begins with an image longer than the limit."""
        begins = self._first[documents]
        return self._pieces([(documents, begins, self._stops(documents, begins) - begins)])

    def all_pieces(self, documents: NDArray[np.int64]) -> Pieces:
        """All pieces of each document. Raises DataError if an image is longer than the limit."""
        if (longer := self._image_ends - self._images > self._limit).any():
            document = int(np.searchsorted(self._first, self._images[longer][0], side="right")) - 1
            raise DataError(
                f"{self._corpus.path}: document {document} has an image of more than sequence_length={self._limit} "
                "tokens.",
                "An image is never cut.",
                "Choose a longer sequence_length, or set long_documents of this source to truncate or drop.",
            )
        found = []
        begins = self._first[documents]
        while documents.size:
            # Up to the next image every piece is full; one more piece then ends at that image or behind it.
            upcoming = np.append(self._images, self._first[-1])[np.searchsorted(self._images, begins)]
            full = (np.minimum(upcoming, self._first[documents + 1]) - begins) // self._limit
            owners = np.repeat(np.arange(full.size), full)
            steps = np.arange(owners.size) - np.repeat(np.cumsum(full) - full, full)
            found.append((documents[owners], begins[owners] + steps * self._limit, np.full(owners.size, self._limit)))
            begins = begins + full * self._limit
            stops = self._stops(documents, begins)
            unfinished = begins < self._first[documents + 1]
            documents, begins, stops = documents[unfinished], begins[unfinished], stops[unfinished]
            found.append((documents, begins, stops - begins))
            begins = stops
        return self._pieces(found)

    def _stops(self, documents: NDArray[np.int64], begins: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the longest piece ends that starts at each of ``begins``, which lie in ``documents``."""
        stops = np.minimum(begins + self._limit, self._first[documents + 1])
        if not self._images.size:
            return stops
        last = np.searchsorted(self._images, stops) - 1  # the last image that begins before the stop
        cut = (last >= 0) & (self._image_ends[last] > stops)
        return np.where(cut, self._images[last], stops)

    def _pieces(self, found: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]) -> Pieces:
        """Documents, places and lengths as pieces in order, without those of no tokens."""
        documents, begins, lengths = (np.concatenate(columns) for columns in zip(*found, strict=True))
        order = np.argsort(begins, kind="stable")
        order = order[lengths[order] > 0]
        documents = documents[order]
        return Pieces(documents, begins[order] - self._first[documents], lengths[order])
