"""FP8 training of full-width slices with states and sums of fewer bits: sums as in float32, and memory as predicted."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from layout_runs import forget_scales

from benchmarks.cases import CASES
from benchmarks.measure import prepared
from benchmarks.narrow_states import bytes_of_a_parameter
from benchmarks.subjects.ours import stage_config
from megatron_apriel.config.machine_sections import RecomputeSection
from megatron_apriel.config.training_sections import OptimizerSection
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning.memory import rank_memory
from megatron_apriel.testing.marks import needs_transformer_engine
from megatron_apriel.testing.optimizer_state import optimizer_state
from megatron_apriel.train.trainer import Trainer

pytestmark = [pytest.mark.gpu, needs_transformer_engine]

CASE = replace(CASES["8192"], micro_batches=3)
NARROW = {"moments": "int8", "master": "24bit", "gradients": "24bit"}


@pytest.fixture(autouse=True)
def repeatable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Attention whose backward pass adds up in one order."""
    monkeypatch.setenv("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "0")
    yield
    gc.collect()
    torch.cuda.empty_cache()


def trained(precision: str, layers: int, steps: int, forms: dict[str, Any], mode: str = "full") -> dict[str, Any]:
    architecture, made = prepared(CASE, "ours", layers, tiny=False)
    weights = "remade" if precision != "bf16" and mode == "full" else "kept"
    recompute = RecomputeSection.model_validate({"mode": mode})
    config = stage_config(CASE, precision, recompute=recompute, fp8_weights=weights)  # type: ignore[arg-type]
    config = config.model_copy(update={"attention": "cudnn", "optimizer": OptimizerSection(peak=1e-5, **forms)})
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
        named = [pair for chunk in trainer.chunks for pair in chunk.named_parameters()]
        found = {
            "losses": [result.loss for result in results],
            "norms": [result.gradient_norm for result in results],
            "peak": torch.cuda.max_memory_allocated(),
            "bytes": bytes_of_a_parameter(trainer),
            "gradients": {name: gradient(one) for name, one in named},
            "narrow": [name for name, one in named if hasattr(one, "gradient_sums")],
            "state": {name: tensor.cpu() for name, tensor in optimizer_state(trainer).items()} if layers < 4 else {},
        }
    assert all(result.applied for result in results)
    return found | {"predicted": rank_memory(config, architecture, Layout(), 0).total}


def gradient(parameter: Any) -> torch.Tensor:
    kept = parameter.gradient_sums.read() if hasattr(parameter, "gradient_sums") else parameter.main_grad
    return kept.flatten().cpu()  # type: ignore[no-any-return]


@pytest.mark.parametrize("mode", ["none", "selective", "full"])
@pytest.mark.parametrize("precision", ["bf16", "delayed", "tensorwise"])
def test_sums_are_those_in_float32(precision: str, mode: str) -> None:
    """Of a step's first update, before which both runs have the same weights."""
    exact, found = (trained(precision, 2, 1, {"gradients": form}, mode) for form in ("float32", "24bit"))
    assert found["losses"] == exact["losses"] and found["norms"] == pytest.approx(exact["norms"], rel=1e-4)
    assert len(found["narrow"]) == 8 and not exact["narrow"]
    for name, expected in exact["gradients"].items():
        sums = found["gradients"][name]
        if name in found["narrow"]:
            assert 0 < (sums - expected).norm() <= 2e-5 * expected.norm(), name
        else:
            assert torch.equal(sums, expected), name


def test_where_narrow_states_lie_changes_no_bit() -> None:
    found, expected = (trained("tensorwise", 2, 10, NARROW | {"host": share}) for share in (0.6, 0.0))
    assert (found["losses"], found["norms"]) == (expected["losses"], expected["norms"])
    assert found["state"].keys() == expected["state"].keys()
    assert all(torch.equal(tensor, expected["state"][name]) for name, tensor in found["state"].items())
    assert expected["losses"][-1] < expected["losses"][0]


def test_narrow_states_follow_the_exact_ones() -> None:
    exact = trained("bf16", 2, 12, {})
    for forms in ({"moments": "bfloat16"}, NARROW):
        found = trained("bf16", 2, 12, forms)
        assert found["losses"] == pytest.approx(exact["losses"], rel=2e-3), forms
        assert found["losses"][3:] != exact["losses"][3:]


@pytest.mark.parametrize("forms", [{"moments": "bfloat16", "host": 0.5}, NARROW])
def test_the_gpu_holds_what_was_predicted(forms: dict[str, Any]) -> None:
    found = trained("tensorwise", 8, 3, forms)
    assert found["peak"] == pytest.approx(found["predicted"], rel=0.03)
