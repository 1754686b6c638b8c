"""RMSNorm, alone and at the start of a residual branch."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_apriel.parallel.groups import current_device


class _FusedNorm(torch.autograd.Function):
    """The norm by kernels of this project; returns its input too, whose gradient is then added in the same kernel."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        from megatron_apriel.model.norm_kernels import normalise

        rows = hidden.contiguous().view(-1, hidden.shape[-1])
        normed, scale = normalise(rows, weight, eps)
        ctx.save_for_backward(rows, weight, scale)
        ctx.set_materialize_grads(False)
        return normed.view(hidden.shape), hidden.view_as(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        from megatron_apriel.model.norm_kernels import gradients

        rows, weight, scale = ctx.saved_tensors
        grad, past = incoming
        if grad is None:
            return past, None, None
        past_rows = None if past is None else past.contiguous().view(rows.shape)
        grad_rows = grad.contiguous().view(rows.shape)
        grad_hidden, grad_weight = gradients(grad_rows, past_rows, rows, weight, scale, ctx.needs_input_grad[1])
        return grad_hidden.view(grad.shape), grad_weight, None


class RMSNorm(torch.nn.Module):
    """Divide each token's numbers by their root mean square, then scale them (arXiv 1910.07467).

    Under sequence parallelism every tensor-parallel rank normalises other tokens, so each has a part of the weight's
    gradient. The mark ``sequence_parallel`` on the weight tells Megatron to add the parts up.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object) -> None:
        super().__init__()
        self.eps = eps
        self.fused = config.transformer_impl == "transformer_engine"
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=current_device()))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Any shape [..., hidden_size]."""
        return self._with_input(hidden)[0]

    def _with_input(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        if self.fused:
            outputs: tuple[Tensor, Tensor] = _FusedNorm.apply(hidden, self.weight, self.eps)
            return outputs
        return torch.nn.functional.rms_norm(hidden, self.weight.shape, self.weight, self.eps), hidden

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}, replicated"


class BranchNorm(RMSNorm):
    """The norm that a residual branch begins with: also returns its input, for the connection past the branch.

    Megatron's layer takes the pair. Where the two paths meet again in the backward pass, one kernel adds them up.
    """

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised and as it was, any shape [..., hidden_size]."""
        return self._with_input(hidden)
