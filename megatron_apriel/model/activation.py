"""The gated activation of a GPU's layers. Elsewhere Megatron's own is used, written out."""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.autograd.function import once_differentiable


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        from megatron_apriel.model.activation_kernels import swiglu

        rows = gate_up.contiguous().view(-1, gate_up.shape[-1])
        ctx.save_for_backward(rows)
        return swiglu(rows).view(*gate_up.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> Tensor:
        from megatron_apriel.model.activation_kernels import swiglu_gradient

        (rows,) = ctx.saved_tensors
        grad = incoming[0].contiguous().view(-1, incoming[0].shape[-1])
        return swiglu_gradient(grad, rows).view(*incoming[0].shape[:-1], -1)


class SwiGLU(torch.nn.Module):
    """silu(gate) * up, from [..., 2F] to [..., F], in one kernel each way; built as Megatron builds an activation."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()

    def forward(self, gate_up: Tensor) -> Tensor:
        """``gate_up`` has all gates first, then what they open."""
        product: Tensor = _SwiGLU.apply(gate_up)
        return product
