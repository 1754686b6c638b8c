"""Training with states and sums of fewer bits: sums as in float32, no bit by where states lie, and memory as predicted.
The cases worth most come first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from slices import TINY, Run, Slice, equal, running

from megatron_apriel.config.choices import Recompute
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing.marks import needs_transformer_engine

pytestmark = [pytest.mark.gpu, needs_transformer_engine]

NARROW = {"moments": "int8", "master": "24bit", "gradients": "24bit"}


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """Process groups for all cases, whose communicators are then made once."""
    with groups.initialized(Layout()):
        yield


def gradients(run: Run) -> dict[str, tuple[torch.Tensor, bool]]:
    """Of every parameter its summed gradient, on the GPU, and whether it is kept in 24 bits."""
    named = [pair for chunk in run.trainer.chunks for pair in chunk.named_parameters()]
    return {
        name: (one.gradient_sums.read() if narrow else one.main_grad.flatten().clone(), narrow)
        for name, one in named
        for narrow in [hasattr(one, "gradient_sums")]
    }


@pytest.mark.parametrize("precision", ["tensorwise", "delayed", "bf16"])
@pytest.mark.parametrize("mode", ["full", "none", "selective"])
def test_sums_are_those_in_float32(precision: str, mode: Recompute) -> None:
    """Of a step's first update, before which both runs have the same weights; products add to them by themselves."""
    weights = "remade" if mode == "full" and precision != "bf16" else "kept"
    exact = Slice(precision, 2, mode, fp8_weights=weights, width="half", micro_batches=3)  # type: ignore[arg-type]
    with running(exact) as run:
        [(loss, norm)], expected = run.figures(1), gradients(run)
    with running(replace(exact, optimizer={"gradients": "24bit"})) as run:
        [found], sums = run.figures(1), gradients(run)
    assert found == (loss, pytest.approx(norm, rel=1e-4))
    assert sum(narrow for _, narrow in sums.values()) == 4 * exact.layers
    assert not any(narrow for _, narrow in expected.values())
    for name, (of_float32, _) in expected.items():
        one, narrow = sums[name]
        if narrow:
            assert 0 < (one - of_float32).norm() <= 2e-5 * of_float32.norm(), name
        else:
            assert torch.equal(one, of_float32), name


def test_where_narrow_states_lie_changes_no_bit() -> None:
    here = Slice("tensorwise", 2, optimizer=NARROW)
    with running(here) as run:
        expected, state = run.figures(10), run.state()
    with running(here.on_host(0.6)) as run:
        assert run.figures(10) == expected
        assert equal(run.state(), state)
    assert expected[-1][0] < expected[0][0]


def test_narrow_states_follow_the_exact_ones() -> None:
    exact = Slice("bf16", 2, width="half", micro_batches=3)
    with running(exact) as run:
        expected = [loss for loss, _ in run.figures(12)]
    forms: list[dict[str, Any]] = [{"moments": "bfloat16"}, NARROW]
    for form in forms:
        with running(replace(exact, optimizer=form)) as run:
            found = [loss for loss, _ in run.figures(12)]
        assert found == pytest.approx(expected, rel=2e-3), form
        assert found[3:] != expected[3:]


@pytest.mark.parametrize(
    "what",
    [
        Slice("tensorwise", 8, case="8192", whole_vocabulary=True, optimizer=NARROW, micro_batches=3),
        Slice("tensorwise", 8, case="8192", optimizer={"moments": "bfloat16", "host": 0.5}, micro_batches=3),
    ],
    ids=["all narrow", "16-bit moments on the host"],
)
def test_the_gpu_holds_what_was_predicted(what: Slice) -> None:
    with running(what) as run:
        run.steps(1)
        peak = run.peak_of(lambda: run.steps(2))
        assert TINY or peak == pytest.approx(run.predicted.total, rel=0.03), f"held before: {run.held_before}"
