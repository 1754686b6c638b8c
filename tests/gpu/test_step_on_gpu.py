"""A training step never waits for the GPU, and leaves everything as it was where a number is not finite."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from layout_runs import ARCHITECTURE, Trainer

from megatron_apriel.model.apriel import AprielModel
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing.checkpoints import hf_model
from megatron_apriel.testing.layouts import CASES, Setup
from megatron_apriel.testing.marks import needs_transformer_engine
from megatron_apriel.testing.weights import from_transformers

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
    """torch raises wherever it would wait for the device, but for the event that a step's report waits for."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["bf16", "delayed", "tensorwise", "blockwise"])
@pytest.mark.parametrize("case", ["all, mixed", "projector and decoder, mixed", "projector, mixed", "decoder, mixed"])
def test_a_step_waits_for_nothing(case: str, precision: str, weights: dict[str, torch.Tensor], alone: None) -> None:
    trainer = Trainer(CASES[case], Setup(Layout()), precision, weights)
    before = trainer.step(0).loss  # kernels are compiled
    with waiting_is_an_error():
        with pytest.raises(RuntimeError, match="synchronizing"):
            torch.ones((), device="cuda").item()
        reports = [trainer.step(0) for _ in range(3)]
    assert all(report.applied for report in reports)
    assert reports[-1].loss < before


def test_a_step_that_is_not_finite_changes_nothing(
    weights: dict[str, torch.Tensor], alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(CASES["all, mixed"], Setup(Layout()), "bf16", weights)
    before = trainer.step(0).loss
    parameters = [parameter for chunk in trainer.chunks for parameter in chunk.parameters()]
    kept = [parameter.detach().clone() for parameter in parameters]
    with monkeypatch.context() as changed:
        sound = AprielModel.forward
        changed.setattr(AprielModel, "forward", lambda *arguments, **options: sound(*arguments, **options) * torch.nan)
        skipped = trainer.step(0)
    assert not skipped.applied
    assert skipped.bad_sequences == [0, 1, 2, 3]
    assert all(torch.equal(parameter, as_it_was) for parameter, as_it_was in zip(parameters, kept, strict=True))
    after = trainer.step(0)
    assert after.applied and after.loss < before
    assert not all(torch.equal(parameter, as_it_was) for parameter, as_it_was in zip(parameters, kept, strict=True))
