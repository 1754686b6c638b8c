"""Sequences dealt evenly: each of a step once, equally many and about as much work for all ranks; runs resumed."""

from __future__ import annotations

import itertools
import random

import pytest
from loader_cases import MODEL, assert_same, load, stage

from megatron_apriel.data.loading.dealing import even_shares
from megatron_apriel.formats.flops import step_flops
from megatron_apriel.parallel.data_place import DataPlace


def best_maximum(work: list[int], ranks: int) -> int:
    """Of all ways to deal equally many to each rank, the smallest load of the busiest, by trying every one."""
    each = len(work) // ranks
    if ranks == 1:
        return sum(work)
    first, *rest = range(len(work))
    return min(
        max(
            work[first] + sum(work[i] for i in others),
            best_maximum([work[i] for i in rest if i not in others], ranks - 1),
        )
        for others in itertools.combinations(rest, each - 1)
    )


@pytest.mark.parametrize(("number", "ranks"), [(4, 2), (8, 2), (8, 4), (9, 3), (6, 6), (5, 1)])
def test_shares_are_even(number: int, ranks: int) -> None:
    generator = random.Random(number * ranks)
    for _ in range(20):
        work = [generator.randrange(80, 160) for _ in range(number)]
        shares = even_shares(work, ranks)
        assert sorted(itertools.chain(*shares)) == list(range(number))
        assert {len(share) for share in shares} == {number // ranks}
        assert all(share == sorted(share) for share in shares)
        loads = [sum(work[i] for i in share) for share in shares]
        assert max(loads) <= 1.1 * best_maximum(work, ranks)


def test_equal_sequences_are_dealt_in_order_of_rank() -> None:
    assert even_shares([5] * 6, 3) == [[0, 3], [1, 4], [2, 5]]


def test_sequences_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="5 sequences are not equally many for each of 2 ranks"):
        even_shares([1] * 5, 2)


@pytest.mark.parametrize("train", [{"decoder": 1.0}, {"tower": 1.0, "projector": 1.0}])
@pytest.mark.parametrize("data_size", [2, 4])
def test_ranks_share_each_step_evenly(corpora, data_size, train):
    """Against batches that one rank reads, and their work counted from what is in them."""
    config = stage(corpora, per_step=8, train=train, parallel={"dealing": "evenly"})
    whole = load(config)
    assert [batch.sequence for batch in whole] == list(range(48))
    ranks = [load(config, DataPlace(data_rank=rank, data_size=data_size)) for rank in range(data_size)]
    each = 8 // data_size
    worst = {"in order": 0.0, "evenly": 0.0}
    for step in range(6):
        mine = [batches[step * each : (step + 1) * each] for batches in ranks]
        numbers = [[batch.sequence for batch in batches] for batches in mine]
        assert sorted(itertools.chain(*numbers)) == list(range(8 * step, 8 * step + 8))
        for batch in itertools.chain(*mine):
            assert_same(batch, whole[batch.sequence])
        work = {number: step_flops(MODEL, config.train, whole[number]) for number in itertools.chain(*numbers)}
        in_order = [range(8 * step + rank, 8 * step + 8, data_size) for rank in range(data_size)]
        for dealt, shares in (("in order", in_order), ("evenly", numbers)):
            loads = [sum(work[number] for number in share) for share in shares]
            worst[dealt] = max(worst[dealt], max(loads) / (sum(loads) / data_size) - 1)
    assert worst["evenly"] < 0.5 * worst["in order"]


@pytest.mark.parametrize("steps", [1, 4])
def test_a_run_is_resumed_with_the_same_shares(corpora, steps):
    config = stage(corpora, parallel={"dealing": "evenly"})
    place = DataPlace(data_rank=1, data_size=2)
    rest = [batch.sequence for batch in load(config, place, first_sequence=4 * steps)]
    assert rest == [batch.sequence for batch in load(config, place)][2 * steps :]


def test_ranks_of_a_sequence_agree(corpora):
    """Those of another share of the images, of a part of the tokens, of a later pipeline stage."""
    config = stage(corpora, parallel={"dealing": "evenly"})
    others = [{"share": 1, "shares": 2}, {"with_images": False}, {"context": 1, "contexts": 2}]
    places = [DataPlace(data_rank=1, data_size=2, **other) for other in ({}, *others)]
    first, *rest = [[batch.sequence for batch in load(config, place)] for place in places]
    assert all(numbers == first for numbers in rest)
