"""SwiGLU on a GPU: Triton kernels that read and write each number once, and compute in float32 registers.

Two write bfloat16; one writes 8 bits, forward and backward. Importing this file imports Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048
WARPS = 8
LARGEST = tl.constexpr(3.4028234663852886e38)
"""Of float32; the scale of numbers that none of it brings to the largest number of 8 bits."""

Scale = tuple[Tensor, Tensor]
"""What numbers are multiplied by before they are rounded to 8 bits, float32 [1]; and where the largest of their
absolute values is put, float32 [1], which only grows."""

Quantised = tuple[Tensor, Tensor]
"""Numbers in 8 bits, and what they are multiplied by to get them back, float32 [1]."""


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


def quantised_swiglu(gate_up_RF: Tensor, dtype: torch.dtype, scale: Scale | None) -> Quantised:
    """:func:`swiglu` in 8 bits, [R, F].

    Args:
        gate_up_RF: contiguous [R, 2F].
        dtype: ``float8_e4m3fn`` or ``float8_e5m2``; what is too large becomes its largest number.
        scale: None to find the largest value first, and scale it to the largest number of ``dtype``.
    """
    rows, size = gate_up_RF.shape[0], gate_up_RF.shape[1] // 2
    numbers_RF = gate_up_RF.new_empty(rows, size, dtype=dtype)
    return numbers_RF, _quantise(gate_up_RF, gate_up_RF, numbers_RF, size, scale, backward=False)


def quantised_swiglu_gradient(
    grad_RF: Tensor, gate_up_RF: Tensor, dtype: torch.dtype, scale: Scale | None
) -> Quantised:
    """:func:`swiglu_gradient` in 8 bits, [R, 2F]; arguments as there and for :func:`quantised_swiglu`."""
    numbers_RF = torch.empty_like(gate_up_RF, dtype=dtype)
    return numbers_RF, _quantise(grad_RF, gate_up_RF, numbers_RF, grad_RF.shape[1], scale, backward=True)


def _quantise(
    grad_RF: Tensor, gate_up_RF: Tensor, numbers_RF: Tensor, size: int, scale: Scale | None, *, backward: bool
) -> Tensor:
    """Write ``numbers_RF``; returns what they are multiplied by to get them back."""
    inverse = torch.empty(1, dtype=torch.float32, device=gate_up_RF.device)
    factor, largest = scale if scale is not None else (inverse, torch.zeros_like(inverse))
    grid = (gate_up_RF.shape[0], triton.cdiv(size, BLOCK))
    for writes in (True,) if scale is not None else (False, True):
        _quantised_swiglu_kernel[grid](
            grad_RF,
            gate_up_RF,
            numbers_RF,
            factor,
            largest,
            inverse,
            size,
            torch.finfo(numbers_RF.dtype).max,
            BLOCK,
            backward,
            scale is None,
            writes,
            num_warps=WARPS,
        )
    return inverse


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


@triton.jit  # type: ignore[untyped-decorator]
def _quantised_swiglu_kernel(
    grad: tl.tensor,
    gate_up: tl.tensor,
    numbers: tl.tensor,
    factor: tl.tensor,
    largest: tl.tensor,
    inverse: tl.tensor,
    size: tl.tensor,
    limit: tl.tensor,
    BLOCK: tl.constexpr,
    BACKWARD: tl.constexpr,
    OWN_SCALE: tl.constexpr,
    WRITES: tl.constexpr,
) -> None:
    """One program per row and block of columns; with its own scale twice: to find the largest value, and to write."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < size
    place = row * 2 * size + columns
    gate = tl.load(gate_up + place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + place + size, mask=inside, other=0.0).to(tl.float32)
    opened = tl.sigmoid(gate)
    if BACKWARD:
        dy = tl.load(grad + row * size + columns, mask=inside, other=0.0).to(tl.float32)
        first = dy * up * opened * (1.0 + gate * (1.0 - opened))
        second = dy * gate * opened
    else:
        first = gate * opened * up
        second = first
    if WRITES != OWN_SCALE:
        # Most programs find a larger value there already, and need not wait in the line for one address.
        most = tl.max(tl.maximum(tl.abs(first), tl.abs(second)), axis=0)
        if most > tl.load(largest):
            tl.atomic_max(largest, most)
    if WRITES:
        if OWN_SCALE:
            most = tl.load(largest)
            # Of numbers that are all nearly 0 the quotient is infinite, and would make those that are 0 no numbers.
            scale = tl.where((most > 0.0) & (most < float("inf")), tl.minimum(limit / most, LARGEST), 1.0)
        else:
            scale = tl.load(factor)
        if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
            tl.store(inverse, 1.0 / scale)
        # Rounding keeps what is not a number, and makes what is too large the largest number.
        if BACKWARD:
            tl.store(numbers + place, (first * scale).to(numbers.dtype.element_ty), mask=inside)
            tl.store(numbers + place + size, (second * scale).to(numbers.dtype.element_ty), mask=inside)
        else:
            tl.store(numbers + row * size + columns, (first * scale).to(numbers.dtype.element_ty), mask=inside)
