"""Whether a packing plan that was found on disk is one of its corpus, and not damage or somebody's invention.

A corpus lies where a team shares it, and so does its plan; ``data/corpus/on_disk.py`` reads whatever pieces a plan
names. So a plan is compared with the corpus before it is used:

- every document that fits is in it exactly once and whole, every longer one in exactly the pieces that its cutting
  gives (``cutting.py``), none of which ends inside an image; none that is left out is in it;
- no pack is empty or holds more than a sequence, and its number of tokens is their sum;
- the pieces of a pack stand in the random order of the seed;
- at most one pack of each window of pieces is half empty, as best fit promises: two of them would have been one.

That takes a few operations on whole columns, less than a tenth of the time of packing, and some 20 bytes a piece.
No sum can wrap: numbers are added only when they are known to be a document's own.

Not compared is what only packing again would show: which documents share a pack. Whoever may write to the directory can
choose that, and with it the order in which a run meets its documents; not their tokens, nor what an epoch holds. The
checksums in a plan's file find damage. They do not say who wrote it, nor would any digest kept beside the data.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from megatron_apriel.data.corpus.on_disk import Corpus
from megatron_apriel.data.loading.cutting import CutDocuments
from megatron_apriel.data.loading.order import hashed
from megatron_apriel.data.loading.packing import WINDOW, PackingPlan

_PIECES = 1 << 20
"""Pieces looked at together."""


def number_of_pieces(cut: CutDocuments) -> int:
    """Pieces in every plan of a corpus whose documents were cut so."""
    return int(cut.whole.sum()) + cut.pieces.documents.size


def check_plan(plan: PackingPlan, corpus: Corpus, cut: CutDocuments) -> None:
    """Raises ValueError with the reason if ``plan`` is not one of ``corpus`` with its long documents ``cut`` so."""
    _check_sizes(plan, corpus, cut)
    numbers = _numbers(plan, cut)
    seen = np.zeros(plan.documents.size, dtype=bool)
    half_empty = 0
    for packs, pieces in _blocks(plan):
        lengths = _lengths(plan, corpus, cut, pieces)
        begins = plan.offsets[packs] - pieces.start
        sums = np.add.reduceat(lengths, begins)
        _refuse(sums > plan.sequence_length, packs.start, f"a pack holds more than {plan.sequence_length} tokens")
        _refuse(sums != plan.tokens[packs], packs.start, "a pack's number of tokens is not the sum of its pieces")
        half_empty += int((sums <= plan.sequence_length // 2).sum())
        order = hashed(numbers[pieces], plan.seed, 0)
        falls = np.append(order[1:] <= order[:-1], False)
        falls[begins[1:] - 1] = False  # from the last of a pack to the first of the next
        _refuse(falls, pieces.start, "the pieces of a pack are not in the order of the seed", "piece")
        seen[numbers[pieces]] = True
    _refuse(~seen, 0, "a piece of the corpus is in no pack, and another one twice", "piece")
    windows = -(-plan.documents.size // WINDOW)
    if half_empty > windows:
        raise ValueError(f"{half_empty} packs are half empty, where {windows} may be")


def _refuse(wrong: NDArray[np.bool_], first: int, what: str, thing: str = "pack") -> None:
    if wrong.any():
        raise ValueError(f"{what} ({thing} {first + int(np.argmax(wrong))})")


def _check_sizes(plan: PackingPlan, corpus: Corpus, cut: CutDocuments) -> None:
    """Compare the arrays' sizes, and find all document numbers and offsets within what they point to."""
    pieces, expected = plan.documents.size, number_of_pieces(cut)
    if not pieces or pieces != expected:
        raise ValueError(f"it has {pieces} pieces, and the corpus gives {expected}")
    parts = expected if cut.pieces.documents.size else 0
    if (plan.starts.size, plan.lengths.size) != (parts, parts):
        raise ValueError(f"it has {plan.starts.size} starts and {plan.lengths.size} lengths, not {parts}")
    if plan.documents.min() < 0 or plan.documents.max() >= len(corpus):
        raise ValueError(
            f"its documents are {plan.documents.min()} to {plan.documents.max()}, and the corpus has {len(corpus)}"
        )
    offsets = plan.offsets
    if offsets.size != plan.tokens.size + 1 or (offsets[0], offsets[-1]) != (0, pieces):
        raise ValueError(f"its {plan.tokens.size} packs do not divide its {pieces} pieces")
    _refuse(offsets[1:] <= offsets[:-1], 0, "a pack is empty")


def _numbers(plan: PackingPlan, cut: CutDocuments) -> NDArray[np.integer]:
    """The number of each of a plan's pieces among those of the corpus, whole documents first; what packing shuffles.

    Compares the pieces of long documents with those of their cutting.
    """
    if cut.whole.all():
        return plan.documents
    ranks = np.cumsum(cut.whole, dtype=plan.documents.dtype) - 1
    numbers = ranks[plan.documents]
    parts = np.flatnonzero(~cut.whole[plan.documents])
    if parts.size != cut.pieces.documents.size:
        raise ValueError(
            f"{parts.size} pieces are of documents that are cut or left out, and the corpus gives"
            f" {cut.pieces.documents.size}"
        )
    if parts.size:
        order = parts[np.lexsort((plan.starts[parts], plan.documents[parts]))]
        for found, expected in zip((plan.documents, plan.starts, plan.lengths), cut.pieces, strict=True):
            _refuse(found[order] != expected, 0, "a long document is cut elsewhere", "part")
        numbers[order] = np.arange(plan.documents.size - parts.size, plan.documents.size)
    return numbers


def _blocks(plan: PackingPlan) -> Iterator[tuple[slice, slice]]:
    """The packs and pieces that are looked at together: whole packs with some ``_PIECES`` pieces."""
    places = np.arange(0, plan.documents.size, _PIECES)
    bounds = np.unique(np.append(np.searchsorted(plan.offsets, places), plan.tokens.size)).tolist()
    for first, last in itertools.pairwise(bounds):
        yield slice(first, last), slice(int(plan.offsets[first]), int(plan.offsets[last]))


def _lengths(plan: PackingPlan, corpus: Corpus, cut: CutDocuments, pieces: slice) -> NDArray[np.int64]:
    """Tokens of each of these pieces; those of whole documents are compared with the corpus."""
    documents = plan.documents[pieces]
    tokens = np.asarray(corpus.documents["tokens"][documents])
    if not plan.lengths.size:
        return tokens
    lengths = plan.lengths[pieces].astype(np.int64)
    wrong = cut.whole[documents] & ((plan.starts[pieces] != 0) | (lengths != tokens))
    _refuse(wrong, pieces.start, "a document that fits is not whole", "piece")
    return lengths
