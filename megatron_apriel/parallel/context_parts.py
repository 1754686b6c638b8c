"""Which tokens of a packed sequence a context-parallel rank owns, and which keys they see.

Of C ranks, each owns two runs of the sequence. It is cut into 2C *blocks* of equal length, and rank r owns blocks r and
2C - 1 - r: with causal attention a late token sees more than an early one, and an early block with a late one makes
every rank's work the same (for one document; for several, nearly). Blocks know nothing of documents, so a border may
lie anywhere in a document, and no document needs padding.

A block's queries see the keys of their own documents up to themselves. Those are one run of the sequence too: from the
start of the document in which the block begins, to the end of the block. Pure arithmetic, no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple


class Seen(NamedTuple):
    """What the queries of a block see.

    Attributes:
        first_key: where the document begins in which the block begins; keys run from here to the block's end.
        query_lengths: per document that reaches into the block, its tokens in the block.
        key_lengths: per such document, its tokens from its start to the block's end.
    """

    first_key: int
    query_lengths: list[int]
    key_lengths: list[int]


def blocks_of_rank(length: int, ranks: int, rank: int) -> tuple[range, range]:
    """The positions of a sequence of ``length`` tokens that ``rank`` of ``ranks`` owns, in the order it holds them.

    Raises:
        ValueError: if the length is not a multiple of 2 x ``ranks``.
    """
    if length % (2 * ranks):
        raise ValueError(f"{length} tokens cannot be cut into 2 x {ranks} equal blocks")
    size = length // (2 * ranks)
    early, late = rank, 2 * ranks - 1 - rank
    return range(early * size, (early + 1) * size), range(late * size, (late + 1) * size)


def owner_of_block(ranks: int, block: int) -> tuple[int, int]:
    """The rank that owns a block of the 2 x ``ranks``, and whether it is its first (0) or its second (1)."""
    return (block, 0) if block < ranks else (2 * ranks - 1 - block, 1)


def seen_by_block(bounds: Sequence[int], block: range) -> Seen:
    """What the queries at the positions ``block`` see.

    Args:
        bounds: cumulative lengths of the sequence's documents, from 0.
        block: the positions of the block.
    """
    reaching = [(start, stop) for start, stop in pairwise(bounds) if start < block.stop and stop > block.start]
    return Seen(
        first_key=reaching[0][0],
        query_lengths=[min(stop, block.stop) - max(start, block.start) for start, stop in reaching],
        key_lengths=[min(stop, block.stop) - start for start, stop in reaching],
    )
