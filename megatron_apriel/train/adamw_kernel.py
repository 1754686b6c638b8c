"""The update of ``adamw.py`` on a GPU: one Triton kernel, which reads and writes each number once.

Limited by memory: 28 bytes a parameter. Every operation rounds exactly and none is joined with the next, so that a
number's update is the same wherever it stands in a tensor and however the tensor is cut, here and on a CPU. That costs
nothing: the memory is waited for. Importing this file imports Triton.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from megatron_apriel.train.adamw_coefficients import Coefficients

BLOCK = 4096
WARPS = 8


def update(
    parameter: Tensor, gradient: Tensor, factor: Tensor, mean: Tensor, square: Tensor, how: Coefficients
) -> None:
    """Update a parameter and its moments in place; these and the gradient are contiguous and of one size."""
    if not all(tensor.is_contiguous() for tensor in (parameter, gradient, mean, square)):
        raise ValueError("parameters, gradients and moments must be contiguous")
    count = parameter.numel()
    _adamw_kernel[(triton.cdiv(count, BLOCK),)](
        parameter,
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
        BLOCK,
        num_warps=WARPS,
        enable_fp_fusion=False,
    )


@triton.jit  # type: ignore[untyped-decorator]
def _adamw_kernel(
    parameters: tl.tensor,
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
    BLOCK: tl.constexpr,
) -> None:
    """One program per block of numbers."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    factor = tl.load(factors)
    # Without a factor nothing is read and nothing is written.
    inside = (place < count) & (factor == factor)
    gradient = tl.load(gradients + place, mask=inside, other=0.0).to(tl.float32) * factor
    mean = tl.load(means + place, mask=inside, other=0.0)
    square = tl.load(squares + place, mask=inside, other=0.0)
    parameter = tl.load(parameters + place, mask=inside, other=0.0).to(tl.float32)
    mean += mean_rate * (gradient - mean)
    square += square_rate * (gradient * gradient - square)
    parameter = keep * parameter - tl.div_rn(rate * mean, tl.sqrt_rn(square * square_scale) + eps)
    tl.store(means + place, mean, mask=inside)
    tl.store(squares + place, square, mask=inside)
    tl.store(parameters + place, parameter, mask=inside)
