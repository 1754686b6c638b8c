"""What is left to learn of a source's documents: which tokens can be targets, and which documents have none.

A document without a target takes its place in a sequence, costs what any other costs, and teaches nothing. It may have
been so from the beginning (a plain document where the loss is on responses), or have become so where it was cut: its
prompt fills the sequence. The second takes a lesson away, so both are counted before a run starts; whether such
documents are left out or the source is refused is a setting (``sources.py``).

Most documents need no look at their tokens: their lengths, images and numbers of response tokens say that there is a
target. Of the others the flags are read, and of documents that were cut where the loss is on responses, of which it is
counted what they lost.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_apriel.config.choices import LossOn
from megatron_apriel.data.corpus.image_size import image_tokens
from megatron_apriel.data.corpus.on_disk import Corpus
from megatron_apriel.data.loading.cutting import CutDocuments

_TOKENS = 1 << 22
"""Tokens looked at together."""


@dataclass(frozen=True)
class Targets:
    """What the documents of a corpus have to learn, cut as they are.

    Attributes:
        kept: how many documents there are of which something is left.
        without: numbers of those of them of which nothing that is left is a target, ascending.
        without_as_cut: how many of these lost tokens that could be learned where they were cut.
        shortened: documents of which tokens that could be learned were cut off or dropped.
        lost: how many tokens that are: of responses, where the loss is on these.
    """

    kept: int
    without: NDArray[np.int64]
    without_as_cut: int
    shortened: int
    lost: int


def learnable(corpus: Corpus, document: int, start: int, length: int, loss: LossOn) -> NDArray[np.bool_]:
    """Which of these tokens can be targets: none of an image's, and of responses only where the loss is on them.

    The first token of a piece of a document never is one, for nothing predicts it. ``length`` may reach into the
    documents that follow.
    """
    images, result = corpus.manifest.images, np.ones(length, dtype=bool)
    if loss == "responses":
        result &= corpus.responses(document, start, length)
    if images is not None:
        result &= np.isin(corpus.tokens(document, start, length), images.token_ids, invert=True)
    return result


def count_targets(corpus: Corpus, cut: CutDocuments, loss: LossOn) -> Targets:
    """Find the documents without a target, and count what was lost where documents were cut."""
    tokens, size = corpus.documents["tokens"], len(corpus)
    marked = corpus.documents["responses"] if loss == "responses" else tokens
    pieces = np.bincount(cut.pieces.documents, minlength=size) + cut.whole
    kept = np.zeros(size, dtype=np.int64)
    np.add.at(kept, cut.pieces.documents, cut.pieces.lengths)
    kept[cut.whole] = tokens[cut.whole]
    # At least so many of the tokens that are left are targets.
    certain = marked - (tokens - kept) - pieces - _image_tokens(corpus)
    shorter = kept < tokens
    read = (kept > 0) & ((certain <= 0) | (shorter & (marked > 0) & (loss == "responses")))
    counts = _count(corpus, _spans(corpus, cut, read), loss)
    without = np.flatnonzero(read & (counts.targets == 0))
    lost = np.where(shorter, marked - counts.responses, 0) if loss == "responses" else tokens - kept
    return Targets(
        kept=int((kept > 0).sum()),
        without=without,
        without_as_cut=int((lost[without] > 0).sum()),
        shortened=int((lost > 0).sum()),
        lost=int(lost.sum()),
    )


def images_left(corpus: Corpus, cut: CutDocuments) -> int:
    """Images of a corpus that stand in its sequences when its documents are cut so."""
    rows, pieces = corpus.image_rows, cut.pieces
    whole = cut.whole[rows["document"]]
    if not pieces.documents.size:
        return int(whole.sum())
    # An image is never cut, so its first token decides.
    places = corpus.first_tokens[rows["document"]] + rows["start"]
    begins = corpus.first_tokens[pieces.documents] + pieces.starts
    last = np.searchsorted(begins, places, side="right") - 1
    return int((whole | ((last >= 0) & (places < (begins + pieces.lengths)[last]))).sum())


class _Spans(NamedTuple):
    """Runs of tokens, in order and apart: the document of each, and where it begins and ends among all tokens."""

    documents: NDArray[np.int64]
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]


class _Counts(NamedTuple):
    """Of each document, int64: targets, and tokens of responses."""

    targets: NDArray[np.int64]
    responses: NDArray[np.int64]


def _image_tokens(corpus: Corpus) -> NDArray[np.int64]:
    """Tokens of images in each document."""
    rows, result = corpus.image_rows, np.zeros(len(corpus), dtype=np.int64)
    np.add.at(result, rows["document"], image_tokens(rows["rows"].astype(np.int64), rows["columns"].astype(np.int64)))
    return result


def _spans(corpus: Corpus, cut: CutDocuments, read: NDArray[np.bool_]) -> _Spans:
    """What is left of the documents to ``read``."""
    whole, parts = np.flatnonzero(read & cut.whole), read[cut.pieces.documents]
    documents = np.concatenate([whole, cut.pieces.documents[parts]])
    starts = np.concatenate([np.zeros(whole.size, dtype=np.int64), cut.pieces.starts[parts]])
    lengths = np.concatenate([corpus.documents["tokens"][whole], cut.pieces.lengths[parts]])
    begins = corpus.first_tokens[documents] + starts
    order = np.argsort(begins, kind="stable")
    return _Spans(documents[order], begins[order], (begins + lengths)[order])


def _count(corpus: Corpus, spans: _Spans, loss: LossOn) -> _Counts:
    counts = _Counts(*(np.zeros(len(corpus), dtype=np.int64) for _ in range(2)))
    for block in _blocks(spans):
        documents, begins, ends = (column[block] for column in spans)
        document, origin = int(documents[0]), int(begins[0])
        place = document, origin - int(corpus.first_tokens[document]), int(ends[-1]) - origin
        begins, ends = begins - origin, ends - origin
        # The first token of a run is no target.
        np.add.at(counts.targets, documents, _sums(learnable(corpus, *place, loss), begins + 1, ends))
        np.add.at(counts.responses, documents, _sums(corpus.responses(*place), begins, ends))
    return counts


def _sums(flags: NDArray[np.bool_], begins: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many flags are set in each run."""
    before = np.concatenate([[0], np.cumsum(flags)])
    return before[ends] - before[begins]


def _blocks(spans: _Spans) -> Iterator[slice]:
    """The runs that are looked at together: those within some ``_TOKENS``, or a single one."""
    first = 0
    while first < len(spans.ends):
        reach = int(np.searchsorted(spans.ends, spans.begins[first] + _TOKENS, side="right"))
        last = max(reach, first + 1)
        yield slice(first, last)
        first = last
