"""FP8 training of full-width slices with states in host memory: every number as without, and memory as predicted."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from layout_runs import forget_scales

from benchmarks.cases import CASES
from benchmarks.measure import prepared
from benchmarks.subjects.ours import stage_config
from megatron_apriel.config.machine_sections import RecomputeSection
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning.memory import rank_memory
from megatron_apriel.testing.marks import needs_transformer_engine
from megatron_apriel.testing.optimizer_state import optimizer_state
from megatron_apriel.train.trainer import Trainer

pytestmark = [pytest.mark.gpu, needs_transformer_engine]

MICRO_BATCHES = 2
CASE = replace(CASES["8192"], micro_batches=MICRO_BATCHES)


@pytest.fixture(autouse=True)
def repeatable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Attention whose backward pass adds up in one order."""
    monkeypatch.setenv("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "0")
    yield
    gc.collect()
    torch.cuda.empty_cache()


class Trained(NamedTuple):
    losses: list[float]
    norms: list[float]
    state: dict[str, torch.Tensor]
    """On the host; nothing where it was not asked for."""
    peak: int
    predicted: float


def trained(precision: str, layers: int, share: float, steps: int, with_state: bool) -> Trained:
    architecture, made = prepared(CASE, "ours", layers, tiny=False)
    config = stage_config(
        CASE, precision, recompute=RecomputeSection(mode="full"), fp8_weights="remade", host=share
    ).model_copy(update={"attention": "cudnn"})
    forget_scales()
    gc.collect()
    torch.cuda.empty_cache()
    with groups.initialized(Layout()) as device:
        trainer, given = Trainer(architecture, config, Layout()), [batch.to(device) for batch in made]
        results = []
        for number in range(steps):
            if number == 1:
                torch.cuda.reset_peak_memory_stats()
            results.append(trainer.step(iter(given), 1e-4))
        peak = torch.cuda.max_memory_allocated()
        state = {name: tensor.cpu() for name, tensor in optimizer_state(trainer).items()} if with_state else {}
    assert all(result.applied for result in results)
    predicted = rank_memory(config, architecture, Layout(), 0).total
    return Trained([one.loss for one in results], [one.gradient_norm for one in results], state, peak, predicted)


@pytest.mark.parametrize("precision", ["delayed", "tensorwise"])
def test_where_states_lie_changes_no_bit_of_training(precision: str) -> None:
    found = trained(precision, 4, 0.6, 20, with_state=True)
    expected = trained(precision, 4, 0.0, 20, with_state=True)
    again = trained(precision, 4, 0.0, 20, with_state=False)
    assert (again.losses, again.norms) == (expected.losses, expected.norms), "the same run twice differs by itself"
    assert (found.losses, found.norms) == (expected.losses, expected.norms)
    assert found.state.keys() == expected.state.keys()
    assert all(torch.equal(tensor, expected.state[name]) for name, tensor in found.state.items())
    assert expected.losses[-1] < expected.losses[0]


@pytest.mark.parametrize(("precision", "share"), [("tensorwise", 1.0), ("delayed", 0.5)])
def test_the_gpu_holds_what_was_predicted(precision: str, share: float) -> None:
    found = trained(precision, 8, share, 3, with_state=False)
    assert found.peak == pytest.approx(found.predicted, rel=0.03)
