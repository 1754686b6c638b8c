"""Float32 master weights as the bf16 weights that the model computes with, and the 16 bits that these lack.

Adam at a learning rate of 1e-5 moves a weight by far less than bf16 can show, so a master of 32 bits is kept and
rounded for the model. But the upper half of such a master *is* a bf16 number. Kept as weight and remainder it costs 2
bytes a parameter beside the weight, not 4, and an update writes the weight itself where it once wrote a copy.

For that the weight must be rounded so that both together give the master back, to the bit. Rounding to the nearest,
and halves away from zero, is adding half a bit of the upper half to the number's 32 bits as an integer and cutting the
lower ones off; the remainder is the lower 16 bits, read as a signed number, and putting together is one addition::

    weight    = (bits + 0x8000) >> 16
    remainder = bits & 0xffff            from -0x8000 to 0x7fff
    bits      = (weight << 16) + remainder

Rounding halves to even, as conversions to bf16 do, cannot be undone so: a half that was rounded down and one that was
rounded up leave the same 16 bits. Weights differ from such a conversion's at those ties only, by one bit.

Everything that is no NaN comes back to the bit: zeros with their signs, denormals, infinities. Every NaN becomes
``0x7fc00000``, since the sum would carry some of them, among them the one that GPUs make, over into a zero.

The same rule stands in the update's GPU kernel (``adamw_kernel.py``), and nowhere else.
"""

from __future__ import annotations

import torch
from torch import Tensor

NAN_BITS = 0x7FC00000
HALF = 0x8000


def split(master: Tensor) -> tuple[Tensor, Tensor]:
    """Weights in bf16 and remainders in int16 of float32 masters, in their shape and on their device."""
    bits = master.contiguous().view(torch.int32)
    bits = bits.masked_fill(master.isnan(), NAN_BITS)
    weight = ((bits + HALF) >> 16).to(torch.int16)
    return weight.view(torch.bfloat16), bits.to(torch.int16)


def join(weight: Tensor, remainder: Tensor) -> Tensor:
    """Float32 masters, put together again from what :func:`split` gives."""
    upper = weight.contiguous().view(torch.int16).to(torch.int32)
    return ((upper << 16) + remainder).view(torch.float32)
