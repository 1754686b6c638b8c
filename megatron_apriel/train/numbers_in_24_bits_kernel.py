"""The addition of ``numbers_in_24_bits.py`` on a GPU: one Triton kernel. Importing this file imports Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from megatron_apriel.train.split_master import BELOW_HALF, CUT, HALF, NAN_BITS

BLOCK = 4096
WARPS = 8


def add(high: Tensor, low: Tensor, gradient: Tensor) -> None:
    """See ``numbers_in_24_bits.add``; all of one size and contiguous."""
    count = gradient.numel()
    if not all(tensor.is_contiguous() and tensor.numel() == count for tensor in (high, low, gradient)):
        raise ValueError("gradients and their sums must be contiguous and of one size")
    _add_kernel[(triton.cdiv(count, BLOCK),)](high.view(torch.int16), low, gradient, count, BLOCK, num_warps=WARPS)


_NAN, _HALF, _CUT, _BELOW_HALF = (tl.constexpr(number) for number in (NAN_BITS, HALF, CUT, BELOW_HALF))


@triton.jit  # type: ignore[untyped-decorator]
def _add_kernel(highs: tl.tensor, lows: tl.tensor, gradients: tl.tensor, count: tl.tensor, BLOCK: tl.constexpr) -> None:
    """One program per block of numbers; rounding by the rule of ``split_master.split``."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    high = tl.load(highs + place, mask=inside, other=0).to(tl.int32)
    low = tl.load(lows + place, mask=inside, other=0).to(tl.int32)
    gradient = tl.load(gradients + place, mask=inside, other=0.0)
    total = ((high << 16) + (low << 8)).to(tl.float32, bitcast=True) + gradient
    bits = tl.where(total == total, total.to(tl.int32, bitcast=True), _NAN)
    bits = (bits + _BELOW_HALF + ((bits >> 8) & 1)) & ~_CUT
    tl.store(highs + place, ((bits + _HALF) >> 16).to(tl.int16), mask=inside)
    tl.store(lows + place, (bits >> 8).to(tl.int8), mask=inside)
    tl.store(gradients + place, tl.zeros_like(gradient), mask=inside)
