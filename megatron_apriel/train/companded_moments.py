"""Moments in 8 bits: groups of 32 numbers, each divided by the group's largest and bent before it is rounded.

Equal steps between 0 and the largest of a group would lose what is small in it: a second moment that becomes 0 makes an
update without bounds. So numbers are companded, as FlashOptim does it (arXiv 2602.23349): with x a number divided by
its group's largest one::

    first moment     z = 2x / (1 + |x|),  a code of -127 to 127    softsign: half as wide steps near 0 as linear ones,
                                                                   and twice as wide ones near the largest
    second moment    z = x^(1/4),         a code of 0 to 255       what is above 0 keeps a code above 0

FlashOptim takes the square root of second moments. The fourth is kinder to groups in which a few numbers are far larger
than the rest, as in matrices that read the MLP's activations: on a small model's gradients its part in the error of an
update was 1.3% there where the square root's was 2.2%, and 0.8% where that one's was 0.7.

A scale has 16 bits. Those of float16 end at 6e-8, where the first moment of a weight of a large model with a clipped
gradient lies. Scales have no sign, so they are the float32's exponent and the upper 8 bits of its fraction here. They
are rounded to the nearest, so closely that the largest number always gets the largest code. For that reason numbers
that come from codes give the same codes and scales again: a checkpoint may hold them in float32. The second moment's
scale is of the roots.

A group whose largest number, or root, is too small for that is kept as zeros.

The same rules stand in the update's GPU kernel (``adamw_kernel.py``). Every operation rounds exactly and in the same
order, so the numbers are the same there.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_apriel.planning.state_forms import GROUP

MEAN_STEPS, ROOT_STEPS = 127.0, 255.0
SMALLEST_MEAN, SMALLEST_ROOT = 2.0**-54, 2.0**-23
"""The least that the largest number, or root, of a group may be, so that the smallest code stands for no denormal."""
SCALE_SHIFT, SCALE_HALF, SCALE_MASK = 15, 0x4000, 0xFFFF


def encode_mean(mean: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (int8, one a number) and scales (int16, one a group) of a flat run of first moments."""
    grouped = _grouped(mean)
    scales, divisor = _scales(grouped.abs().amax(1), SMALLEST_MEAN)
    part = (grouped / divisor).clamp_(-1.0, 1.0)
    codes = (part * 2.0).div_(part.abs() + 1.0).mul_(MEAN_STEPS).round_().to(torch.int8)
    return codes.masked_fill_((scales == 0)[:, None], 0).view(-1)[: len(mean)], scales


def decode_mean(codes: Tensor, scales: Tensor) -> Tensor:
    """Float32 numbers of codes and scales."""
    bent = _grouped(_divided(codes, MEAN_STEPS))
    return (bent / (2.0 - bent.abs())).mul_(_of_scales(scales)).view(-1)[: len(codes)]


def encode_square(square: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (uint8) and scales (int16) of a flat run of second moments, none of them negative."""
    # In float64, whose square root torch rounds exactly on every device.
    grouped = _grouped(square.double().sqrt_().float().double().sqrt_().float())
    scales, divisor = _scales(grouped.amax(1), SMALLEST_ROOT)
    part = (grouped / divisor).clamp_(max=1.0)
    codes = (part * ROOT_STEPS).round_()
    codes = torch.where(part > 0, codes.clamp_(min=1.0), codes).to(torch.uint8)
    return codes.masked_fill_((scales == 0)[:, None], 0).view(-1)[: len(square)], scales


def decode_square(codes: Tensor, scales: Tensor) -> Tensor:
    """Float32 numbers of codes and scales."""
    roots = _grouped(_divided(codes, ROOT_STEPS)) * _of_scales(scales)
    return (roots * roots).square_().view(-1)[: len(codes)]


def _divided(codes: Tensor, steps: float) -> Tensor:
    """By a tensor: torch multiplies by the inverse of a plain number on a GPU, which rounds twice."""
    return codes.float() / torch.full((1,), steps, device=codes.device)


def _grouped(numbers: Tensor) -> Tensor:
    """In rows of a group; the last one filled up with zeros."""
    return torch.nn.functional.pad(numbers, (0, -len(numbers) % GROUP)).view(-1, GROUP)


def _scales(largest: Tensor, smallest: float) -> tuple[Tensor, Tensor]:
    """Scales of groups by their largest numbers; and what to divide by, in rows."""
    bits = (largest.view(torch.int32) + SCALE_HALF) >> SCALE_SHIFT
    scales = bits.masked_fill_(largest < smallest, 0).to(torch.int16)
    return scales, _of_scales(scales).masked_fill_((scales == 0)[:, None], 1.0)


def _of_scales(scales: Tensor) -> Tensor:
    return ((scales.to(torch.int32) & SCALE_MASK) << SCALE_SHIFT).view(torch.float32)[:, None]
