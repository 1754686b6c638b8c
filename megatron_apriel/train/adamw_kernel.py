"""The update of ``adamw_update.py`` on a GPU: one Triton kernel, which reads and writes each number once.

Limited by memory: 28 bytes a parameter. Every operation rounds exactly and none is joined with the next, so that a
number's update is the same wherever it stands in a tensor and however the tensor is cut, here and on a CPU. That costs
nothing: the memory is waited for. Importing this file imports Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from megatron_apriel.train.adamw_coefficients import Coefficients
from megatron_apriel.train.split_master import HALF, NAN_BITS

BLOCK = 4096
WARPS = 8


def update(
    parameter: Tensor,
    remainder: Tensor | None,
    gradient: Tensor,
    factor: Tensor,
    mean: Tensor,
    square: Tensor,
    how: Coefficients,
) -> None:
    """See ``adamw_update.update``. All but ``factor`` are contiguous and of one size."""
    is_split = remainder is not None
    given = [parameter, gradient, mean, square, *([remainder] if remainder is not None else [])]
    if not all(tensor.is_contiguous() and tensor.numel() == parameter.numel() for tensor in given):
        raise ValueError("parameters, remainders, gradients and moments must be contiguous and of one size")
    if parameter.dtype != (torch.bfloat16 if is_split else torch.float32):
        raise ValueError(f"parameters in {parameter.dtype} {'with a' if is_split else 'without'} remainder")
    count = parameter.numel()
    _adamw_kernel[(triton.cdiv(count, BLOCK),)](
        parameter.view(torch.int16) if is_split else parameter,
        remainder if is_split else parameter,
        gradient,
        mean,
        square,
        count,
        factor,
        how.mean_rate,
        how.square_rate,
        how.keep,
        how.rate,
        how.square_scale,
        how.eps,
        is_split,
        HALF,
        NAN_BITS,
        BLOCK,
        num_warps=WARPS,
        enable_fp_fusion=False,
    )


@triton.jit  # type: ignore[untyped-decorator]
def _adamw_kernel(
    parameters: tl.tensor,
    remainders: tl.tensor,
    gradients: tl.tensor,
    means: tl.tensor,
    squares: tl.tensor,
    count: tl.tensor,
    factors: tl.tensor,
    mean_rate: tl.tensor,
    square_rate: tl.tensor,
    keep: tl.tensor,
    rate: tl.tensor,
    square_scale: tl.tensor,
    eps: tl.tensor,
    IS_SPLIT: tl.constexpr,
    HALF_BIT: tl.constexpr,
    NAN: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program per block of numbers. Masters are split and joined by the rule of ``split_master.py``."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    factor = tl.load(factors)
    # Without a factor nothing is read and nothing is written.
    inside = (place < count) & (factor == factor)
    gradient = tl.load(gradients + place, mask=inside, other=0.0) * factor
    mean = tl.load(means + place, mask=inside, other=0.0)
    square = tl.load(squares + place, mask=inside, other=0.0)
    if IS_SPLIT:
        weight = tl.load(parameters + place, mask=inside, other=0).to(tl.int32)
        remainder = tl.load(remainders + place, mask=inside, other=0).to(tl.int32)
        parameter = ((weight << 16) + remainder).to(tl.float32, bitcast=True)
    else:
        parameter = tl.load(parameters + place, mask=inside, other=0.0)
    mean += mean_rate * (gradient - mean)
    square += square_rate * (gradient * gradient - square)
    parameter = keep * parameter - tl.div_rn(rate * mean, tl.sqrt_rn(square * square_scale) + eps)
    tl.store(means + place, mean, mask=inside)
    tl.store(squares + place, square, mask=inside)
    if IS_SPLIT:
        bits = tl.where(parameter == parameter, parameter.to(tl.int32, bitcast=True), NAN)
        tl.store(parameters + place, ((bits + HALF_BIT) >> 16).to(tl.int16), mask=inside)
        tl.store(remainders + place, bits.to(tl.int16), mask=inside)
    else:
        tl.store(parameters + place, parameter, mask=inside)
