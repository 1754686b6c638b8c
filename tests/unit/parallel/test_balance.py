"""The split of decoder layers over pipeline stages: never worse than any other split, and used by the dry run."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from megatron_apriel.errors import ConfigError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.parallel.balance import (
    FP8_SPEED,
    Extras,
    balanced_layers,
    rank_loads,
    resolved_split,
    stage_extras,
)
from megatron_apriel.parallel.checks import check_layout
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning.hardware import KINDS
from megatron_apriel.planning.step_time import step_time
from megatron_apriel.planning.workload import Workload
from megatron_apriel.testing.stages import small_stage

APRIEL = Architecture.from_preset("apriel-15b")
H200 = KINDS["h200"]


def all_splits(layers: int, stages: int) -> Iterator[tuple[int, ...]]:
    """Every way to put layers on stages, none empty."""
    for cuts in itertools.combinations(range(1, layers), stages - 1):
        yield tuple(end - start for start, end in itertools.pairwise((0, *cuts, layers)))


@pytest.mark.parametrize(("layers", "pipeline", "virtual"), [(9, 3, 1), (10, 4, 1), (9, 2, 2), (8, 2, 3), (5, 5, 1)])
@pytest.mark.parametrize("extras", [(0, 0), (0.4, 2.2), (3, 0.5), (0, 7), (1, 1)])
def test_no_split_is_better(layers: int, pipeline: int, virtual: int, extras: tuple[float, float]) -> None:
    first, last = extras

    def slowest_rank(split: tuple[int, ...]) -> float:
        loads = [sum(split[rank::pipeline]) + 0.0 for rank in range(pipeline)]
        loads[0] += first
        loads[-1] += last
        return max(loads)

    split = balanced_layers(layers, pipeline, virtual, Extras(first, last))
    assert sum(split) == layers and len(split) == pipeline * virtual and min(split) >= 1
    assert slowest_rank(split) == min(map(slowest_rank, all_splits(layers, pipeline * virtual)))


def test_chunks_of_a_rank_are_even_too() -> None:
    """The last rank has ten layers and a head of 2: its chunks are 6 and 4 + 2."""
    assert balanced_layers(22, 2, 2, Extras(0, 2)) == (6, 6, 6, 4)


def test_of_equal_stages_the_later_gets_more() -> None:
    """It keeps fewer micro-batches."""
    assert balanced_layers(6, 4, 1, Extras(0, 0)) == (1, 1, 2, 2)


def test_more_stages_than_layers() -> None:
    with pytest.raises(ConfigError, match=r"12 pipeline stages .* for 8 decoder layers"):
        balanced_layers(8, 6, 2, Extras(0, 0))


def test_loads() -> None:
    assert rank_loads((3, 4, 4, 2), 2, Extras(0.5, 2)) == [7.5, 8]


def test_extras_by_hand() -> None:
    """Per token, in products: a layer has 272.6 M weights and, causal at 8192, 8192 x 4096 of attention; a head V h."""
    layer = 5120 * 128 * 80 + 3 * 5120 * 14336 + 8192 * 4096
    extras = stage_extras(small_stage(), APRIEL)
    assert extras.first == 0
    assert extras.last == pytest.approx(131072 * 5120 / layer)
    everything = small_stage(train={"tower": 1, "projector": 1, "decoder": 1})
    # Half of the tokens are one image of 4096 patches; the tower's attention is whole.
    tower = 24 * (4 * 1024**2 + 3 * 1024 * 4096 + 2 * 4096 * 1024) + 768 * 1024
    images = (tower + 1024 * 5120 + 5120**2) * 0.5
    assert stage_extras(everything, APRIEL, 0.5).first == pytest.approx(images / layer)
    assert 0 < stage_extras(everything, APRIEL).first < images / layer
    assert stage_extras(everything, Architecture(APRIEL.decoder)).first == 0


def test_what_is_computed_again_counts() -> None:
    """A layer's forward pass, or its MLP's, comes once more, and so does that of a tower that trains, but no head."""
    mlp, head = 3 * 5120 * 14336, 131072 * 5120
    layer = 5120 * 128 * 80 + mlp + 8192 * 4096
    tower_mlp, projector = 3 * 1024 * 4096, 1024 * 5120 + 5120**2
    tower_layer = 4 * 1024**2 + tower_mlp + 2 * 4096 * 1024
    for mode, again, tower_again in (("full", layer, tower_layer), ("selective", mlp, tower_mlp)):
        recompute = {"mode": mode}
        assert stage_extras(small_stage(recompute=recompute), APRIEL).last == pytest.approx(
            3 * head / (3 * layer + again)
        )
        # Half of the tokens are one image of 4096 patches.
        trained = small_stage(recompute=recompute, train={"tower": 1, "projector": 1, "decoder": 1})
        tower = 24 * (3 * tower_layer + tower_again) + 3 * 768 * 1024
        assert stage_extras(trained, APRIEL, 0.5).first == pytest.approx(
            0.5 * (tower + 3 * projector) / (3 * layer + again)
        )
        frozen = small_stage(recompute=recompute, train={"projector": 1, "decoder": 1})
        tower = 24 * tower_layer + 768 * 1024
        assert stage_extras(frozen, APRIEL, 0.5).first == pytest.approx(
            0.5 * (tower + 3 * projector) / (3 * layer + again), rel=0.01
        )


@pytest.mark.parametrize("fp8", ["none", "delayed", "tensorwise", "blockwise"])
def test_in_8_bits_the_ends_weigh_more(fp8: str) -> None:
    """As much more as the measured rates of a layer say; split that way, the slowest rank has the least to do."""
    config = small_stage(8192, 8, precision={"fp8": fp8}, parallel={"pipeline": 8, "layers_per_stage": "balanced"})
    assert FP8_SPEED[fp8] == pytest.approx(H200.linear(fp8) / H200.linear("none"), rel=0.01)
    layer, attention = 5120 * 128 * 80 + 3 * 5120 * 14336, 8192 * 4096
    assert stage_extras(config, APRIEL).last == pytest.approx(131072 * 5120 / (layer / FP8_SPEED[fp8] + attention))

    def seconds(layers: tuple[int, ...]) -> float:
        layout = Layout(8, pipeline=8, layers_per_stage=layers)
        return step_time(config, APRIEL, layout, H200, Workload.of(config)).compute

    split = check_layout(config, APRIEL, 8).layers_per_virtual_stage(48)
    last = split[-1]
    assert last == (3 if fp8 in ("delayed", "tensorwise") else 4)
    for other in (last - 1, last + 1):
        rest, more = divmod(48 - other, 7)
        assert seconds(split) <= seconds((*[rest] * (7 - more), *[rest + 1] * more, other))


def test_the_word_becomes_numbers() -> None:
    config = resolved_split(small_stage(parallel={"pipeline": 4, "layers_per_stage": "balanced"}), APRIEL)
    assert check_layout(config, APRIEL, 8).layers_per_virtual_stage(48) == (12, 13, 13, 10)
    for other in (None, [14, 12, 12, 10]):
        given = small_stage(parallel={"pipeline": 4, "layers_per_stage": other})
        assert resolved_split(given, APRIEL) is given


def test_a_layout_does_not_take_the_word() -> None:
    with pytest.raises(ConfigError, match="layers_per_stage=balanced is not resolved"):
        Layout.from_config(small_stage(parallel={"pipeline": 2, "layers_per_stage": "balanced"}).parallel, 2)
