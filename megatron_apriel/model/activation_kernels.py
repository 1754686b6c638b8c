"""SwiGLU on a GPU: Triton kernels that read and write each number once, and compute in float32 registers.

Two write bfloat16. Two more write 8 bits, twice: row by row as one matrix product takes them, and transposed as the
other does, which on Hopper is the only other way. Importing this file imports Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048
WARPS = 8

TILE_ROWS, TILE_COLUMNS, TILE_WARPS = 128, 64, 8
"""What a program of the kernel that writes 8 bits takes: a tile, so that both ways of writing are runs of sectors."""

Scale = tuple[Tensor, Tensor]
"""What numbers are multiplied by before they are rounded to 8 bits, float32 [1]; and where the largest of their
absolute values is put, float32 [1], which only grows."""

Quantised = tuple[Tensor, Tensor, Tensor]
"""Numbers in 8 bits [R, F] and transposed [F, R]; and what they are multiplied by to get them back, float32 [1]."""


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
    """:func:`swiglu` in 8 bits.

    Args:
        gate_up_RF: contiguous [R, 2F].
        dtype: ``float8_e4m3fn`` or ``float8_e5m2``.
        scale: None to find the largest value first, and scale it to the largest number of ``dtype``.
    """
    rows, size = gate_up_RF.shape[0], gate_up_RF.shape[1] // 2
    return _quantised(gate_up_RF, gate_up_RF, rows, size, size, dtype, scale, backward=False)


def quantised_swiglu_gradient(
    grad_RF: Tensor, gate_up_RF: Tensor, dtype: torch.dtype, scale: Scale | None
) -> Quantised:
    """:func:`swiglu_gradient` in 8 bits, [R, 2F] and [2F, R]; arguments as there and for :func:`quantised_swiglu`."""
    rows, size = grad_RF.shape
    return _quantised(grad_RF, gate_up_RF, rows, size, 2 * size, dtype, scale, backward=True)


def _quantised(
    grad_RF: Tensor, gate_up_RF: Tensor, rows: int, size: int, width: int, dtype: torch.dtype, scale: Scale | None,
    *, backward: bool,
) -> Quantised:  # fmt: skip
    device = gate_up_RF.device
    numbers = torch.empty(rows, width, dtype=dtype, device=device)
    transposed = torch.empty(width, rows, dtype=dtype, device=device)
    inverse = torch.empty(1, dtype=torch.float32, device=device)
    factor, largest = scale if scale is not None else (inverse, torch.zeros_like(inverse))
    grid = (triton.cdiv(rows, TILE_ROWS), triton.cdiv(size, TILE_COLUMNS))

    def launch(*, writes: bool) -> None:
        _quantised_swiglu_kernel[grid](
            grad_RF, gate_up_RF, numbers, transposed, factor, largest, inverse, rows, size, torch.finfo(dtype).max,
            TILE_ROWS, TILE_COLUMNS, backward, scale is None, writes, num_warps=TILE_WARPS,
        )  # fmt: skip

    if scale is None:
        launch(writes=False)
    launch(writes=True)
    return numbers, transposed, inverse


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
    transposed: tl.tensor,
    factor: tl.tensor,
    largest: tl.tensor,
    inverse: tl.tensor,
    rows: tl.tensor,
    size: tl.tensor,
    limit: tl.tensor,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BACKWARD: tl.constexpr,
    OWN_SCALE: tl.constexpr,
    WRITES: tl.constexpr,
) -> None:
    """One program per tile. With its own scale it runs twice: to find the largest value, and to write."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    inside = (row < rows) & (column < size)
    place = gate_up + row * 2 * size + column
    gate = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(place + size, mask=inside, other=0.0).to(tl.float32)
    opened = tl.sigmoid(gate)
    if BACKWARD:
        dy = tl.load(grad + row * size + column, mask=inside, other=0.0).to(tl.float32)
        first = dy * up * opened * (1.0 + gate * (1.0 - opened))
        second = dy * gate * opened
    else:
        first = gate * opened * up
        second = first
    if WRITES != OWN_SCALE:
        # Most programs find a larger value there already, and need not wait in the line for one address.
        most = tl.max(tl.max(tl.maximum(tl.abs(first), tl.abs(second)), axis=1), axis=0)
        if most > tl.load(largest):
            tl.atomic_max(largest, most)
    if WRITES:
        if OWN_SCALE:
            most = tl.load(largest)
            scale = tl.where((most > 0.0) & (most < float("inf")), limit / most, 1.0)
        else:
            scale = tl.load(factor)
        if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
            tl.store(inverse, 1.0 / scale)
        width = size
        if BACKWARD:
            width = 2 * size
            _store_both(second * scale, numbers, transposed, row, column + size, rows, width, inside)
        _store_both(first * scale, numbers, transposed, row, column, rows, width, inside)


@triton.jit  # type: ignore[untyped-decorator]
def _store_both(
    tile: tl.tensor,
    numbers: tl.tensor,
    transposed: tl.tensor,
    row: tl.tensor,
    column: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    inside: tl.tensor,
) -> None:
    """Round to 8 bits, which keeps what is not a number; write as it stands and transposed."""
    rounded = tile.to(numbers.dtype.element_ty)
    tl.store(numbers + row * width + column, rounded, mask=inside)
    place = transposed + tl.trans(column.to(tl.int64)) * rows + tl.trans(row)
    tl.store(place, tl.trans(rounded), mask=tl.trans(inside))
