"""An MLP whose activation writes the 8 bits that the matrix products around it read, where it runs in FP8.

Between the two products of an MLP lie its widest tensors. On their own, SwiGLU writes its product in bfloat16, and the
second linear layer reads it again to write it in 8 bits; backward the same happens to the gradient of gate and up,
which is twice as wide. Here one kernel each way writes 8 bits at once. For each token and feed-forward unit that leaves
out 9 of the 28 bytes that are moved between the products.

It needs what Transformer Engine's linear layers know: the second one's scale for its input, the first one's for the
gradient of its output. Delayed scaling has them before the numbers are there. Tensorwise scaling wants the largest
value first: the kernel then runs twice and reads its input twice, which is still less than writing and reading
bfloat16.

On Hopper a product with 8 bits takes its matrices along the rows only, so gradients of weights need both transposed.
Transformer Engine does that when it comes to it; the kernel here could, but Triton's assembler (ptxas 12.9) writes
wrong numbers when one kernel stores the same 8 bits as they stand and transposed (triton-lang/triton issue 11111).

Blockwise scaling, layers in bfloat16, frozen layers, passes without gradients and the very first pass, in which the
linear layers make their scales, take the ordinary way.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.mlp import MLP
from torch import Tensor
from torch.autograd.function import once_differentiable


class QuantisedMLP(MLP):  # type: ignore[misc]
    """Megatron's MLP with SwiGLU; parameters and sharding are the same."""

    def forward(self, hidden_states: Tensor, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        """Hidden states [S, 1, H] to the same shape, and no bias."""
        if not self.config.use_te_activation_func:
            output: tuple[Tensor, Tensor | None] = super().forward(hidden_states, *arguments, **options)
            return output
        gate_up, _ = self.linear_fc1(hidden_states)
        quantisers = _quantisers(self.linear_fc1, self.linear_fc2)
        if quantisers is None:
            return self.linear_fc2(self.activation_func(gate_up))
        return self.linear_fc2(_QuantisedSwiGLU.apply(gate_up, *quantisers))


def _quantisers(first: Any, second: Any) -> tuple[Any, Any] | None:
    """Of the second layer's input and of the gradient of the first layer's output, if both are of a known kind."""
    if not (torch.is_grad_enabled() and first.fp8 and first.weight.requires_grad and second.weight.requires_grad):
        return None
    from transformer_engine.pytorch.constants import FP8BwdTensorIdx, FP8FwdTensorIdx

    forward, backward = second.quantizers.get("scaling_fwd"), first.quantizers.get("scaling_bwd")
    if not forward or not backward:
        return None
    found = forward[FP8FwdTensorIdx.GEMM1_INPUT], backward[FP8BwdTensorIdx.GRAD_OUTPUT1]
    return found if all(map(_is_known, found)) else None


def _is_known(quantiser: Any) -> bool:
    from transformer_engine.pytorch.tensor.float8_tensor import Float8CurrentScalingQuantizer, Float8Quantizer

    if isinstance(quantiser, Float8CurrentScalingQuantizer):
        return not (quantiser.force_pow_2_scales or quantiser.amax_epsilon or quantiser.with_amax_reduction)
    return isinstance(quantiser, Float8Quantizer)


class _QuantisedSwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, of_product: Any, of_gradient: Any) -> Tensor:
        from megatron_apriel.model.activation_kernels import quantised_swiglu

        rows = gate_up.contiguous().view(-1, gate_up.shape[-1])
        ctx.save_for_backward(rows)
        ctx.of_gradient, ctx.leading, ctx.dtype = of_gradient, gate_up.shape[:-1], gate_up.dtype
        numbers = quantised_swiglu(rows, _dtype(of_product), _scale(of_product))
        return _tensor(*numbers, of_product, ctx.leading, ctx.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor, None, None]:
        from megatron_apriel.model.activation_kernels import quantised_swiglu_gradient

        (rows,) = ctx.saved_tensors
        grad = incoming[0].contiguous().view(-1, incoming[0].shape[-1])
        quantiser = ctx.of_gradient
        numbers = quantised_swiglu_gradient(grad, rows, _dtype(quantiser), _scale(quantiser))
        return _tensor(*numbers, quantiser, ctx.leading, ctx.dtype), None, None


def _dtype(quantiser: Any) -> torch.dtype:
    return torch.float8_e5m2 if quantiser.dtype.name == "kFloat8E5M2" else torch.float8_e4m3fn


def _scale(quantiser: Any) -> tuple[Tensor, Tensor] | None:
    """Delayed scaling's scale and largest value; None where the scale follows from the numbers."""
    return (quantiser.scale, quantiser.amax) if hasattr(quantiser, "scale") else None


def _tensor(numbers_RF: Tensor, inverse: Tensor, quantiser: Any, leading: torch.Size, dtype: torch.dtype) -> Tensor:
    """Transformer Engine's tensor [*leading, F], nominally of ``dtype``."""
    from transformer_engine.pytorch.tensor.float8_tensor import Float8Tensor

    shape = (*leading, numbers_RF.shape[-1])
    tensor: Tensor = Float8Tensor(
        shape=shape,
        dtype=dtype,
        data=numbers_RF.view(torch.uint8).view(shape),
        fp8_scale_inv=inverse,
        fp8_dtype=quantiser.dtype,
        quantizer=quantiser,
        device=numbers_RF.device,
    )
    return tensor
