"""How long a step's micro-batches take on a pipeline: Megatron's schedule, followed pass by pass. No torch.

Each rank runs forward and backward passes in a fixed order: some forward passes to fill the pipeline, then one forward
and one backward by turns, then the backward passes that are left. Between them it sends results to the neighbouring
stages and receives theirs. With V chunks a rank, virtual stage ``c P + r`` is chunk ``c`` of rank ``r``, and the last
rank's neighbour is the first.

A message is a meeting: NCCL moves nothing before both sides have come to it, and a rank that waits for one stands
still. So *where* ranks wait decides what uneven passes cost:

* without chunks, each message, or pair of them, is waited for by both sides;
* with chunks the same holds while the pipeline fills and drains. In between, a rank waits for the end of what it sends
  forward, because it frees that tensor next; for what it receives, before the pass that needs it; and for what it sends
  backward, one pass later.

A rank that is early for its neighbour therefore loses time that it cannot win back, even where the totals of all ranks
are alike: chunks with tower or head are longer than others, and sequences with images, or of longer documents, more
work. A formula for the time that ranks stand still, the bubble's ``(P - 1) / V`` of a micro-batch, holds where all
passes are alike.

Source of the order and of what is waited for: ``forward_backward_pipelining_with_interleaving`` and
``..._without_interleaving`` of Megatron Core 0.19 (arXiv 2104.04473, section 2.2), with ``overlap_p2p_comm`` and
``deallocate_pipeline_outputs``, as ``model/options.py`` sets them.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

_GROUPS = 4
"""Groups of P micro-batches after which the schedule is taken to repeat itself."""

Seconds = Sequence[Sequence[Sequence[float]]]
"""Of a pass by rank, chunk and micro-batch; of fewer micro-batches than there are, again from the first."""


class Pass(NamedTuple):
    """A forward or backward pass of one chunk of a rank with one micro-batch."""

    forward: bool
    chunk: int
    micro_batch: int


class Message(NamedTuple):
    """A rank is ready to send to a neighbour, or to receive from it; its number is its place among the rank's."""

    sends: bool
    neighbour: int


class Wait(NamedTuple):
    """A rank does nothing more until the message of this number has ended."""

    message: int


class _Program:
    """What a rank does, in order."""

    def __init__(self) -> None:
        self.steps: list[Pass | Message | Wait] = []
        self._messages = 0

    def run(self, one: Pass) -> None:
        self.steps.append(one)

    def post(self, *, send: int | None = None, receive: int | None = None) -> tuple[int | None, int | None]:
        """Be ready to send to and to receive from these neighbours; the numbers of the messages."""
        return self._post(True, send), self._post(False, receive)

    def wait(self, *messages: int | None) -> None:
        self.steps += [Wait(number) for number in messages if number is not None]

    def exchange(self, *, send: int | None = None, receive: int | None = None) -> None:
        """Send and receive, and wait for both."""
        self.wait(*self.post(send=send, receive=receive))

    def _post(self, sends: bool, neighbour: int | None) -> int | None:
        if neighbour is None:
            return None
        self.steps.append(Message(sends, neighbour))
        self._messages += 1
        return self._messages - 1


class _Place:
    """Of one rank: its neighbours, and the chunk and micro-batch of each of its passes."""

    def __init__(self, pipeline: int, virtual: int, micro_batches: int, rank: int) -> None:
        self.pipeline, self.virtual = pipeline, virtual
        self.next, self.previous = (rank + 1) % pipeline, (rank - 1) % pipeline
        self.is_first, self.is_last = rank == 0, rank == pipeline - 1
        self.table = [
            (chunk, number)
            for first in range(0, micro_batches, pipeline if virtual > 1 else 1)
            for chunk in range(virtual)
            for number in range(first, min(first + pipeline, micro_batches) if virtual > 1 else first + 1)
        ]
        ahead = pipeline - rank - 1 if virtual == 1 else 2 * (pipeline - rank - 1) + (virtual - 1) * pipeline
        self.ahead = min(ahead, len(self.table))

    def forward(self, number: int) -> Pass:
        return Pass(True, *self.table[number])

    def backward(self, number: int) -> Pass:
        chunk, micro_batch = self.table[number]
        return Pass(False, self.virtual - 1 - chunk, micro_batch)

    def has_input(self, one: Pass) -> bool:
        """Whether what a pass works on comes from a neighbour: not at the two ends of the model."""
        at_end = self.is_first and one.chunk == 0 if one.forward else self.is_last and one.chunk == self.virtual - 1
        return not at_end

    def receiver(self, one: Pass) -> int | None:
        """The neighbour that works on what a pass makes."""
        if one.forward:
            return None if self.is_last and one.chunk == self.virtual - 1 else self.next
        return None if self.is_first and one.chunk == 0 else self.previous

    def sender_after(self, number: int, forward: bool) -> int | None:
        """The neighbour from which something comes after a pass of this number, if any does."""
        if number == len(self.table) - 1:
            return None
        if not (self.is_first if forward else self.is_last):
            return self.previous if forward else self.next
        # Round the ring: the other end is P - 1 passes behind, and what its last chunk makes goes nowhere.
        behind = number - (self.pipeline - 1)
        if behind < 0 or self.table[behind][0] == self.virtual - 1:
            return None
        return self.previous if forward else self.next


@lru_cache(maxsize=256)
def program(pipeline: int, virtual: int, micro_batches: int, rank: int) -> tuple[Pass | Message | Wait, ...]:
    """All that a rank does in a step.

    Args:
        pipeline: ranks.
        virtual: chunks of each.
        micro_batches: of the step; with chunks, a multiple of ``pipeline``.
        rank: whose program.
    """
    place = _Place(pipeline, virtual, micro_batches, rank)
    return tuple((_with_chunks if virtual > 1 else _without_chunks)(place).steps)


def order_of_passes(pipeline: int, virtual: int, micro_batches: int, rank: int) -> list[Pass]:
    """All passes of a rank, in the order in which it runs them; arguments as of :func:`program`."""
    return [step for step in program(pipeline, virtual, micro_batches, rank) if isinstance(step, Pass)]


def _without_chunks(place: _Place) -> _Program:
    done, count = _Program(), len(place.table)
    earlier, later = (None if place.is_first else place.previous), (None if place.is_last else place.next)
    for number in range(place.ahead):
        done.exchange(receive=earlier)
        done.run(place.forward(number))
        done.exchange(send=later)
    if place.ahead < count:
        done.exchange(receive=earlier)
    for number in range(count - place.ahead):
        done.run(place.forward(place.ahead + number))
        done.exchange(send=later, receive=later)
        done.run(place.backward(number))
        done.exchange(send=earlier, receive=earlier if place.ahead + number < count - 1 else None)
    for number in range(count - place.ahead, count):
        done.exchange(receive=later)
        done.run(place.backward(number))
        done.exchange(send=earlier)
    return done


def _with_chunks(place: _Place) -> _Program:
    done, count = _Program(), len(place.table)
    coming: dict[bool, list[int | None]] = {True: [], False: []}
    back: int | None = None

    def run(one: Pass) -> None:
        if place.has_input(one) and coming[one.forward]:
            done.wait(coming[one.forward].pop(0))
        done.run(one)

    if not place.is_first:
        done.exchange(receive=place.previous)
    for number in range(place.ahead):
        one = place.forward(number)
        done.run(one)
        done.exchange(send=place.receiver(one), receive=place.sender_after(number, True))
    if 0 < place.ahead < count and not place.is_last:
        coming[False].append(done.post(receive=place.next)[1])
    for number in range(count - place.ahead):
        one = place.forward(place.ahead + number)
        run(one)
        sent, expected = done.post(send=place.receiver(one), receive=place.sender_after(place.ahead + number, True))
        coming[True] += [expected] if expected is not None else []
        done.wait(sent)
        one = place.backward(number)
        run(one)
        sent, expected = done.post(send=place.receiver(one), receive=place.sender_after(number, False))
        coming[False] += [expected] if expected is not None else []
        done.wait(back)
        back = sent
    if place.ahead == count and not place.is_last:
        done.exchange(receive=place.next)
    for number in range(count - place.ahead, count):
        one = place.backward(number)
        run(one)
        done.exchange(send=place.receiver(one), receive=place.sender_after(number, False))
    done.wait(back)
    return done


def pipeline_seconds(forward: Seconds, backward: Seconds, micro_batches: int, message: float) -> float:
    """Seconds until the last rank has done its last pass.

    Of many micro-batches that are all alike, some are followed; each further group of P takes as long as the last one
    that was added.

    Args:
        forward: seconds of a forward pass, by rank, chunk and micro-batch.
        backward: the same of a backward pass.
        micro_batches: of the step.
        message: seconds that a message takes once both sides have come to it.
    """
    ranks = len(forward)
    are_alike = all(len(chunk) == 1 for passes in (*forward, *backward) for chunk in passes)
    followed = min(micro_batches, _GROUPS * ranks + micro_batches % ranks) if are_alike else micro_batches
    seconds = _followed(forward, backward, followed, message)
    if followed == micro_batches:
        return seconds
    before = _followed(forward, backward, followed - ranks, message)
    return seconds + (micro_batches - followed) // ranks * (seconds - before)


class _Event(NamedTuple):
    """Something that happens in a step; all of them in an order in which each needs earlier ones only.

    Attributes:
        kind: a pass ends, a rank has come to a message, a message ends, or a rank has waited for one.
        rank: whose clock it is.
        number: of the message; of a pass, its chunk.
        other: of a message that ends, the one that ends before it, or -1; of a pass, its micro-batch.
    """

    kind: int
    rank: int
    number: int
    other: int = -1


_FORWARD, _BACKWARD, _COMES, _ENDS, _WAITED = range(5)


class _Channel:
    """Messages from one rank to another, one after the other: their numbers, and how many have come to each side."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.came = [0, 0]
        self.ended = 0


class _Order:
    """Puts the programs of all ranks into one order of events; what times they take does not change it."""

    def __init__(self, programs: Sequence[Sequence[Pass | Message | Wait]]) -> None:
        self.events: list[_Event] = []
        self.messages = 0
        self._channels: defaultdict[tuple[int, int], _Channel] = defaultdict(_Channel)
        self._own: list[list[tuple[_Channel, int]]] = [[] for _ in programs]
        left = [deque(steps) for steps in programs]
        while any(left):
            before = len(self.events)
            for rank, steps in enumerate(left):
                while steps and self._happens(rank, steps[0]):
                    steps.popleft()
            assert len(self.events) > before, "passes that wait for each other"

    def _happens(self, rank: int, step: Pass | Message | Wait) -> bool:
        if isinstance(step, Pass):
            kind = _FORWARD if step.forward else _BACKWARD
            self.events.append(_Event(kind, rank, step.chunk, step.micro_batch))
        elif isinstance(step, Message):
            channel = self._channels[(rank, step.neighbour) if step.sends else (step.neighbour, rank)]
            place = channel.came[step.sends]
            if place == len(channel.numbers):
                channel.numbers.append(self.messages)
                self.messages += 1
            channel.came[step.sends] += 1
            self._own[rank].append((channel, place))
            self.events.append(_Event(_COMES, rank, channel.numbers[place]))
        else:
            channel, place = self._own[rank][step.message]
            if place >= min(channel.came):
                return False
            for ended in range(channel.ended, place + 1):
                last = channel.numbers[ended - 1] if ended else -1
                self.events.append(_Event(_ENDS, rank, channel.numbers[ended], last))
            channel.ended = max(channel.ended, place + 1)
            self.events.append(_Event(_WAITED, rank, channel.numbers[place]))
        return True


@lru_cache(maxsize=256)
def _order(pipeline: int, virtual: int, micro_batches: int) -> tuple[list[_Event], int]:
    """The events of a step, and how many messages there are."""
    order = _Order([program(pipeline, virtual, micro_batches, rank) for rank in range(pipeline)])
    return order.events, order.messages


def _followed(forward: Seconds, backward: Seconds, micro_batches: int, message: float) -> float:
    events, messages = _order(len(forward), len(forward[0]), micro_batches)
    clocks, ready, ended = [0.0] * len(forward), [0.0] * messages, [0.0] * (messages + 1)
    for kind, rank, number, other in events:
        if kind <= _BACKWARD:
            passes = (forward if kind == _FORWARD else backward)[rank][number]
            clocks[rank] += passes[other % len(passes)]
        elif kind == _COMES:
            if clocks[rank] > ready[number]:
                ready[number] = clocks[rank]
        elif kind == _ENDS:
            ended[number] = max(ready[number], ended[other]) + message
        elif ended[number] > clocks[rank]:
            clocks[rank] = ended[number]
    return max(clocks)
