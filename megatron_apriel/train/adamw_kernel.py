"""The update of ``adamw_update.py`` on a GPU: one Triton kernel, which reads and writes each number once.

Limited by memory: 28 bytes a parameter with float32 moments. Every operation rounds exactly and none is joined with the
next, so that a number's update is the same wherever it stands in a tensor and however the tensor is cut, here and on a
CPU. That costs nothing: the memory is waited for. Importing this file imports Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from megatron_apriel.planning.state_forms import GROUP
from megatron_apriel.train.adamw_coefficients import Coefficients
from megatron_apriel.train.companded_moments import (
    MEAN_STEPS,
    ROOT_STEPS,
    SCALE_HALF,
    SCALE_MASK,
    SCALE_SHIFT,
    SMALLEST_MEAN,
    SMALLEST_ROOT,
)
from megatron_apriel.train.numbers_in_24_bits import Sums
from megatron_apriel.train.split_master import CUT, HALF, MIX, NAN_BITS
from megatron_apriel.train.state_tensors import StateTensors

BLOCK = 4096
WARPS = 8


def update(parameter: Tensor, states: StateTensors, gradient: Tensor | Sums, factor: Tensor, how: Coefficients) -> None:
    """See ``adamw_update.update``. All but ``factor`` are contiguous; all but scales and it are of one size."""
    mean, square, mean_scales, square_scales, remainder = states
    low_bits = 0 if remainder is None else 8 * remainder.dtype.itemsize
    high, low = gradient if isinstance(gradient, Sums) else (gradient, None)
    given = [tensor for tensor in (parameter, high, low, mean, square, remainder) if tensor is not None]
    if not all(tensor.is_contiguous() and tensor.numel() == parameter.numel() for tensor in given):
        raise ValueError("parameters, remainders, gradients and moments must be contiguous and of one size")
    if parameter.dtype != (torch.bfloat16 if low_bits else torch.float32):
        raise ValueError(f"parameters in {parameter.dtype} {'with a' if low_bits else 'without'} remainder")
    count = parameter.numel()
    _adamw_kernel[(triton.cdiv(count, BLOCK),)](
        parameter.view(torch.int16) if low_bits else parameter,
        remainder if low_bits else parameter,
        high.view(torch.int16) if low is not None else high,
        low if low is not None else high,
        mean,
        square,
        mean_scales if mean_scales is not None else parameter,
        square_scales if square_scales is not None else parameter,
        count,
        factor,
        how.mean_rate,
        how.square_rate,
        how.keep,
        how.rate,
        how.square_scale,
        how.eps,
        how.step,
        low_bits,
        mean_scales is not None,
        low is not None,
        BLOCK,
        num_warps=WARPS,
        enable_fp_fusion=False,
    )


# Triton's own numbers: a kernel knows no others of a module.
_NAN, _HALF, _CUT = tl.constexpr(NAN_BITS), tl.constexpr(HALF), tl.constexpr(CUT)
_MIX1, _MIX2, _MIX3, _MIX_STEP, _MIX4 = (tl.constexpr(number) for number in MIX)
_GROUP = tl.constexpr(GROUP)
_SMALLEST_MEAN, _SMALLEST_ROOT = tl.constexpr(SMALLEST_MEAN), tl.constexpr(SMALLEST_ROOT)
_MEAN_STEPS, _ROOT_STEPS = tl.constexpr(MEAN_STEPS), tl.constexpr(ROOT_STEPS)
_SHIFT, _SCALE_HALF, _SCALE_MASK = tl.constexpr(SCALE_SHIFT), tl.constexpr(SCALE_HALF), tl.constexpr(SCALE_MASK)
_TO_WHOLE = tl.constexpr(1.5 * 2.0**23)
"""Added to a number below 2^22 and taken off again, it leaves the nearest whole one, halves to even."""


@triton.jit(do_not_specialize=["step"])  # type: ignore[untyped-decorator]
def _adamw_kernel(
    parameters: tl.tensor,
    remainders: tl.tensor,
    gradients: tl.tensor,
    gradients_low: tl.tensor,
    means: tl.tensor,
    squares: tl.tensor,
    mean_scales: tl.tensor,
    square_scales: tl.tensor,
    count: tl.tensor,
    factors: tl.tensor,
    mean_rate: tl.tensor,
    square_rate: tl.tensor,
    keep: tl.tensor,
    rate: tl.tensor,
    square_scale: tl.tensor,
    eps: tl.tensor,
    step: tl.tensor,
    LOW_BITS: tl.constexpr,
    IN_CODES: tl.constexpr,
    IN_24_BITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program per block of numbers; rules of ``split_master.py`` and ``companded_moments.py``."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    group = tl.program_id(0).to(tl.int64) * (BLOCK // _GROUP) + tl.arange(0, BLOCK // _GROUP)
    factor = tl.load(factors)
    # Without a factor nothing is read and nothing is written.
    inside = (place < count) & (factor == factor)
    inside_group = (group * _GROUP < count) & (factor == factor)
    gradient = tl.load(gradients + place, mask=inside, other=0)
    if IN_24_BITS:
        low = tl.load(gradients_low + place, mask=inside, other=0).to(tl.int32)
        gradient = ((gradient.to(tl.int32) << 16) + (low << 8)).to(tl.float32, bitcast=True)
    gradient = gradient * factor
    mean = tl.load(means + place, mask=inside, other=0).to(tl.float32)
    square = tl.load(squares + place, mask=inside, other=0).to(tl.float32)
    if IN_CODES:
        bent = tl.div_rn(mean, _MEAN_STEPS)
        mean = _scaled(tl.div_rn(bent, 2.0 - tl.abs(bent)), mean_scales + group, inside_group, BLOCK)
        root = _scaled(tl.div_rn(square, _ROOT_STEPS), square_scales + group, inside_group, BLOCK)
        square = root * root
        square = square * square
    mean += mean_rate * (gradient - mean)
    square += square_rate * (gradient * gradient - square)
    if LOW_BITS > 0:
        weight = tl.load(parameters + place, mask=inside, other=0).to(tl.int32)
        remainder = tl.load(remainders + place, mask=inside, other=0).to(tl.int32)
        parameter = ((weight << 16) + (remainder << (16 - LOW_BITS))).to(tl.float32, bitcast=True)
    else:
        parameter = tl.load(parameters + place, mask=inside, other=0.0)
    parameter = keep * parameter - tl.div_rn(rate * mean, tl.sqrt_rn(square * square_scale) + eps)
    if LOW_BITS > 0:
        bits = tl.where(parameter == parameter, parameter.to(tl.int32, bitcast=True), _NAN)
        if LOW_BITS == 8:
            bits = (bits + _drawn(bits, mean.to(tl.int32, bitcast=True), step)) & ~_CUT
        tl.store(parameters + place, ((bits + _HALF) >> 16).to(tl.int16), mask=inside)
        remainder = bits >> (16 - LOW_BITS)
        tl.store(remainders + place, remainder.to(remainders.dtype.element_ty), mask=inside)
    else:
        tl.store(parameters + place, parameter, mask=inside)
    if IN_CODES:
        part, scale = _divided(mean, _SMALLEST_MEAN, BLOCK)
        tl.store(mean_scales + group, scale.to(tl.int16), mask=inside_group)
        part = tl.maximum(part, -1.0)
        mean = _whole(tl.div_rn(part * 2.0, tl.abs(part) + 1.0) * _MEAN_STEPS)
        part, scale = _divided(tl.sqrt_rn(tl.sqrt_rn(square)), _SMALLEST_ROOT, BLOCK)
        tl.store(square_scales + group, scale.to(tl.int16), mask=inside_group)
        square = _whole(part * _ROOT_STEPS)
        # A root above 0 in a group that is no zeros keeps a code above 0.
        square = tl.where(part > 0.0, tl.maximum(square, 1.0), square)
        tl.store(means + place, mean.to(tl.int32).to(tl.int8), mask=inside)
        tl.store(squares + place, square.to(tl.int32).to(tl.uint8), mask=inside)
    else:
        tl.store(means + place, mean.to(means.dtype.element_ty), mask=inside)
        tl.store(squares + place, square.to(squares.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _drawn(bits: tl.tensor, mean_bits: tl.tensor, step: tl.tensor) -> tl.tensor:
    """0 to 255, by the hash of ``split_master.drawn_to_24_bits``."""
    mixed = bits * _MIX1 + mean_bits * _MIX2 + ((step + 1) * _MIX_STEP).to(tl.int32)
    mixed = (mixed ^ ((mixed >> 15) & 0x1FFFF)) * _MIX3
    mixed = (mixed ^ ((mixed >> 13) & 0x7FFFF)) * _MIX4
    return (mixed >> 24) & _CUT


@triton.jit  # type: ignore[untyped-decorator]
def _scaled(part: tl.tensor, scales: tl.tensor, inside: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """Numbers times the scales of their groups."""
    bits = (tl.load(scales, mask=inside, other=0).to(tl.int32) & _SCALE_MASK) << _SHIFT
    grouped = tl.reshape(part, (BLOCK // _GROUP, _GROUP)) * bits.to(tl.float32, bitcast=True)[:, None]
    return tl.reshape(grouped, (BLOCK,))


@triton.jit  # type: ignore[untyped-decorator]
def _divided(numbers: tl.tensor, SMALLEST: tl.constexpr, BLOCK: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Numbers divided by the scales of their groups, at most 1, and the scales; zeros where a group is kept as such."""
    grouped = tl.reshape(numbers, (BLOCK // _GROUP, _GROUP))
    largest = tl.max(tl.abs(grouped), axis=1)
    scale = (largest.to(tl.int32, bitcast=True) + _SCALE_HALF) >> _SHIFT
    scale = tl.where(largest < SMALLEST, 0, scale)
    divisor = tl.where(scale == 0, 1.0, (scale << _SHIFT).to(tl.float32, bitcast=True))
    part = tl.where((scale == 0)[:, None], 0.0, tl.div_rn(grouped, tl.broadcast_to(divisor[:, None], grouped.shape)))
    return tl.reshape(tl.minimum(part, 1.0), (BLOCK,)), scale


@triton.jit  # type: ignore[untyped-decorator]
def _whole(number: tl.tensor) -> tl.tensor:
    """The nearest whole number, halves to even."""
    return (number + _TO_WHOLE) - _TO_WHOLE
