"""What speaks against a prediction, and what a plan says of it; measured steps that came out as predicted have none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.predictions import on_several_gpus, predicted_of, work_of
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning.certainty import WITHIN, Doubt, doubts, legend, signs
from megatron_apriel.planning.hardware import KINDS, Hardware
from megatron_apriel.planning.step_time import StepTime, step_time

H200 = KINDS["h200"]
LONG = StepTime(8, 8 * 48 * 0.020, 0.0, 0.0, 0.0, 0.0, 0.0)
"""Of 20 ms a layer and micro-batch without a pipeline."""


@pytest.mark.parametrize(
    ("layout", "gpu", "expected"),
    [
        (Layout(4, tensor=2, sequence=True, context=2), H200, []),
        (Layout(4, pipeline=2, virtual=6), H200, []),
        (Layout(4), KINDS["h100"], [Doubt.KIND]),
        (Layout(8), H200, [Doubt.NUMBER]),
        (Layout(16), H200, [Doubt.NUMBER, Doubt.LINKS]),
        (Layout(4, context=4), H200, [Doubt.SPLIT]),
        (Layout(8, tensor=8, sequence=True), H200, [Doubt.NUMBER, Doubt.SPLIT]),
        (Layout(4, pipeline=4, virtual=2), H200, [Doubt.SPLIT]),
        (Layout(2, pipeline=2), H200, [Doubt.SPLIT]),
    ],
)
def test_what_was_not_measured(layout: Layout, gpu: Hardware, expected: list[Doubt]) -> None:
    assert doubts(layout, gpu, LONG) == expected


def test_short_layers() -> None:
    """Where the GPU waits for the host, how long is that host's."""
    assert doubts(Layout(), H200, replace(LONG, host=0.1)) == [Doubt.HOST]


def test_of_measured_steps_those_without_doubt_were_near() -> None:
    """Those for which the host decides have a doubt; the others have none, or were near all the same."""
    for row in on_several_gpus():
        spread, layout = row.found.spread, row.found.spread.layout()
        time = step_time(spread.config(), spread.architecture(), layout, H200, work_of(spread))
        off = abs(predicted_of(row).tokens_per_second / row.found.tokens_per_second - 1)
        found = doubts(layout, H200, time)
        assert off < WITHIN + 0.01 or found == [Doubt.HOST], row.found.spread.title


def test_signs_and_legend() -> None:
    assert (signs([]), signs([Doubt.NUMBER, Doubt.HOST])) == ("5%", "? nh")
    lines = legend([[], [Doubt.HOST], [Doubt.HOST, Doubt.KIND]])
    assert [line.split(",")[0] for line in lines] == ["sure: 5%", "sure: k", "sure: h"]
    assert not any("5%" in line for line in legend([[Doubt.LINKS]]))
