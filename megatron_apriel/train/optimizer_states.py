"""What an optimizer keeps of each parameter between updates: two moments, and what a bf16 weight lacks of its master.

A parameter here is a data-parallel rank's run of a model's parameter, flat. In float32 it is its own master; in bf16 it
is a master's upper half, and the lower one is kept here (``split_master.py``). Checkpoints hold masters and moments in
float32, whatever the form in memory: :class:`StateNumbers` reads and writes them so, a few at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_apriel.train.split_master import join, split

MASTER, MEAN, SQUARE = "param", "exp_avg", "exp_avg_sq"
"""Names of the states in a checkpoint."""


@dataclass(frozen=True)
class StatePart:
    """States of the numbers ``start`` to ``stop`` of a parameter, which lie in one place.

    Attributes:
        mean, square: the moments, float32.
        remainder: int16; None where the parameter is its own master.
    """

    start: int
    stop: int
    mean: Tensor
    square: Tensor
    remainder: Tensor | None

    def tensors(self) -> Iterator[Tensor]:
        """All of them."""
        yield from (self.mean, self.square)
        if self.remainder is not None:
            yield self.remainder


class OptimizerStates:
    """The states of an optimizer's parameters; zeros in the beginning, when every weight is its master."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._parts = {parameter: (_on_device(parameter),) for parameter in parameters}

    def parts(self, parameter: Tensor) -> tuple[StatePart, ...]:
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


def _on_device(parameter: Tensor) -> StatePart:
    count = parameter.numel()
    mean, square = (torch.zeros(count, dtype=torch.float32, device=parameter.device) for _ in range(2))
    remainder = None
    if parameter.dtype == torch.bfloat16:
        remainder = torch.zeros(count, dtype=torch.int16, device=parameter.device)
    elif parameter.dtype != torch.float32:
        raise ValueError(f"parameters are in float32 or bfloat16, not in {parameter.dtype}")
    return StatePart(0, count, mean, square, remainder)


class StateNumbers:
    """One state of a parameter as flat float32 numbers, read and written by runs of them."""

    def __init__(self, name: str, parameter: Tensor, parts: tuple[StatePart, ...]) -> None:
        self._name, self._parameter, self._parts = name, parameter, parts

    def __len__(self) -> int:
        return self._parameter.numel()

    def read(self, start: int, stop: int) -> Tensor:
        """Numbers ``start`` to ``stop``; a view where they lie together in float32."""
        found = [self._read(part, begin, end) for part, begin, end in self._within(start, stop)]
        return found[0] if len(found) == 1 else torch.cat([each.cpu() for each in found])

    def write(self, start: int, numbers: Tensor) -> None:
        """Put ``numbers`` in the place of those from ``start`` on."""
        for part, begin, end in self._within(start, start + len(numbers)):
            self._write(part, begin, end, numbers[begin - start : end - start])

    def _within(self, start: int, stop: int) -> Iterator[tuple[StatePart, int, int]]:
        for part in self._parts:
            begin, end = max(start, part.start), min(stop, part.stop)
            if begin < end or (start == stop == begin):
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
