"""A rank's part of the data: the ranks together read everything, divided in its own way by each parallelism."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

import pytest

from megatron_apriel.parallel.data_place import WHOLE, DataPlace
from megatron_apriel.parallel.layout import Coordinates, Layout


@pytest.mark.parametrize(
    "layout",
    [Layout(), Layout(2), Layout(4, tensor=2), Layout(8, tensor=2, context=2), Layout(12, pipeline=3, context=2)],
    ids=str,
)
def test_every_part_is_read_by_as_many_ranks_as_hold_copies(layout: Layout) -> None:
    places = [DataPlace.of(layout, rank) for rank in range(layout.world_size)]
    sizes = {(place.data_size, place.shares, place.contexts) for place in places}
    assert sizes == {(layout.data, layout.tensor * layout.context, layout.context)}
    readers = Counter(number for place in places for number in place.sequences(0, 24))
    assert readers == dict.fromkeys(range(24), layout.model_ranks)
    # Images are decoded once: on the first pipeline rank alone, each share of each replica by one rank.
    decoding = [(place.data_rank, place.share) for place in places if place.with_images]
    assert sorted(decoding) == [(data, share) for data in range(layout.data) for share in range(places[0].shares)]
    assert [place.is_first for place in places] == [True] + [False] * (layout.world_size - 1)


def test_the_part_of_a_rank() -> None:
    layout = Layout(16, tensor=2, context=2, pipeline=2)
    rank = layout.rank_of(Coordinates(tensor=1, context=1, data=0, pipeline=1))
    assert DataPlace.of(layout, rank) == DataPlace(0, 2, 3, 4, 1, 2, with_images=False)
    assert DataPlace.of(Layout(), 0) == WHOLE


def test_sequences_in_turn() -> None:
    assert list(DataPlace(data_rank=1, data_size=3).sequences(4, 12)) == [5, 8, 11]


@pytest.mark.parametrize("wrong", [{"data_rank": 1}, {"data_rank": -1}, {"share": 2, "shares": 2}, {"contexts": 0}])
def test_numbers_beyond_their_size(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="is not one of"):
        DataPlace(**(asdict(WHOLE) | wrong))
