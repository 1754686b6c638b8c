"""Which of a run's checkpoints stay on disk. Pure arithmetic on step numbers.

``equispaced N`` is for averaging: when the run ends, the checkpoints nearest to 1/N, 2/N ... N/N of it are there. While
it runs, a checkpoint may go as soon as no fraction of the run can have it as its nearest any more. That is simple to
know: steps only grow, so for a fraction that lies behind, the nearest checkpoint so far is final, and for one that lies
ahead, only the newest can be.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection
from fractions import Fraction

from megatron_apriel.config.output_sections import KeepPolicy


def steps_to_keep(steps: Collection[int], keep: KeepPolicy, total_steps: int) -> set[int]:
    """Those of ``steps``, all complete, that the policy keeps; always the newest.

    Args:
        steps: steps of the complete checkpoints.
        keep: all, the last N, or N equally spaced over the run.
        total_steps: length of the run.
    """
    if not steps or keep.policy == "all":
        return set(steps)
    if keep.policy == "last":
        return set(sorted(steps)[-keep.number :])
    ordered, nearest = sorted(steps), {max(steps)}
    for part in range(1, keep.number + 1):
        target = Fraction(total_steps * part, keep.number)
        place = bisect_left(ordered, target)
        nearest.add(min(ordered[max(place - 1, 0) : place + 1], key=lambda step: (abs(step - target), step)))
    return nearest
