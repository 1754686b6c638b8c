"""How long a step's micro-batches take on a pipeline: Megatron's schedule, followed pass by pass. No torch.

Each rank runs forward and backward passes in a fixed order: some forward passes to fill the pipeline, then one forward
and one backward by turns, then the backward passes that are left. A pass begins when the rank is free and what it needs
has come from the neighbouring stage. With V chunks a rank, virtual stage ``c P + r`` is chunk ``c`` of rank ``r``.

A formula for the time that ranks stand still, the bubble's ``(P - 1) / V`` of a micro-batch, holds where all chunks
take equally long. They do not: the first has the tower, the last the head, and layers come in whole numbers. So ranks
whose totals are even still wait within each micro-batch for the chunk that is longest.

Source of the order: ``forward_backward_pipelining_with_interleaving`` and ``..._without_interleaving`` of Megatron Core
(arXiv 2104.04473, section 2.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_GROUPS = 6
"""Groups of P micro-batches after which the schedule is taken to repeat itself."""


class Pass(NamedTuple):
    """A forward or backward pass of one chunk of a rank with one micro-batch."""

    forward: bool
    chunk: int
    micro_batch: int


def order_of_passes(pipeline: int, virtual: int, micro_batches: int, rank: int) -> list[Pass]:
    """All passes of a rank, in the order in which it runs them.

    Args:
        pipeline: ranks.
        virtual: chunks of each.
        micro_batches: of the step; with chunks, a multiple of ``pipeline``.
        rank: whose passes.
    """
    if virtual == 1:
        ahead = pipeline - rank - 1
        table = [(0, number) for number in range(micro_batches)]
    else:
        ahead = 2 * (pipeline - rank - 1) + (virtual - 1) * pipeline
        table = [
            (chunk, number)
            for first in range(0, micro_batches, pipeline)
            for chunk in range(virtual)
            for number in range(first, min(first + pipeline, micro_batches))
        ]
    forward = [Pass(True, chunk, number) for chunk, number in table]
    backward = [Pass(False, virtual - 1 - chunk, number) for chunk, number in table]
    ahead = min(ahead, len(table))
    passes = forward[:ahead]
    for pair in zip(forward[ahead:], backward, strict=False):
        passes += pair
    return passes + backward[len(table) - ahead :]


def pipeline_seconds(
    forward: Sequence[Sequence[float]], backward: Sequence[Sequence[float]], micro_batches: int, message: float
) -> float:
    """Seconds until the last rank has done its last pass.

    Of many micro-batches, some are followed; each further group of P takes as long as the last one that was added.

    Args:
        forward: seconds of a forward pass, by rank and chunk.
        backward: the same of a backward pass.
        micro_batches: of the step.
        message: seconds from the end of a pass until its result is with the neighbouring stage.
    """
    ranks = len(forward)
    followed = min(micro_batches, _GROUPS * ranks + micro_batches % ranks)
    seconds = _followed(forward, backward, followed, message)
    if followed == micro_batches:
        return seconds
    before = _followed(forward, backward, followed - ranks, message)
    return seconds + (micro_batches - followed) // ranks * (seconds - before)


def _followed(
    forward: Sequence[Sequence[float]], backward: Sequence[Sequence[float]], micro_batches: int, message: float
) -> float:
    ranks, virtual = len(forward), len(forward[0])
    waiting = [iter(order_of_passes(ranks, virtual, micro_batches, rank)) for rank in range(ranks)]
    upcoming = [next(passes, None) for passes in waiting]
    free = [0.0] * ranks
    ended: dict[tuple[bool, int, int], float] = {}
    while any(upcoming):
        moved = False
        for rank in range(ranks):
            while (one := upcoming[rank]) is not None:
                stage = one.chunk * ranks + rank
                begin = _arrival(one, stage, ranks * virtual - 1, ended, message)
                if begin is None:
                    break
                seconds = (forward if one.forward else backward)[rank][one.chunk]
                free[rank] = max(free[rank], begin) + seconds
                ended[one.forward, stage, one.micro_batch] = free[rank]
                upcoming[rank] = next(waiting[rank], None)
                moved = True
        assert moved, "passes that wait for each other"
    return max(free)


def _arrival(
    one: Pass, stage: int, last: int, ended: dict[tuple[bool, int, int], float], message: float
) -> float | None:
    """When what a pass needs is there; None while nothing is known of the pass that makes it."""
    if one.forward and stage == 0:
        return 0.0
    if not one.forward and stage == last:
        return ended.get((True, stage, one.micro_batch))
    neighbour = stage - 1 if one.forward else stage + 1
    end = ended.get((one.forward, neighbour, one.micro_batch))
    return None if end is None else end + message
