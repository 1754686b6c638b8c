"""What a plan says of layers' inputs that wait on the host: number, memory in both places, time, and when it pays."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from megatron_apriel.config.schema import StageConfig
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning.dry_run import print_plan
from megatron_apriel.planning.hardware import KINDS, Hardware
from megatron_apriel.planning.layouts import GIB, Candidate, candidates
from megatron_apriel.planning.memory import inputs_on_host, rank_memory
from megatron_apriel.planning.plan_words import record, yaml_lines
from megatron_apriel.planning.step_time import step_time
from megatron_apriel.planning.workload import Workload
from megatron_apriel.testing.stages import small_stage

APRIEL = Architecture(Architecture.from_preset("apriel-15b").decoder)
H200 = KINDS["h200"]
INPUT = 2 * 32768 * 5120
"""Bytes of what enters a layer."""


def stage(inputs: str = "host", layers: int | None = None, **changes: Any) -> StageConfig:
    recompute = {"mode": "full", "inputs": inputs, "layers": layers}
    return small_stage(32768, 16, **{"recompute": recompute, "train": {"decoder": 1}} | changes)


@pytest.mark.parametrize(
    ("layout", "rank", "layers", "count", "size"),
    [
        (Layout(), 0, None, 48, INPUT),
        (Layout(), 0, 30, 30, INPUT),
        (Layout(2, tensor=2), 0, None, 48, INPUT),
        (Layout(2, tensor=2, sequence=True), 0, None, 48, INPUT // 2),
        (Layout(4, context=4), 0, None, 48, INPUT // 4),
        (Layout(4, pipeline=4), 0, None, 4 * 12, INPUT),
        (Layout(4, pipeline=4), 3, None, 12, INPUT),
        (Layout(4, pipeline=4), 1, 5, 3 * 5, INPUT),
        (Layout(2, pipeline=2, layers_per_stage=(20, 28)), 1, None, 28, INPUT),
        # Two chunks: 2 (P - p - 1) + (V - 1) P + 1 passes of 12 layers are under way.
        (Layout(2, pipeline=2, virtual=2), 0, None, 5 * 12, INPUT),
        (Layout(2, pipeline=2, virtual=2), 1, None, 3 * 12, INPUT),
    ],
)
def test_how_many_wait(layout: Layout, rank: int, layers: int | None, count: int, size: int) -> None:
    config = stage(layers=layers)
    assert inputs_on_host(config, APRIEL.decoder, layout, rank) == (count, size)
    assert inputs_on_host(stage("gpu", layers), APRIEL.decoder, layout, rank) == (0, 0)
    memory = rank_memory(config, APRIEL, layout, rank)
    assert (memory.host, memory.host_inputs) == (0, count * size) and memory.on_host == count * size


def test_in_float32_they_are_twice_as_large() -> None:
    assert inputs_on_host(stage(precision={"compute": "fp32"}), APRIEL.decoder, Layout(), 0) == (48, 2 * INPUT)


@pytest.mark.parametrize("layers", [None, 30])
def test_the_gpu_has_two_of_them(layers: int | None) -> None:
    here, away = (rank_memory(stage(inputs, layers), APRIEL, Layout(), 0) for inputs in ("gpu", "host"))
    assert here.total - away.total == pytest.approx(((layers or 48) - 2) * INPUT)


def test_what_a_pipeline_received_stays() -> None:
    layout = Layout(4, pipeline=4)
    here, away = (rank_memory(stage(inputs), APRIEL, layout, 1) for inputs in ("gpu", "host"))
    assert here.total - away.total == pytest.approx((3 * 12 - 3 - 2) * INPUT)


def test_states_take_the_room_of_inputs_that_leave() -> None:
    """By optimizer.host=auto; what the host has of both is the same but for the two on their way."""
    fp8 = {"precision": {"fp8": "tensorwise", "fp8_weights": "remade"}, "optimizer": {"peak": 1e-5, "host": "auto"}}
    here, away = (rank_memory(stage(inputs, **fp8), APRIEL, Layout(), 0, 133 * GIB) for inputs in ("gpu", "host"))
    assert here.total == pytest.approx(133 * GIB) and away.total == pytest.approx(133 * GIB)
    assert away.on_host - here.on_host == pytest.approx(2 * INPUT)
    assert here.host - away.host == pytest.approx(46 * INPUT)


def test_copies_slow_what_they_run_beside_and_are_waited_for_where_it_is_short() -> None:
    work = Workload(32768, 0)
    here, away = (step_time(stage(inputs), APRIEL, Layout(), H200, work) for inputs in ("gpu", "host"))
    copy = 16 * 48 * 2 * INPUT / 50e9
    assert away.compute - here.compute == pytest.approx(0.08 * copy)
    slow = H200.model_copy(update={"host_bandwidth": 0.1, "beside_copies": 0.0})
    waited = step_time(stage(), APRIEL, Layout(), slow, work).compute
    assert waited == pytest.approx(16 * 48 * 2 * INPUT / 0.1e9, rel=0.05)
    some = [step_time(stage(inputs, 10), APRIEL, Layout(), H200, work).compute for inputs in ("gpu", "host")]
    assert some[1] - some[0] == pytest.approx(0.08 * copy * 10 / 48)


def undivided(gpu: Hardware) -> list[Candidate]:
    """What fits eight GPUs with all of the model on each."""
    fitting = candidates(stage("gpu"), APRIEL, 8, gpu, Workload(32768, 0)).fitting()
    return [one for one in fitting if one.label == "TP1 CP1 PP1 VP1"]


def test_chosen_where_a_layout_fits_in_no_other_way() -> None:
    small = H200.model_copy(update={"memory": 112.0})
    (found,) = undivided(small)
    assert found.config.recompute.inputs == "host" and found.memory.on_host == 48 * INPUT
    assert "recompute: {mode: full, inputs: host}" in yaml_lines(found)
    assert record(found)["inputs"] == "host"
    # Where there is room without it, it is slower.
    assert [one.config.recompute.inputs for one in undivided(H200)] == ["gpu"]
    assert not undivided(small.model_copy(update={"host_memory": 10.0}))


def test_no_pipeline_rank_is_passed_over() -> None:
    """The first rank has most on the host, the second most on the GPU, where what it received stays."""
    long = small_stage(131072, 16, train={"decoder": 1})
    gpu = H200.model_copy(update={"memory": 108.0})
    all_kinds = [
        one for one in candidates(long, APRIEL, 4, gpu, Workload(131072, 0)).accepted if one.layout.virtual == 1
    ]
    (halves,) = [one for one in all_kinds if one.label == "TP1 CP1 PP2 VP1" and one.config.recompute.inputs == "host"]
    first, second = (rank_memory(halves.config, APRIEL, halves.layout, rank) for rank in range(2))
    assert first.on_host > second.on_host and first.total < gpu.available < second.total
    assert halves.over == second.total - gpu.available
    assert (halves.memory, halves.fullest_stage) == (second, 1)


def test_the_dry_run_shows_them() -> None:
    output = io.StringIO()
    print_plan(stage(), 1, architecture="apriel-15b", console=Console(file=output, width=140))
    assert "on the host" in output.getvalue() and "15.0 GiB" in output.getvalue()
