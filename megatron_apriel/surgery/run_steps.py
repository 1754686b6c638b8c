"""Which of a run's checkpoints are averaged: found on disk, chosen by number, by count or evenly."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from megatron_apriel.errors import CheckpointError, ConfigError
from megatron_apriel.formats.run_directory import RunDirectory, checkpoints_in
from megatron_apriel.quantities import counted


def available_steps(run: str | Path) -> dict[int, Path]:
    """The checkpoints of a run that were whole when they were written, by step, in order.

    Args:
        run: a stage's output directory, see :mod:`megatron_apriel.formats.run_directory`.

    Raises:
        CheckpointError: if there is none.
    """
    folder = RunDirectory(Path(run)).checkpoints
    found = checkpoints_in(folder)
    if not found:
        raise CheckpointError(
            f"{run} has no checkpoints.",
            f"Looked for {folder}/step_*.",
            "Give a stage's output directory, or Hugging Face directories with --checkpoints.",
        )
    return found


def equispaced(steps: Sequence[int], count: int) -> list[int]:
    """``count`` of the available steps, ending with the last: those nearest to 1/count, 2/count ... of it.

    Of 1 to 12, six are 2, 4, ... 12. A step that was saved out of turn, as a run does on a signal, is taken
    only where it is the nearest.
    """
    _require(steps, count, "--equispaced")
    picked: list[int] = []
    before = len(steps)
    for number in range(count, 0, -1):
        # From the last backwards, leaving enough steps for the parts before.
        free = range(number - 1, before)
        target = Fraction(steps[-1] * number, count)
        before = min(free, key=lambda place: (abs(steps[place] - target), place))
        picked.append(steps[before])
    return picked[::-1]


def last(steps: Sequence[int], count: int) -> list[int]:
    """The last ``count`` available steps."""
    _require(steps, count, "--last")
    return list(steps[-count:])


def chosen(steps: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """The wanted steps, all of which must be available."""
    missing = [step for step in wanted if step not in steps]
    if missing:
        raise ConfigError(
            f"the run has no checkpoint of step {', '.join(map(str, missing))}.", fix=f"It has {_listed(steps)}."
        )
    return list(wanted)


def _require(steps: Sequence[int], count: int, option: str) -> None:
    if not 1 <= count <= len(steps):
        raise ConfigError(
            f"{option} {count} is not possible: the run has {counted(len(steps), 'checkpoint')}.",
            f"They are of steps {_listed(steps)}.",
            f"Give 1 to {len(steps)}, or let the run keep more (checkpoint.keep).",
        )


def _listed(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps))
