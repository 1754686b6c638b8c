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

**24 bits.** Of the remainder's 16 bits the upper 8 can be enough: with the weight they are a float32 number with 15
bits of fraction, and a step between two of them is 2^-15 of the number at most. An update of 1e-5 moves a weight of
0.02 by twenty such steps, if all of its gradients point one way, and by a few if they do not. Rounded to the nearest,
what is less than half a step would be lost in every update; so an update rounds up as often as the lost part says
(stochastically), and is right in the mean. What is drawn is a hash of the number itself, its first moment and the count
of updates: the same wherever a number lies and on any number of ranks, and another one at the next update.

The same rules stand in the GPU kernels of updates (``adamw_kernel.py``) and of sums of gradients in 24 bits
(``numbers_in_24_bits_kernel.py``), and nowhere else.
"""

from __future__ import annotations

import torch
from torch import Tensor

NAN_BITS = 0x7FC00000
HALF = 0x8000
CUT, BELOW_HALF = 0xFF, 0x7F
"""Bits that 24 do not have, and just less than half of their step: rounding adds one more where the number is odd."""
MIX = (-1640531535, -2048144777, -1028477379, 668265263, 374761393)
"""Odd numbers that hashes multiply by (xxHash's, Collet)."""


def split(master: Tensor, low_bits: int = 16) -> tuple[Tensor, Tensor]:
    """Weights in bf16 and remainders of float32 masters, in their shape and on their device.

    Remainders are int16; with ``low_bits`` of 8 they are int8, of masters rounded to the nearest that 24 bits can show,
    halves to even: sums of bf16 numbers are halves often, and would grow by a thousandth if all of these were raised.
    """
    bits = _bits(master)
    if low_bits == 8:
        bits = (bits + BELOW_HALF + ((bits >> 8) & 1)) & ~CUT
    weight = ((bits + HALF) >> 16).to(torch.int16).view(torch.bfloat16)
    return weight, bits.to(torch.int16) if low_bits == 16 else (bits >> 8).to(torch.int8)


def drawn_to_24_bits(master: Tensor, mean: Tensor, step: int) -> Tensor:
    """Masters rounded to 24 bits, up as often as the lost part says; all arguments float32 but the count of updates."""
    bits, first, second, third, of_step = _bits(master), *MIX[:4]
    mixed = bits * first + mean.contiguous().view(torch.int32) * second + _wrapped((step + 1) * of_step)
    mixed = (mixed ^ ((mixed >> 15) & 0x1FFFF)) * third
    mixed = (mixed ^ ((mixed >> 13) & 0x7FFFF)) * MIX[4]
    return ((bits + ((mixed >> 24) & CUT)) & ~CUT).view(torch.float32)


def _bits(master: Tensor) -> Tensor:
    bits = master.contiguous().view(torch.int32)
    return bits.masked_fill(master.isnan(), NAN_BITS)


def _wrapped(number: int) -> int:
    """As int32 holds it."""
    return (number + 0x80000000) % 0x100000000 - 0x80000000


def join(weight: Tensor, remainder: Tensor) -> Tensor:
    """Float32 masters, put together again from what :func:`split` gives."""
    upper = weight.contiguous().view(torch.int16).to(torch.int32)
    lower = remainder.to(torch.int32) << (0 if remainder.dtype == torch.int16 else 8)
    return ((upper << 16) + lower).view(torch.float32)
