"""SwiGLU on a GPU: two Triton kernels that read and write each number once, and compute in float32 registers.

Importing this file imports Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048
WARPS = 8


def swiglu(gate_up_RF: Tensor) -> Tensor:
    """silu(gate) * up [R, F] of rows that hold gate and up one after the other [R, 2F]."""
    rows, size = gate_up_RF.shape[0], gate_up_RF.shape[1] // 2
    product_RF = gate_up_RF.new_empty(rows, size)
    _swiglu_forward_kernel[(rows, triton.cdiv(size, BLOCK))](gate_up_RF, product_RF, size, BLOCK, num_warps=WARPS)
    return product_RF


def swiglu_gradient(grad_RF: Tensor, gate_up_RF: Tensor) -> Tensor:
    """Gradient of gate and up [R, 2F] from that of the product [R, F]."""
    rows, size = grad_RF.shape
    gradient_RF = torch.empty_like(gate_up_RF)
    grid = (rows, triton.cdiv(size, BLOCK))
    _swiglu_backward_kernel[grid](grad_RF, gate_up_RF, gradient_RF, size, BLOCK, num_warps=WARPS)
    return gradient_RF


@triton.jit  # type: ignore[untyped-decorator]
def _swiglu_forward_kernel(gate_up: tl.tensor, product: tl.tensor, size: tl.tensor, BLOCK: tl.constexpr) -> None:
    """One program per row and block of columns."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < size
    place = gate_up + row * 2 * size + columns
    gate = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(place + size, mask=inside, other=0.0).to(tl.float32)
    tl.store(product + row * size + columns, gate * tl.sigmoid(gate) * up, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _swiglu_backward_kernel(
    grad: tl.tensor, gate_up: tl.tensor, gradient: tl.tensor, size: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """One program per row and block of columns."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < size
    place = row * 2 * size + columns
    dy = tl.load(grad + row * size + columns, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_up + place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + place + size, mask=inside, other=0.0).to(tl.float32)
    opened = tl.sigmoid(gate)
    tl.store(gradient + place, dy * up * opened * (1.0 + gate * (1.0 - opened)), mask=inside)
    tl.store(gradient + place + size, dy * gate * opened, mask=inside)
