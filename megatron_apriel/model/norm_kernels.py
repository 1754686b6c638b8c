"""RMSNorm on a GPU: two Triton kernels that read and write each number once, and compute in float32 registers.

Limited by memory. Transformer Engine's kernels for hidden sizes that it was not tuned for, of which 5120 is one, take
several times as long. The backward kernel also adds the gradient that comes past the norm, over the residual
connection, so that it needs no pass of its own. Importing this file imports Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

FORWARD_WARPS = 8
BACKWARD_WARPS = 8
PROGRAMS_PER_MULTIPROCESSOR = 1
"""Programs of the backward kernel: each adds up the weight's gradient over many rows before it is written."""
STAGES = 3
"""Rows of the backward kernel that are on their way at a time: one is worked on while the next is loaded."""


def normalise(hidden_RH: Tensor, weight_H: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Normalised rows in the type of ``hidden_RH``, and what each was multiplied by, float32 [R]."""
    rows, size = hidden_RH.shape
    normed_RH, scale_R = torch.empty_like(hidden_RH), hidden_RH.new_empty(rows, dtype=torch.float32)
    block = triton.next_power_of_2(size)
    _norm_forward_kernel[(rows,)](
        hidden_RH, weight_H, normed_RH, scale_R, size, eps, block, num_warps=_warps(block, FORWARD_WARPS)
    )
    return normed_RH, scale_R


def gradients(
    grad_RH: Tensor, past_RH: Tensor | None, hidden_RH: Tensor, weight_H: Tensor, scale_R: Tensor, trains_weight: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the rows and, where it trains, of the weight; ``past_RH`` is added to that of the rows."""
    rows, size = hidden_RH.shape
    device = hidden_RH.device
    programs = min(rows, PROGRAMS_PER_MULTIPROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count)
    grad_hidden_RH = torch.empty_like(hidden_RH)
    parts_PH = torch.empty(programs if trains_weight else 0, size, dtype=torch.float32, device=device)
    block = triton.next_power_of_2(size)
    _norm_backward_kernel[(programs,)](
        grad_RH,
        grad_RH if past_RH is None else past_RH,
        hidden_RH,
        weight_H,
        scale_R,
        grad_hidden_RH,
        parts_PH,
        rows,
        size,
        block,
        past_RH is not None,
        trains_weight,
        STAGES,
        num_warps=_warps(block, BACKWARD_WARPS),
    )
    return grad_hidden_RH, parts_PH.sum(0).to(weight_H.dtype) if trains_weight else None


def _warps(block: int, most: int) -> int:
    return min(max(block // 512, 1), most)


@triton.jit  # type: ignore[untyped-decorator]
def _norm_forward_kernel(
    hidden: tl.tensor,
    weight: tl.tensor,
    normed: tl.tensor,
    scales: tl.tensor,
    size: tl.tensor,
    eps: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """One program per row."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    x = tl.load(hidden + row * size + columns, mask=inside, other=0.0).to(tl.float32)
    factor = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / size + eps)
    tl.store(scales + row, scale)
    tl.store(normed + row * size + columns, x * scale * factor, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _norm_backward_kernel(
    grad: tl.tensor,
    past: tl.tensor,
    hidden: tl.tensor,
    weight: tl.tensor,
    scales: tl.tensor,
    grad_hidden: tl.tensor,
    parts: tl.tensor,
    rows: tl.tensor,
    size: tl.tensor,
    BLOCK: tl.constexpr,
    HAS_PAST: tl.constexpr,
    TRAINS_WEIGHT: tl.constexpr,
    STAGES: tl.constexpr,
) -> None:
    """One program for every n-th row; its part of the weight's gradient stays in registers."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    factor = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    part = tl.zeros([BLOCK], dtype=tl.float32)
    for row in tl.range(program, rows, programs, num_stages=STAGES):
        place = tl.cast(row, tl.int64) * size + columns
        dy = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32)
        x = tl.load(hidden + place, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(scales + row)
        direction = x * scale
        turned = dy * factor
        result = (turned - direction * (tl.sum(direction * turned, axis=0) / size)) * scale
        if HAS_PAST:
            result += tl.load(past + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(grad_hidden + place, result, mask=inside)
        if TRAINS_WEIGHT:
            part += dy * direction
    if TRAINS_WEIGHT:
        tl.store(parts + program * size + columns, part, mask=inside)
