"""What an optimizer keeps of each parameter between updates: two moments, and what a bf16 weight lacks of its master.

A parameter here is a data-parallel rank's run of a model's parameter, flat. In float32 it is its own master; in bf16 it
is a master's upper half, and the lower one is kept here (``split_master.py``). Moments are kept in the form that was
chosen for the parameter (``planning/state_forms.py``); groups of 8-bit numbers are counted from the beginning of the
run, and no piece or part ends within one.

A given share of all states lies in host memory, in pieces that each hold everything of some thousands or millions of
numbers, so that one copy brings all of it (``host_stream.py``). The largest parameters go there first: they make the
fewest pieces. Only the last of them may be divided.

Checkpoints hold masters and moments in float32, whatever the form in memory and wherever it lies, but for moments that
are bfloat16 anyway: :class:`StateNumbers` reads and writes them so, a few at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_apriel.planning.memory import PIECE_NUMBERS
from megatron_apriel.planning.state_forms import StateForm
from megatron_apriel.train.adamw_update import read_moments, write_moments
from megatron_apriel.train.pinned_memory import HostMemory
from megatron_apriel.train.split_master import join, split
from megatron_apriel.train.state_tensors import StateTensors, new_states, state_size, states_in

MASTER, MEAN, SQUARE = "param", "exp_avg", "exp_avg_sq"
"""Names of the states in a checkpoint."""


@dataclass(frozen=True)
class StatePart:
    """States of the numbers ``start`` to ``stop`` of a parameter, which lie in one place.

    Attributes:
        form: how they are kept.
        states: themselves.
        packed: on the host, the bytes that hold them all; None on the parameter's device.
    """

    start: int
    stop: int
    form: StateForm
    states: StateTensors
    packed: Tensor | None = None

    def brought(self, packed: Tensor) -> StatePart:
        """The same with its bytes where ``packed`` has them."""
        return _packed_part(self.start, self.stop, packed, self.form)


def exact_form(parameter: Tensor) -> StateForm:
    """The form that loses nothing. Raises ValueError for a type of parameters that has none."""
    if parameter.dtype not in (torch.bfloat16, torch.float32):
        raise ValueError(f"parameters are in float32 or bfloat16, not in {parameter.dtype}")
    return StateForm("float32", 16 if parameter.dtype == torch.bfloat16 else 0)


def _packed_part(start: int, stop: int, packed: Tensor, form: StateForm) -> StatePart:
    return StatePart(start, stop, form, states_in(packed, form, stop - start), packed)


@dataclass(frozen=True)
class Division:
    """What of an optimizer's states lies on the device, and what in which pieces on the host.

    Attributes:
        forms: of each parameter's states, in the optimizer's order.
        first_on_host: of each, the first number whose states lie on the host.
        pieces: on the host, each as a parameter, the first of its numbers in it, and the first one behind it.
    """

    forms: dict[Tensor, StateForm]
    first_on_host: dict[Tensor, int]
    pieces: list[tuple[Tensor, int, int]]

    @classmethod
    def of(
        cls,
        parameters: Sequence[Tensor],
        host_share: float = 0.0,
        piece: int | None = None,
        forms: Mapping[Tensor, StateForm] | None = None,
    ) -> Division:
        """Of the states of an optimizer's parameters.

        Args:
            parameters: in the optimizer's order, of one device.
            host_share: part of all their states, by bytes, that lies on the host.
            piece: numbers of one piece there, at most, but for one group of them; ``PIECE_NUMBERS`` where None.
            forms: of the parameters' states, those that lose nothing where it says none.
        """
        chosen = {parameter: (forms or {}).get(parameter) or exact_form(parameter) for parameter in parameters}
        first_on_host = _first_on_host(parameters, host_share, chosen)
        pieces = [
            (parameter, start, min(start + size, parameter.numel()))
            for parameter, first in first_on_host.items()
            for size in [_up(piece or PIECE_NUMBERS, chosen[parameter].group)]
            for start in range(first, parameter.numel(), size)
        ]
        return cls(chosen, first_on_host, pieces)

    @property
    def sizes(self) -> list[int]:
        """Bytes of the pieces."""
        return [state_size(self.forms[parameter], stop - start) for parameter, start, stop in self.pieces]


class OptimizerStates:
    """The states of an optimizer's parameters; zeros in the beginning, when every weight is its master.

    Attributes:
        piece_bytes, host_bytes: of the largest piece on the host, and of all of them.
    """

    def __init__(self, division: Division) -> None:
        sizes, forms = division.sizes, division.forms
        self.piece_bytes, self.host_bytes = max(sizes, default=0), sum(sizes)
        device = next((parameter.device for parameter in forms), torch.device("cpu"))
        self._memory = HostMemory(sizes, device)
        self._parts = {
            parameter: [_on_device(parameter, first, forms[parameter])] if first or not parameter.numel() else []
            for parameter, first in division.first_on_host.items()
        }
        for (parameter, start, stop), packed in zip(division.pieces, self._memory.pieces, strict=True):
            self._parts[parameter].append(_packed_part(start, stop, packed, forms[parameter]))

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
                yield from part.states.all()


def _first_on_host(
    parameters: Sequence[Tensor], host_share: float, forms: Mapping[Tensor, StateForm]
) -> dict[Tensor, int]:
    """The first number of each parameter whose states lie on the host."""
    first = {parameter: parameter.numel() for parameter in parameters}
    left = host_share * sum(forms[parameter].bytes * count for parameter, count in first.items())
    for parameter in sorted(parameters, key=lambda parameter: -parameter.numel()):
        form, count = forms[parameter], parameter.numel()
        taken = min(max(round(left / form.bytes), 0), count)
        left -= taken * form.bytes
        first[parameter] = min(_up(count - taken, form.group), count)
    return first


def _up(number: int, group: int) -> int:
    """The least multiple of ``group`` that is not below it."""
    return -(-number // group) * group


def _on_device(parameter: Tensor, count: int, form: StateForm) -> StatePart:
    return StatePart(0, count, form, new_states(form, count, parameter.device))


class StateNumbers:
    """One state of a parameter as flat numbers, read and written by runs of them.

    Those that share a scale are rounded together, when the last of them is written.

    Attributes:
        dtype: of the numbers that are read: float32, but for moments in bfloat16.
    """

    def __init__(self, name: str, parameter: Tensor, parts: Sequence[StatePart]) -> None:
        self._name, self._parameter, self._parts = name, parameter, parts
        self._unfinished: dict[tuple[int, int], _Unfinished] = {}
        in_bfloat16 = name != MASTER and any(part.form.moments == "bfloat16" for part in parts)
        self.dtype = torch.bfloat16 if in_bfloat16 else torch.float32

    def __len__(self) -> int:
        return self._parameter.numel()

    def read(self, start: int, stop: int) -> Tensor:
        """Numbers ``start`` to ``stop``; a view where they lie together in the form in which they are read."""
        found = [self._read(part, begin, end) for part, begin, end in self._within(start, stop)]
        return found[0] if len(found) == 1 else torch.cat([torch.empty(0, dtype=self.dtype), *(x.cpu() for x in found)])

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
        if self._name == MASTER:
            inside = slice(begin - part.start, end - part.start)
            if part.states.remainder is None:
                return self._parameter[begin:end]
            remainder = part.states.remainder[inside]
            return join(self._parameter[begin:end].to(remainder.device), remainder)
        if part.form.group == 1:
            return self._moment(part.states)[begin - part.start : end - part.start]
        first, states = _groups(part, begin, end)
        return read_moments(states)[self._name == SQUARE][begin - first : end - first]

    def _write(self, part: StatePart, begin: int, end: int, numbers: Tensor) -> None:
        inside = slice(begin - part.start, end - part.start)
        if self._name == MASTER:
            remainder = part.states.remainder
            if remainder is None:
                self._parameter[begin:end] = numbers
            else:
                weight, rest = split(numbers, 8 * remainder.dtype.itemsize)
                self._parameter[begin:end] = weight
                remainder[inside] = rest
        elif part.form.group == 1:
            self._moment(part.states)[inside] = numbers
        else:
            self._write_groups(part, begin, end, numbers)

    def _write_groups(self, part: StatePart, begin: int, end: int, numbers: Tensor) -> None:
        """Round whole groups at once, and keep what belongs to others until they are whole."""
        group = part.form.group
        first_whole = part.start + _up(begin - part.start, group)
        whole = first_whole, end if end == part.stop else end - (end - part.start) % group
        if whole[0] < whole[1]:
            self._round(part, *whole, numbers[whole[0] - begin : whole[1] - begin])
        for first, last in ((begin, min(whole[0], end)), (max(whole[1], whole[0]), end)):
            if first >= last:
                continue
            start = first - (first - part.start) % group
            waiting = self._unfinished.setdefault((part.start, start), _Unfinished.of(min(group, part.stop - start)))
            waiting.numbers[first - start : last - start] = numbers[first - begin : last - begin]
            waiting.there[first - start : last - start] = True
            if waiting.there.all():
                self._round(part, start, start + len(waiting.numbers), waiting.numbers)
                del self._unfinished[part.start, start]

    def _round(self, part: StatePart, begin: int, end: int, numbers: Tensor) -> None:
        """Whole groups."""
        _, states = _groups(part, begin, end)
        mean, square = read_moments(states)
        numbers = numbers.float().to(mean.device)
        write_moments(states, *((numbers, square) if self._name == MEAN else (mean, numbers)))

    def _moment(self, states: StateTensors) -> Tensor:
        return states.mean if self._name == MEAN else states.square


@dataclass(frozen=True)
class _Unfinished:
    """Numbers of a group of which not all were written yet."""

    numbers: Tensor
    there: Tensor

    @classmethod
    def of(cls, count: int) -> _Unfinished:
        return cls(torch.zeros(count), torch.zeros(count, dtype=torch.bool))


def _groups(part: StatePart, begin: int, end: int) -> tuple[int, StateTensors]:
    """The moments of the groups that hold numbers ``begin`` to ``end``, and the first of their numbers."""
    group, states = part.form.group, part.states
    first, last = (begin - part.start) // group, -(-(end - part.start) // group)
    assert states.mean_scales is not None and states.square_scales is not None
    moments = [tensor[first * group : last * group] for tensor in (states.mean, states.square)]
    scales = [tensor[first:last] for tensor in (states.mean_scales, states.square_scales)]
    return part.start + first * group, StateTensors(*moments, *scales)
