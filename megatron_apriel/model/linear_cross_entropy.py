"""The head's matrix product and the cross entropy as one function that never holds the logits of all tokens.

With 131072 entries in the vocabulary, the logits of a sequence are its largest tensor by far: 32768 tokens have 8 GiB
of them in bfloat16, and a loss that computes in float32 makes 16 GiB more and keeps them for the backward pass. None
of it is needed. The gradient of a token's loss with respect to its logits is ``softmax(logits) - onehot(label)``: it
is known as soon as the logits are. So tokens are taken a part at a time, and for each part, in the forward pass,

    logits   = hidden @ weight.T              [T, V]   1st matrix product
    loss     = log sum exp(logits) - logits[label]
    logits  <- softmax(logits) - onehot       [T, V]   in place, rows of ignored labels 0
    d_hidden = logits @ weight                [T, H]   2nd
    d_weight += logits.T @ hidden             [V, H]   3rd, added up in float32 where the gradient lives

after which the part's logits are overwritten by the next part's. The products are the three that a head always has;
nothing is computed twice. What stays for the backward pass is ``d_hidden``, no larger than the hidden states that an
ordinary linear layer would have kept. Liger Kernel (arXiv 2410.10989, section 3.2) works by the same idea.

Tensor parallelism: each rank has a run of the vocabulary. What a token's softmax needs from the other ranks is three
numbers, its largest logit, its sum of exponentials and the logit of its label, so those are combined over the group.

The price is a condition. The weight's gradient is complete before the backward pass begins, hence before anybody knows
by what the losses are multiplied, so it is right only for a gradient of one per scored token: losses must be
**summed**. Training does that, and divides the gradients by the number of tokens at the end. The backward pass checks
it on the device, without waiting. The hidden states' gradient is exact for any gradient of the losses.

``main_grad``, the float32 buffer that Megatron's data parallelism gives a weight, is added to in place; it must be
zeroed before a step's first forward pass, as it is. A forward pass with gradients enabled and without a backward pass
would leave its part there: evaluate under ``torch.no_grad``.

Shape letters: S tokens, T tokens of a part, H hidden, V this rank's entries of the vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_apriel.batch import IGNORED_LABEL
from megatron_apriel.model.cross_entropy_rows import RowStatistics, row_statistics, turn_into_gradient
from megatron_apriel.model.main_grad import placeholder_gradient
from megatron_apriel.parallel.logit_parts import tokens_per_part

_NOT_SUMMED = (
    "the gradient of a token's loss is not 1: the head's weight gradient was computed for losses that are summed."
    " Sum them, and scale the gradients afterwards"
)


def linear_cross_entropy(
    hidden_SH: Tensor, weight_VH: Tensor, labels_S: Tensor, group: dist.ProcessGroup | None = None
) -> Tensor:
    """Cross entropy of ``hidden @ weight.T`` per token, [S] in float32 or wider; 0 where the label is ignored.

    Args:
        hidden_SH: all tokens, the same on every rank of ``group``.
        weight_VH: this rank's run of the vocabulary; all ranks have runs of one length, in rank order.
        labels_S: int64 entries of the whole vocabulary, or ``IGNORED_LABEL``.
        group: tensor-parallel ranks that share the vocabulary; None for one rank.

    The gradient of ``hidden_SH`` is this rank's part: summing over ``group`` is left to whoever distributed it. A
    weight with ``main_grad`` has its gradient added there, and gets none otherwise; see the module's text.
    """
    if torch.is_grad_enabled() and (hidden_SH.requires_grad or weight_VH.requires_grad):
        losses_S: Tensor = _LinearCrossEntropy.apply(hidden_SH, weight_VH, labels_S, group)
        return losses_S
    with torch.no_grad():
        return _run_parts(hidden_SH, weight_VH, labels_S, group, None, None)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_SH: Tensor, weight_VH: Tensor, labels_S: Tensor, group: dist.ProcessGroup | None
    ) -> Tensor:
        trains_hidden, ctx.trains_weight = ctx.needs_input_grad[:2]
        grad_hidden_SH = torch.empty_like(hidden_SH) if trains_hidden else None
        main_grad: Tensor | None = getattr(weight_VH, "main_grad", None) if ctx.trains_weight else None
        sum_VH = main_grad
        if ctx.trains_weight and main_grad is None:
            sum_VH = torch.zeros_like(weight_VH, dtype=_wide(weight_VH.dtype))
        losses_S = _run_parts(hidden_SH, weight_VH, labels_S, group, grad_hidden_SH, sum_VH)
        # Only what is not in main_grad goes through autograd.
        grad_weight_VH = sum_VH.to(weight_VH.dtype) if sum_VH is not None and main_grad is None else None
        ctx.weight_VH = weight_VH if main_grad is not None else None
        ctx.save_for_backward(grad_hidden_SH, grad_weight_VH, labels_S != IGNORED_LABEL)
        return losses_S

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad_losses_S,) = gradients
        grad_hidden_SH, grad_weight_VH, scored_S = ctx.saved_tensors
        if ctx.trains_weight:
            # What is not finite makes the gradients' norm so too, and the step is skipped for that.
            right_S = (grad_losses_S == 1) | ~scored_S | ~grad_losses_S.isfinite()
            torch._assert_async(right_S.all(), _NOT_SUMMED)
        if grad_hidden_SH is not None:
            # Into a tensor of its own type: float32 times bfloat16 would otherwise be a float32 [S, H].
            scaled_SH = torch.empty_like(grad_hidden_SH)
            grad_hidden_SH = torch.mul(grad_hidden_SH, grad_losses_S[:, None], out=scaled_SH)
        if ctx.weight_VH is not None:
            grad_weight_VH = placeholder_gradient(ctx.weight_VH)
        return grad_hidden_SH, grad_weight_VH, None, None


def _run_parts(
    hidden_SH: Tensor,
    weight_VH: Tensor,
    labels_S: Tensor,
    group: dist.ProcessGroup | None,
    grad_hidden_SH: Tensor | None,
    grad_weight_VH: Tensor | None,
) -> Tensor:
    """Losses [S]. The gradients that are given are computed too: one written, the other added to."""
    tokens, entries = hidden_SH.shape[0], weight_VH.shape[0]
    first_entry = group.rank() * entries if group is not None else 0
    length = tokens_per_part(tokens, entries)
    losses_S = hidden_SH.new_empty(tokens, dtype=_wide(hidden_SH.dtype))
    # One buffer for all parts: a fresh tensor per part would be made while the last one is still held.
    buffer_TV = hidden_SH.new_empty(min(length, tokens), entries)
    for start in range(0, tokens, length):
        part = slice(start, min(start + length, tokens))
        hidden_TH, labels_T = hidden_SH[part], labels_S[part]
        logits_TV = torch.mm(hidden_TH, weight_VH.t(), out=buffer_TV[: len(labels_T)])
        statistics = _combine(row_statistics(logits_TV, labels_T, first_entry), group)
        losses_S[part] = statistics.losses().masked_fill_(labels_T == IGNORED_LABEL, 0.0)
        if grad_hidden_SH is None and grad_weight_VH is None:
            continue
        turn_into_gradient(logits_TV, labels_T, first_entry, statistics)
        if grad_hidden_SH is not None:
            torch.mm(logits_TV, weight_VH, out=grad_hidden_SH[part])
        if grad_weight_VH is not None:
            _add_product(grad_weight_VH, logits_TV, hidden_TH)
    return losses_S


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What sums of numbers of ``dtype`` are kept in."""
    return torch.promote_types(dtype, torch.float32)


def _combine(own: RowStatistics, group: dist.ProcessGroup | None) -> RowStatistics:
    """Statistics over the whole vocabulary from those of every rank's run of it."""
    if group is None or group.size() == 1:
        return own
    maximum_T = own.maximum_T.clone()
    dist.all_reduce(maximum_T, dist.ReduceOp.MAX, group=group)
    sums_2T = torch.stack([own.total_T * torch.exp(own.maximum_T - maximum_T), own.target_T])
    dist.all_reduce(sums_2T, group=group)
    return RowStatistics(maximum_T, sums_2T[0], sums_2T[1])


def _add_product(sum_VH: Tensor, left_TV: Tensor, right_TH: Tensor) -> None:
    """``sum += left.T @ right``, in the sum's own precision and without a second tensor of its size."""
    if sum_VH.dtype == left_TV.dtype:
        sum_VH.addmm_(left_TV.t(), right_TH)
    elif left_TV.is_cuda:
        _widening_product()(sum_VH, left_TV, right_TH)
    else:
        # A CPU has no product of narrow numbers that is added to wide ones.
        sum_VH.add_(left_TV.t() @ right_TH)


@functools.cache
def _widening_product() -> Callable[[Tensor, Tensor, Tensor], None]:
    """What adds a product of bfloat16 matrices to a float32 one: Transformer Engine where it is installed, or torch."""
    return _add_by_torch if find_spec("transformer_engine") is None else _add_by_transformer_engine


def _add_by_torch(sum_VH: Tensor, left_TV: Tensor, right_TH: Tensor) -> None:
    torch.ops.aten.addmm.dtype_out(sum_VH, left_TV.t(), right_TH, sum_VH.dtype, out=sum_VH)


def _add_by_transformer_engine(sum_VH: Tensor, left_TV: Tensor, right_TH: Tensor) -> None:
    from transformer_engine.pytorch.cpp_extensions import general_gemm

    # Its matrices are column-major: "NT" of (right, left) is left.T @ right here.
    general_gemm(right_TH, left_TV, out_dtype=sum_VH.dtype, layout="NT", out=sum_VH, accumulate=True, grad=True)
