"""The head and its loss in one, part by part, against torch's cross entropy of all logits in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_apriel.batch import IGNORED_LABEL
from megatron_apriel.model import cross_entropy_rows, linear_cross_entropy
from megatron_apriel.model.linear_cross_entropy import linear_cross_entropy as fused
from megatron_apriel.parallel import logit_parts

TOKENS, HIDDEN, ENTRIES = 75, 24, 90
IGNORED = [0, 7, 33, 74]


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 32, 32 and 11 tokens, computed 7 rows at a time."""
    monkeypatch.setattr(logit_parts, "LOGITS_PER_PART", 30 * ENTRIES)
    monkeypatch.setattr(cross_entropy_rows, "LOGITS_AT_A_TIME", 7 * ENTRIES)


def make(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states and weight, both leaves that want gradients, and labels of which some are ignored."""
    generator = torch.Generator().manual_seed(seed)
    # Logits of about 5: softmax is neither flat nor one-hot.
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(ENTRIES, HIDDEN, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(0, ENTRIES, (TOKENS,), generator=generator)
    labels[IGNORED] = IGNORED_LABEL
    return hidden, weight, labels


def reference(
    hidden: Tensor, weight: Tensor, labels: Tensor, upstream: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses and both gradients, in float64."""
    hidden, weight = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    losses = F.cross_entropy(hidden @ weight.T, labels, reduction="none", ignore_index=IGNORED_LABEL)
    losses.backward(torch.ones_like(losses) if upstream is None else upstream.double())
    assert hidden.grad is not None and weight.grad is not None
    return losses.detach(), hidden.grad, weight.grad


def assert_close(found: Tensor | None, expected: Tensor, tolerance: float = 1e-6) -> None:
    assert found is not None
    assert found.shape == expected.shape
    assert (found.double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 1e-2)]
)
def test_losses_and_gradients_equal_cross_entropy_of_all_logits(dtype: torch.dtype, tolerance: float) -> None:
    hidden, weight, labels = make(dtype=dtype)
    losses, grad_hidden, grad_weight = reference(hidden, weight, labels)
    found = fused(hidden, weight, labels)
    found.sum().backward()
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    assert not found[IGNORED].any()
    assert_close(found, losses, tolerance)
    assert_close(hidden.grad, grad_hidden, tolerance)
    assert_close(weight.grad, grad_weight, tolerance)
    assert weight.grad is not None and weight.grad.dtype == dtype


@pytest.mark.parametrize("tokens", [1, 16, 31, 33, 64])
def test_any_number_of_tokens_can_be_cut_into_parts(tokens: int) -> None:
    hidden, weight, labels = make()
    hidden = hidden.detach()[:tokens].requires_grad_()
    losses, grad_hidden, grad_weight = reference(hidden, weight, labels[:tokens])
    found = fused(hidden, weight, labels[:tokens])
    found.sum().backward()
    assert_close(found, losses)
    assert_close(hidden.grad, grad_hidden)
    assert_close(weight.grad, grad_weight)


def test_parts_are_few_of_one_size_and_whole_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logit_parts, "LOGITS_PER_PART", 2**29)
    lengths = {tokens: logit_parts.tokens_per_part(tokens, 131072) for tokens in (100, 4096, 5000, 32768)}
    assert lengths == {100: 112, 4096: 4096, 5000: 2512, 32768: 4096}
    assert logit_parts.tokens_per_part(32768, 131072 // 8) == 32768


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, labels = make()
    hidden = (hidden.detach() * 300).requires_grad_()
    losses, grad_hidden, _ = reference(hidden, weight, labels)
    found = fused(hidden, weight, labels)
    found.sum().backward()
    assert_close(found, losses)
    assert_close(hidden.grad, grad_hidden, 1e-4)


def test_only_ignored_labels_give_zeros() -> None:
    hidden, weight, labels = make()
    found = fused(hidden, weight, torch.full_like(labels, IGNORED_LABEL))
    found.sum().backward()
    for tensor in (found, hidden.grad, weight.grad):
        assert tensor is not None and not tensor.any()


def test_hidden_gradient_is_exact_for_any_gradient_of_the_losses() -> None:
    hidden, weight, labels = make()
    weight.requires_grad_(False)
    upstream = torch.rand(TOKENS, generator=torch.Generator().manual_seed(1))
    _, grad_hidden, _ = reference(hidden, weight, labels, upstream)
    fused(hidden, weight, labels).backward(upstream)
    assert_close(hidden.grad, grad_hidden)
    assert weight.grad is None


@pytest.mark.parametrize("flag", [True, False])
def test_weight_gradient_is_added_to_the_main_gradient(flag: bool) -> None:
    """Two micro-batches; with the mark that Megatron's data parallelism sets, and without."""
    _, weight, _ = make(dtype=torch.bfloat16)
    weight.main_grad = torch.ones(ENTRIES, HIDDEN)  # type: ignore[attr-defined]
    if flag:
        weight.grad_added_to_main_grad = False  # type: ignore[attr-defined]
    expected = torch.ones(ENTRIES, HIDDEN, dtype=torch.float64)
    for seed in (1, 2):
        hidden, _, labels = make(seed, torch.bfloat16)
        expected += reference(hidden, weight, labels)[2]
        weight.grad = None
        fused(hidden, weight, labels).sum().backward()
        # A placeholder that the data parallelism's hook asks for, and drops.
        assert (weight.grad is not None) == flag
    assert_close(weight.main_grad, expected, 1e-2)  # type: ignore[attr-defined]
    assert getattr(weight, "grad_added_to_main_grad", False) == flag


def test_frozen_weight_costs_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Tensor) -> None:
        raise AssertionError("a weight gradient was computed")

    monkeypatch.setattr(linear_cross_entropy, "_add_product", refuse)
    hidden, weight, labels = make()
    _, grad_hidden, _ = reference(hidden, weight, labels)
    weight.requires_grad_(False)
    fused(hidden, weight, labels).sum().backward()
    assert_close(hidden.grad, grad_hidden)
    assert weight.grad is None


def test_weight_alone_can_train() -> None:
    hidden, weight, labels = make()
    _, _, grad_weight = reference(hidden, weight, labels)
    fused(hidden.detach(), weight, labels).sum().backward()
    assert_close(weight.grad, grad_weight)


def test_without_gradients_only_losses_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a gradient was computed")

    monkeypatch.setattr(linear_cross_entropy, "turn_into_gradient", refuse)
    hidden, weight, labels = make()
    weight.main_grad = torch.zeros(ENTRIES, HIDDEN)  # type: ignore[attr-defined]
    losses, _, _ = reference(hidden, weight, labels)
    with torch.no_grad():
        found = fused(hidden, weight, labels)
    assert not found.requires_grad
    assert_close(found, losses)
    assert_close(fused(hidden.detach(), weight.detach(), labels), losses)
    assert not weight.main_grad.any()  # type: ignore[attr-defined]


def test_losses_that_are_not_summed_are_refused() -> None:
    hidden, weight, labels = make()
    with pytest.raises(RuntimeError, match="losses that are summed"):
        fused(hidden, weight, labels).mean().backward()
    # Where there is no loss the gradient does not matter.
    upstream = torch.ones(TOKENS)
    upstream[IGNORED] = 0.5
    fused(hidden, weight, labels).backward(upstream)


def test_a_gradient_that_is_not_finite_spoils_the_step_instead_of_ending_the_run() -> None:
    hidden, weight, labels = make()
    (fused(hidden, weight, labels).sum() * float("nan")).backward()
    assert hidden.grad is not None and hidden.grad.isnan().any()
