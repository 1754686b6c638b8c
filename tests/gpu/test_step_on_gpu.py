"""A training step never waits for the GPU, and changes nothing where a number is not finite or there is no target."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import pytest
import torch
from layout_runs import ARCHITECTURE, run_of
from megatron.core.tensor_parallel import ColumnParallelLinear

from megatron_apriel.batch import IGNORED_LABEL, Batch
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing.checkpoints import hf_model
from megatron_apriel.testing.layouts import CASES, Setup
from megatron_apriel.testing.marks import needs_transformer_engine
from megatron_apriel.testing.optimizer_state import optimizer_state
from megatron_apriel.testing.weights import from_transformers
from megatron_apriel.train.objectives.next_token import NextToken
from megatron_apriel.train.objectives.objective import Counted

pytestmark = [pytest.mark.gpu, needs_transformer_engine]


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return from_transformers(hf_model(ARCHITECTURE, seed=1).state_dict(), ARCHITECTURE)


@pytest.fixture
def alone() -> Iterator[None]:
    with groups.initialized(Layout()):
        yield


@contextlib.contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """torch raises wherever it would wait for the device, but for the event that a step's result waits for."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["bf16", "delayed", "tensorwise", "blockwise"])
@pytest.mark.parametrize("case", ["all, mixed", "projector and decoder, mixed", "projector, mixed", "decoder, mixed"])
def test_a_step_waits_for_nothing(case: str, precision: str, weights: dict[str, torch.Tensor], alone: None) -> None:
    run = run_of(CASES[case], Setup(Layout()), precision, weights)
    before = run.step(0).loss  # kernels are compiled
    with waiting_is_an_error():
        with pytest.raises(RuntimeError, match="synchronizing"):
            torch.ones((), device="cuda").item()
        results = [run.step(0) for _ in range(3)]
    assert all(result.applied for result in results)
    assert results[-1].loss < before


@pytest.mark.parametrize("precision", ["bf16", "delayed", "tensorwise"])
def test_neither_does_one_whose_layers_inputs_wait_on_the_host(
    precision: str, weights: dict[str, torch.Tensor], alone: None
) -> None:
    recompute = {"mode": "full", "inputs": "host"}
    run = run_of(CASES["all, mixed"], Setup(Layout()), precision, weights, recompute=recompute)
    before = run.step(0).loss
    with waiting_is_an_error():
        results = [run.step(0) for _ in range(3)]
    assert results[-1].loss < before
    assert run.trainer.inputs is not None and run.trainer.inputs.waiting == 0


class NotFinite(NextToken):
    """Gives a sum that is not a number."""

    def __call__(self, head: ColumnParallelLinear, hidden_S1H: torch.Tensor, batch: Batch) -> Counted:
        counted = super().__call__(head, hidden_S1H, batch)
        return dataclasses.replace(counted, sum=counted.sum * torch.nan)


def test_a_step_that_is_not_finite_changes_nothing(
    weights: dict[str, torch.Tensor], alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(CASES["all, mixed"], Setup(Layout()), "bf16", weights)
    before = run.step(0).loss
    parameters = [parameter for chunk in run.trainer.chunks for parameter in chunk.parameters()]
    kept = [parameter.detach().clone() for parameter in parameters]
    with monkeypatch.context() as changed:
        changed.setattr(run.trainer, "objective", NotFinite())
        skipped = run.step(0)
    assert not skipped.applied
    assert skipped.bad_sequences == [0, 1, 2, 3]
    assert all(torch.equal(parameter, as_it_was) for parameter, as_it_was in zip(parameters, kept, strict=True))
    after = run.step(0)
    assert after.applied and after.loss < before
    assert not all(torch.equal(parameter, as_it_was) for parameter, as_it_was in zip(parameters, kept, strict=True))


class NoTarget(NextToken):
    """Next token of batches whose labels are all ignored."""

    def __call__(self, head: ColumnParallelLinear, hidden_S1H: torch.Tensor, batch: Batch) -> Counted:
        labels_S = torch.full_like(batch.labels_S, IGNORED_LABEL)
        return super().__call__(head, hidden_S1H, dataclasses.replace(batch, labels_S=labels_S, num_loss_tokens=0))


@pytest.mark.parametrize("precision", ["bf16", "delayed", "tensorwise", "blockwise"])
@pytest.mark.parametrize("case", ["all, mixed", "projector, mixed"])
def test_a_step_without_a_target_changes_nothing(
    case: str, precision: str, weights: dict[str, torch.Tensor], alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(CASES[case], Setup(Layout()), precision, weights)
    first = run.step(0).loss
    before = optimizer_state(run.trainer)
    with monkeypatch.context() as changed:
        changed.setattr(run.trainer, "objective", NoTarget())
        with waiting_is_an_error():
            empty = run.step(1)
    assert (empty.empty, empty.applied, empty.bad_sequences, empty.gradient_norm) == (True, False, [], 0.0)
    after = optimizer_state(run.trainer)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    later = run.step(0)
    assert later.applied and later.loss < first
