"""Blocks of a sequence over context-parallel ranks: each token once, the work even, each query its own document."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from megatron_apriel.parallel.context_parts import blocks_of_rank, owner_of_block, seen_by_block


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_every_token_has_one_owner_and_equal_work(ranks: int) -> None:
    length = 10 * 2 * ranks
    owned = [[*itertools.chain(*blocks_of_rank(length, ranks, rank))] for rank in range(ranks)]
    assert sorted(itertools.chain(*owned)) == list(range(length))
    # Of one document, a query at position p sees p + 1 keys.
    assert len({sum(place + 1 for place in places) for places in owned}) == 1
    for number in range(2 * ranks):
        rank, which = owner_of_block(ranks, number)
        assert blocks_of_rank(length, ranks, rank)[which].start == number * 10


def test_an_odd_length_is_refused() -> None:
    with pytest.raises(ValueError, match="30 tokens cannot be cut into 2 x 4 equal blocks"):
        blocks_of_rank(30, 4, 0)


@pytest.mark.parametrize("seed", range(20))
def test_queries_see_their_document_up_to_themselves(seed: int) -> None:
    generator = np.random.default_rng(seed)
    bounds = [0, *np.cumsum(generator.integers(1, 30, 8)).tolist()]
    start, stop = sorted(generator.choice(bounds[-1] + 1, 2, replace=False).tolist())
    document_of = np.repeat(np.arange(8), np.diff(bounds))
    seen = seen_by_block(bounds, range(start, stop))
    queries, keys = np.arange(start, stop), np.arange(seen.first_key, stop)
    assert sum(seen.query_lengths) == queries.size
    assert sum(seen.key_lengths) == keys.size
    number = 0
    for query_length, key_length in zip(seen.query_lengths, seen.key_lengths, strict=True):
        mine, queries = queries[:query_length], queries[query_length:]
        visible, keys = keys[:key_length], keys[key_length:]
        (document,) = set(document_of[mine])
        assert visible.tolist() == list(range(bounds[document], mine[-1] + 1))
        assert number in (0, document)
        number = document + 1
