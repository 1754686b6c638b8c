"""What an optimizer keeps of each parameter between updates: two moments, and what a bf16 weight lacks of its master.

A parameter here is a data-parallel rank's run of a model's parameter, flat. In float32 it is its own master; in bf16 it
is a master's upper half, and the lower one is kept here (``split_master.py``).

A given share of all states lies in host memory, in pieces that each hold everything of some thousands or millions of
numbers, so that one copy brings all of it (``host_stream.py``). The largest parameters go there first: they make the
fewest pieces. Only the last of them may be divided.

Checkpoints hold masters and moments in float32, whatever the form in memory and wherever it lies:
:class:`StateNumbers` reads and writes them so, a few at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_apriel.planning.memory import PIECE_NUMBERS
from megatron_apriel.train.pinned_memory import HostMemory
from megatron_apriel.train.split_master import join, split

MASTER, MEAN, SQUARE = "param", "exp_avg", "exp_avg_sq"
"""Names of the states in a checkpoint."""


@dataclass(frozen=True)
class StatePart:
    """States of the numbers ``start`` to ``stop`` of a parameter, which lie in one place.

    Attributes:
        mean, square: the moments, float32.
        remainder: int16; None where the parameter is its own master.
        packed: on the host, the bytes that hold them all; None on the parameter's device.
    """

    start: int
    stop: int
    mean: Tensor
    square: Tensor
    remainder: Tensor | None
    packed: Tensor | None = None

    def tensors(self) -> Iterator[Tensor]:
        """All of them."""
        yield from (self.mean, self.square)
        if self.remainder is not None:
            yield self.remainder

    def brought(self, packed: Tensor) -> StatePart:
        """The same with its bytes where ``packed`` has them."""
        return _packed_part(self.start, self.stop, packed, self.remainder is not None)


def bytes_of_states(parameter: Tensor) -> int:
    """Of one number. Raises ValueError for a type that has none."""
    if parameter.dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"parameters are in float32 or bfloat16, not in {parameter.dtype}")
    return 10 if parameter.dtype == torch.bfloat16 else 8


def _packed_part(start: int, stop: int, packed: Tensor, is_split: bool) -> StatePart:
    """One whose states lie in these bytes: first moments, second moments, remainders."""
    count = stop - start
    mean, square = (packed[4 * count * half : 4 * count * (half + 1)].view(torch.float32) for half in (0, 1))
    remainder = packed[8 * count :].view(torch.int16) if is_split else None
    return StatePart(start, stop, mean, square, remainder, packed)


class OptimizerStates:
    """The states of an optimizer's parameters; zeros in the beginning, when every weight is its master.

    Args:
        parameters: in the optimizer's order, of one device.
        host_share: part of all their numbers whose states lie on the host.
        piece: numbers of one piece there, at most; ``PIECE_NUMBERS`` where None.
        permit: called with the number of bytes before they are taken from the host; refuses by raising.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        host_share: float = 0.0,
        piece: int | None = None,
        permit: Callable[[int], None] = lambda size: None,
    ) -> None:
        piece = piece or PIECE_NUMBERS
        first_on_host = _divided(parameters, host_share)
        pieces = [
            (parameter, start, min(start + piece, parameter.numel()))
            for parameter, first in zip(parameters, first_on_host, strict=True)
            for start in range(first, parameter.numel(), piece)
        ]
        sizes = [(stop - start) * bytes_of_states(parameter) for parameter, start, stop in pieces]
        self.piece_bytes, self.host_bytes = max(sizes, default=0), sum(sizes)
        permit(self.host_bytes)
        self._memory = HostMemory(sizes, parameters[0].device if parameters else torch.device("cpu"))
        self._parts = {
            parameter: [_on_device(parameter, first)] if first or not parameter.numel() else []
            for parameter, first in zip(parameters, first_on_host, strict=True)
        }
        for (parameter, start, stop), packed in zip(pieces, self._memory.pieces, strict=True):
            self._parts[parameter].append(_packed_part(start, stop, packed, parameter.dtype == torch.bfloat16))

    def parts(self, parameter: Tensor) -> Sequence[StatePart]:
        """In order; together all of the parameter."""
        return self._parts[parameter]

    def numbers(self, parameter: Tensor) -> dict[str, StateNumbers]:
        """Master and moments by their names in a checkpoint."""
        parts = self._parts[parameter]
        return {name: StateNumbers(name, parameter.detach().view(-1), parts) for name in (MASTER, MEAN, SQUARE)}

    def tensors(self) -> Iterator[Tensor]:
        """All that is kept here."""
        for parts in self._parts.values():
            for part in parts:
                yield from part.tensors()


def _divided(parameters: Sequence[Tensor], host_share: float) -> list[int]:
    """The first number of each parameter whose states lie on the host."""
    left = round(host_share * sum(parameter.numel() for parameter in parameters))
    first = [parameter.numel() for parameter in parameters]
    for place in sorted(range(len(parameters)), key=lambda place: -first[place]):
        taken = min(left, first[place])
        left -= taken
        first[place] -= taken
    return first


def _on_device(parameter: Tensor, count: int) -> StatePart:
    mean, square = (torch.zeros(count, dtype=torch.float32, device=parameter.device) for _ in range(2))
    remainder = None
    if bytes_of_states(parameter) == 10:
        remainder = torch.zeros(count, dtype=torch.int16, device=parameter.device)
    return StatePart(0, count, mean, square, remainder)


class StateNumbers:
    """One state of a parameter as flat float32 numbers, read and written by runs of them."""

    def __init__(self, name: str, parameter: Tensor, parts: Sequence[StatePart]) -> None:
        self._name, self._parameter, self._parts = name, parameter, parts

    def __len__(self) -> int:
        return self._parameter.numel()

    def read(self, start: int, stop: int) -> Tensor:
        """Numbers ``start`` to ``stop``; a view where they lie together in float32."""
        found = [self._read(part, begin, end) for part, begin, end in self._within(start, stop)]
        return found[0] if len(found) == 1 else torch.cat([torch.empty(0), *(each.cpu() for each in found)])

    def write(self, start: int, numbers: Tensor) -> None:
        """Put ``numbers`` in the place of those from ``start`` on."""
        for part, begin, end in self._within(start, start + len(numbers)):
            self._write(part, begin, end, numbers[begin - start : end - start])

    def _within(self, start: int, stop: int) -> Iterator[tuple[StatePart, int, int]]:
        for part in self._parts:
            begin, end = max(start, part.start), min(stop, part.stop)
            if begin < end:
                yield part, begin, end

    def _read(self, part: StatePart, begin: int, end: int) -> Tensor:
        inside = slice(begin - part.start, end - part.start)
        if self._name != MASTER:
            return self._moment(part)[inside]
        if part.remainder is None:
            return self._parameter[begin:end]
        remainder = part.remainder[inside]
        return join(self._parameter[begin:end].to(remainder.device), remainder)

    def _write(self, part: StatePart, begin: int, end: int, numbers: Tensor) -> None:
        inside = slice(begin - part.start, end - part.start)
        if self._name != MASTER:
            self._moment(part)[inside] = numbers
        elif part.remainder is None:
            self._parameter[begin:end] = numbers
        else:
            weight, remainder = split(numbers)
            self._parameter[begin:end] = weight
            part.remainder[inside] = remainder

    def _moment(self, part: StatePart) -> Tensor:
        return part.mean if self._name == MEAN else part.square
