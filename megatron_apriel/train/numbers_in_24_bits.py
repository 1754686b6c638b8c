"""Runs of numbers in 24 bits that others are added to: bf16, and the eight bits below it (``split_master.py``)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from megatron_apriel.train.split_master import join, split

PIECE = 16 << 20
"""Numbers that are in float32 at a time."""


class Sums(NamedTuple):
    """Numbers of 24 bits: bf16, and int8 for what it lacks; of one shape, contiguous."""

    high: Tensor
    low: Tensor

    def read(self) -> Tensor:
        """In float32."""
        return join(self.high, self.low)

    def write(self, numbers: Tensor) -> None:
        """Round float32 numbers to the nearest."""
        for kept, made in zip(self, split(numbers, 8), strict=True):
            kept.copy_(made)

    def part(self, start: int, stop: int) -> Sums:
        """Some of the numbers, of flat ones."""
        return Sums(self.high[start:stop], self.low[start:stop])

    def norm(self) -> Tensor:
        """L2, without dimensions, of flat numbers."""
        norms = [self.part(start, start + PIECE).read().norm() for start in range(0, len(self.high), PIECE)]
        return torch.stack(norms or [torch.zeros((), device=self.high.device)]).norm()


def add(sums: Sums, gradient: Tensor) -> None:
    """Add a float32 gradient, of as many numbers, to sums, and set it to zero."""
    if gradient.is_cuda:
        from megatron_apriel.train.numbers_in_24_bits_kernel import add

        add(sums.high, sums.low, gradient)
    else:
        sums.write(sums.read() + gradient)
        gradient.zero_()
