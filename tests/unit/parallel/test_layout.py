"""Rank arithmetic, against megatron-core's own generator of rank groups."""

from __future__ import annotations

import itertools

import pytest

from megatron_apriel.config.machine_sections import ParallelSection
from megatron_apriel.errors import ConfigError
from megatron_apriel.parallel.layout import Coordinates, Layout, divisors, started_ranks

SIZES = [
    (tensor, context, data, pipeline)
    for tensor, context, data, pipeline in itertools.product((1, 2, 4), (1, 2), (1, 2, 3, 5), (1, 2, 3))
]


def layout_of(tensor: int, context: int, data: int, pipeline: int, **other: object) -> Layout:
    world_size = tensor * context * data * pipeline
    return Layout(world_size, tensor=tensor, context=context, pipeline=pipeline, **other)  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: "tp{} cp{} dp{} pp{}".format(*sizes))
def test_groups_equal_megatrons(sizes: tuple[int, int, int, int]) -> None:
    from megatron.core.parallel_state import RankGenerator

    tensor, context, data, pipeline = sizes
    layout = layout_of(*sizes)
    reference = RankGenerator(tp=tensor, ep=1, dp=data, pp=pipeline, cp=context, order="tp-cp-ep-dp-pp")
    assert layout.data == data
    for kind, index in (("tp", 0), ("cp", 1), ("dp", 2), ("pp", 3)):
        groups: dict[tuple[int, ...], list[int]] = {}
        for rank in range(layout.world_size):
            place = layout.coordinates(rank)
            groups.setdefault((*place[:index], *place[index + 1 :]), []).append(rank)
            assert groups[(*place[:index], *place[index + 1 :])].index(rank) == place[index]
        assert sorted(groups.values()) == sorted(list(group) for group in reference.get_ranks(kind))
    for rank in range(layout.world_size):
        assert layout.rank_of(layout.coordinates(rank)) == rank


def test_neighbours_in_tensor_are_adjacent() -> None:
    layout = Layout(16, tensor=2, context=2, pipeline=2)
    assert layout.coordinates(0) == Coordinates(0, 0, 0, 0)
    assert layout.coordinates(1) == Coordinates(tensor=1, context=0, data=0, pipeline=0)
    assert layout.coordinates(2) == Coordinates(tensor=0, context=1, data=0, pipeline=0)
    assert layout.coordinates(4) == Coordinates(tensor=0, context=0, data=1, pipeline=0)
    assert layout.coordinates(8) == Coordinates(tensor=0, context=0, data=0, pipeline=1)
    with pytest.raises(ValueError, match=r"rank 16 is outside 0 \.\.\. 15"):
        layout.coordinates(16)


@pytest.mark.parametrize(
    ("num_layers", "pipeline", "virtual", "expected"),
    [
        (8, 1, 1, [[range(8)]]),
        (8, 2, 1, [[range(4)], [range(4, 8)]]),
        (8, 2, 2, [[range(2), range(4, 6)], [range(2, 4), range(6, 8)]]),
        (8, 2, 4, [[range(i, i + 1) for i in (0, 2, 4, 6)], [range(i, i + 1) for i in (1, 3, 5, 7)]]),
    ],
)
def test_layers_follow_megatrons_interleaving(
    num_layers: int, pipeline: int, virtual: int, expected: list[list[range]]
) -> None:
    """The expected figures for 8 layers are those in megatron-core's comments on interleaving."""
    layout = Layout(pipeline, pipeline=pipeline, virtual=virtual)
    found = [[layout.layers_of(num_layers, rank, chunk) for chunk in range(virtual)] for rank in range(pipeline)]
    assert found == expected


@pytest.mark.parametrize(("pipeline", "virtual"), [(1, 1), (2, 1), (4, 1), (2, 2), (3, 4), (8, 3)])
def test_every_layer_stands_once(pipeline: int, virtual: int) -> None:
    layout = Layout(pipeline, pipeline=pipeline, virtual=virtual)
    places = itertools.product(range(pipeline), range(virtual))
    layers = [layer for place in places for layer in layout.layers_of(48, *place)]
    assert sorted(layers) == list(range(48))


def test_explicit_split_and_megatrons_form_of_it() -> None:
    layout = Layout(4, pipeline=2, virtual=2, layers_per_stage=(1, 3, 3, 2))
    assert [layout.layers_of(9, rank, chunk) for chunk in (0, 1) for rank in (0, 1)] == [
        range(1), range(1, 4), range(4, 7), range(7, 9),
    ]  # fmt: skip
    assert layout.megatron_layer_layout(9) == [
        ["embedding", "decoder"],
        ["decoder"] * 3,
        ["decoder"] * 3,
        ["decoder"] * 2 + ["loss"],
    ]
    assert Layout(2, pipeline=2).megatron_layer_layout(8) is None


def test_ends_of_the_stack() -> None:
    layout = Layout(3, pipeline=3, virtual=2)
    places = list(itertools.product(range(3), range(2)))
    assert [place for place in places if layout.holds_input(*place)] == [(0, 0)]
    assert [place for place in places if layout.holds_output(*place)] == [(2, 1)]


def test_from_config() -> None:
    section = ParallelSection(tensor=2, sequence=True, pipeline=2, virtual=2, layers_per_stage=(1, 2, 2, 1))
    layout = Layout.from_config(section, 8)
    assert layout == Layout(8, 2, 2, 2, 1, True, (1, 2, 2, 1))
    assert (layout.data, layout.model_ranks, layout.optimizer_shards) == (2, 4, 2)


def test_micro_batches() -> None:
    assert Layout(8, tensor=2).micro_batches(32) == 8
    assert Layout(8, pipeline=2, virtual=2).micro_batches(8) == 2


def message(call: object) -> str:
    with pytest.raises(ConfigError) as caught:
        call()  # type: ignore[operator]
    return str(caught.value)


def test_ranks_that_do_not_divide() -> None:
    assert message(lambda: Layout(6, tensor=4)) == (
        "6 ranks cannot be divided into model replicas of 4 ranks"
        " (parallel.tensor=4 x parallel.context=1 x parallel.pipeline=1).\n"
        "  Every data-parallel rank is a whole replica of the model.\n"
        "  Start 4 or 8 ranks, or choose sizes whose product is one of 1, 2, 3, 6."
    )
    assert "Start 4 ranks" in message(lambda: Layout(3, tensor=4))
    assert "Start 4 ranks" in message(lambda: Layout(0, tensor=4))


def test_sequences_that_do_not_divide() -> None:
    text = message(lambda: Layout(6).micro_batches(32))
    assert "32 sequences per step" in text and "6 data-parallel ranks (6 ranks / 1 per replica)" in text
    assert "multiple of sequence_length x 6" in text and "out of 1, 2, 4, 8, 16, 32." in text


def test_of_many_possible_numbers_of_replicas_the_nearest_are_offered() -> None:
    text = message(lambda: Layout(24, tensor=1).micro_batches(10**6))
    assert "out of 5, 8, 10, 16, 20, 25, 32, 40 and others." in text


@pytest.mark.parametrize(("environment", "ranks"), [
    ({}, 1), ({"SLURM_NTASKS": "16"}, 16), ({"WORLD_SIZE": "8", "SLURM_NTASKS": "16"}, 8), ({"WORLD_SIZE": ""}, 1),
])  # fmt: skip
def test_ranks_that_a_launcher_started(environment: dict[str, str], ranks: int) -> None:
    assert started_ranks(environment, "WORLD_SIZE", "SLURM_NTASKS") == ranks


@pytest.mark.parametrize("value", ["abc", "0", "-2", "1.5", "²"])
def test_a_number_of_ranks_that_is_none(value: str) -> None:
    text = message(lambda: started_ranks({"WORLD_SIZE": value}, "WORLD_SIZE"))
    assert f"the environment variable WORLD_SIZE={value!r} is no number of ranks" in text


def test_micro_batches_that_do_not_interleave() -> None:
    text = message(lambda: Layout(4, pipeline=4, virtual=2).micro_batches(6))
    assert "6 micro-batches per step is not a multiple of parallel.pipeline=4" in text
    assert "multiple of sequence_length x 4" in text


def test_layers_that_do_not_divide() -> None:
    text = message(lambda: Layout(4, pipeline=4).layers_of(10, 0))
    assert "10 decoder layers do not divide over 4 pipeline stages" in text
    assert "out of 1, 2, 5, 10." in text and "parallel.layers_per_stage=[2,3,3,2]" in text
    assert "At most 2 stages are possible." in message(lambda: Layout(4, pipeline=4).layers_of(2, 0))


def test_wrong_explicit_splits() -> None:
    text = message(lambda: Layout(2, pipeline=2, layers_per_stage=(1, 2, 3)))
    assert "parallel.layers_per_stage=[1, 2, 3] has 3 entries for 2 stages" in text
    assert "Give 2 that sum to the layers, or set parallel.layers_per_stage=balanced." in text
    text = message(lambda: Layout(2, pipeline=2, layers_per_stage=(4, 5)).layers_of(8, 0))
    assert (
        "sums to 9 layers, the decoder has 8" in text
        and "parallel.layers_per_stage=[4,4]; parallel.layers_per_stage=balanced" in text
    )


def test_divisors() -> None:
    for number in range(1, 200):
        assert divisors(number) == [value for value in range(1, number + 1) if number % value == 0]


def test_messages_on_absurd_numbers_do_not_wait_for_their_divisors() -> None:
    prime = 2**61 - 1  # a search for its divisors would take hours
    assert divisors(prime) == [1, prime]
    assert f"{prime:,} ranks cannot be divided into" in message(lambda: Layout(prime, tensor=2))
    assert f"{prime} sequences per step" in message(lambda: Layout(2).micro_batches(prime))
