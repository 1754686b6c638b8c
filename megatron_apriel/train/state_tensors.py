"""The tensors that hold the states of a run of numbers, made for themselves or found in bytes that hold them all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_apriel.planning.state_forms import GROUP, StateForm


class StateTensors(NamedTuple):
    """What is kept of a run of numbers; flat, contiguous, on one device.

    Attributes:
        mean, square: the moments in float32 or bfloat16, or their codes in int8 and uint8.
        mean_scales, square_scales: int16, one for each group of numbers; None where moments are no codes.
        remainder: int16 or int8, what bf16 weights lack of their masters; None where the weights are the masters.
    """

    mean: Tensor
    square: Tensor
    mean_scales: Tensor | None = None
    square_scales: Tensor | None = None
    remainder: Tensor | None = None

    def all(self) -> Iterator[Tensor]:
        """Those that there are."""
        yield from (tensor for tensor in self if tensor is not None)


def _fields(form: StateForm, count: int) -> dict[str, tuple[torch.dtype, int]]:
    """Type and length of each tensor, the widest numbers first, so that each lies at a multiple of its width."""
    remainder = {0: {}, 8: {"remainder": (torch.int8, count)}, 16: {"remainder": (torch.int16, count)}}[form.low_bits]
    if form.moments != "int8":
        dtype = torch.float32 if form.moments == "float32" else torch.bfloat16
        return {"mean": (dtype, count), "square": (dtype, count)} | remainder
    groups = -(-count // GROUP)
    scales = {"mean_scales": (torch.int16, groups), "square_scales": (torch.int16, groups)}
    return scales | remainder | {"mean": (torch.int8, count), "square": (torch.uint8, count)}


def state_size(form: StateForm, count: int) -> int:
    """Bytes of the states of so many numbers."""
    return sum(dtype.itemsize * length for dtype, length in _fields(form, count).values())


def new_states(form: StateForm, count: int, device: torch.device) -> StateTensors:
    """Zeros."""
    fields = _fields(form, count).items()
    return StateTensors(**{name: torch.zeros(length, dtype=dtype, device=device) for name, (dtype, length) in fields})


def states_in(packed: Tensor, form: StateForm, count: int) -> StateTensors:
    """The states that these bytes hold."""
    found, start = {}, 0
    for name, (dtype, length) in _fields(form, count).items():
        stop = start + dtype.itemsize * length
        found[name] = packed[start:stop].view(dtype)
        start = stop
    return StateTensors(**found)
