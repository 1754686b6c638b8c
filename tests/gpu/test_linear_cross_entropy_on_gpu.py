"""The fused head and loss on a GPU: exact against float64, lean, and without a wait of the host for the device."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_apriel.batch import IGNORED_LABEL
from megatron_apriel.model import cross_entropy_rows, linear_cross_entropy
from megatron_apriel.model.linear_cross_entropy import linear_cross_entropy as fused
from megatron_apriel.parallel import logit_parts
from megatron_apriel.testing.marks import needs_gpu, needs_transformer_engine

pytestmark = [pytest.mark.gpu, needs_gpu]

ENTRIES, HIDDEN, TOKENS = 131072, 1024, 2048


def make(tokens: int = TOKENS, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, a weight with a main gradient that is not zero, and labels of which every ninth is ignored."""
    generator = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(tokens, HIDDEN, device="cuda", generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(ENTRIES, HIDDEN, device="cuda", generator=generator) * 0.08).to(dtype).requires_grad_()
    weight.main_grad = torch.full((ENTRIES, HIDDEN), 0.01, device="cuda")  # type: ignore[attr-defined]
    labels = torch.randint(0, ENTRIES, (tokens,), device="cuda", generator=generator)
    labels[::9] = IGNORED_LABEL
    return hidden, weight, labels


def gradients_of(
    hidden: Tensor, weight: Tensor, labels: Tensor, dtype: torch.dtype, loss_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses and both gradients through all logits: products in one type, the loss in another."""
    hidden = hidden.detach().to(dtype).requires_grad_()
    weight = weight.detach().to(dtype).requires_grad_()
    logits = (hidden @ weight.T).to(loss_dtype)
    losses = F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORED_LABEL)
    losses.sum().backward()
    assert hidden.grad is not None and weight.grad is not None
    return losses.detach(), hidden.grad, weight.grad


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def test_is_as_close_to_float64_as_all_logits_with_a_float32_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logit_parts, "LOGITS_PER_PART", 900 * ENTRIES)
    hidden, weight, labels = make()
    exact = gradients_of(hidden, weight, labels, torch.float64, torch.float64)
    unfused = gradients_of(hidden, weight, labels, torch.bfloat16, torch.float32)
    losses = fused(hidden, weight, labels)
    losses.sum().backward()
    assert weight.grad is None and hidden.grad is not None
    assert losses.dtype == torch.float32
    assert torch.equal(losses == 0, labels == IGNORED_LABEL)
    added = weight.main_grad.double() - 0.01  # type: ignore[attr-defined]
    for name, found, expected, rounded in zip(
        ("losses", "hidden", "weight"), (losses.detach(), hidden.grad, added), exact, unfused, strict=True
    ):
        assert distance(found, expected) < 1.05 * distance(rounded, expected) + 1e-5, name
        assert distance(found, expected) < 0.01, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("entries", "first_entry"), [(131072, 0), (16384, 16384), (1000, 500), (100, 0)])
def test_kernels_equal_what_torch_computes(dtype: torch.dtype, entries: int, first_entry: int) -> None:
    generator = torch.Generator("cuda").manual_seed(1)
    logits = (torch.randn(200, entries, device="cuda", generator=generator) * 4).to(dtype)
    labels = torch.randint(0, 2 * entries, (200,), device="cuda", generator=generator)
    labels[::9] = IGNORED_LABEL
    expected = cross_entropy_rows.row_statistics_by_torch(logits, labels, first_entry)
    found = cross_entropy_rows.row_statistics(logits, labels, first_entry)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    gradient = logits.clone()
    cross_entropy_rows.turn_into_gradient(logits, labels, first_entry, expected)
    cross_entropy_rows.turn_into_gradient_by_torch(gradient, labels, first_entry, expected)
    # A number between two of bfloat16 may be rounded to either.
    torch.testing.assert_close(logits, gradient, rtol=2**-7 if dtype == torch.bfloat16 else 1e-5, atol=1e-7)


def test_kernels_reach_rows_beyond_two_billion_logits() -> None:
    rows = 2**31 // ENTRIES + 8
    logits = torch.zeros(rows, ENTRIES, dtype=torch.bfloat16, device="cuda")
    labels = torch.full((rows,), ENTRIES - 1, device="cuda")
    logits[-1, -1] = 20.0
    statistics = cross_entropy_rows.row_statistics(logits, labels, 0)
    assert statistics.maximum_T[-1] == 20 and statistics.target_T[-1] == 20
    assert statistics.maximum_T[0] == 0 and statistics.total_T[-2] == ENTRIES
    cross_entropy_rows.turn_into_gradient(logits, labels, 0, statistics)
    assert abs(float(logits[-2, -1]) + 1) < 0.01 and abs(float(logits[-2].float().sum())) < 0.02
    assert abs(float(logits[0, -1]) + 1) < 0.01


@pytest.mark.parametrize(
    "add",
    [
        linear_cross_entropy._add_by_torch,
        pytest.param(linear_cross_entropy._add_by_transformer_engine, marks=needs_transformer_engine),
    ],
    ids=["torch", "Transformer Engine"],
)
def test_products_are_added_up_in_float32(add: Callable[[Tensor, Tensor, Tensor], None]) -> None:
    generator = torch.Generator("cuda").manual_seed(2)
    left, right = (
        torch.randn(496, size, device="cuda", generator=generator).to(torch.bfloat16) for size in (1024, 512)
    )
    total = torch.full((1024, 512), 1000.0, device="cuda")
    add(total, left, right)  # the first call takes a workspace and keeps it
    memory = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    add(total, left, right)
    assert torch.cuda.max_memory_allocated() - memory < total.nbytes / 2
    expected = 1000 + 2 * left.double().T @ right.double()
    # Rounded to bfloat16 on the way it would be off by up to 4.
    assert (total - expected).abs().max() < 0.01


def test_holds_less_than_half_of_all_logits_in_float32() -> None:
    tokens = 8192
    hidden, weight, labels = make(tokens)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    fused(hidden, weight, labels).sum().backward()
    assert torch.cuda.max_memory_allocated() - before < tokens * ENTRIES * 4 / 2


def test_the_host_never_waits_for_the_device() -> None:
    hidden, weight, labels = make()
    fused(hidden, weight, labels).sum().backward()  # compiles the kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        fused(hidden, weight, labels).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
