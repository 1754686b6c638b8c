"""Progress of everything that takes more than a few seconds.

On a terminal: a bar with rate and time left. In a log file: one line every ten seconds, so that a job's output stays
readable. Both on standard error, which leaves standard output to results. Under ``torchrun`` only rank 0 reports.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from megatron_apriel.errors import printable
from megatron_apriel.quantities import counted
from megatron_apriel.terminal import note


class Step(Protocol):
    """Reports that so many more units are done."""

    def __call__(self, count: int = 1) -> None: ...


_SECONDS_BETWEEN_LINES = 10.0
_shown: list[str] = []
"""Labels of the bars on the terminal now; a bar inside another's block reports in lines, since a terminal has one."""


@contextmanager
def progress(label: str, total: int | None = None, unit: str = "item") -> Iterator[Step]:
    """Report the progress of a block.

    Args:
        label: what is being done, as a participle: "preparing".
        total: how many units there are, or None if that is not known.
        unit: one of what is counted, as "record". A "byte" is shown as kB, MB, GB.

    Yields:
        A function to call with the number of units done since the last call.
    """
    label = printable(label)
    if os.environ.get("RANK", "0") != "0":
        yield _silent
    elif sys.stderr.isatty() and not _shown:
        with _bar(label, total, unit) as step:
            yield step
    else:
        with _lines(label, total, unit) as step:
            yield step


def _silent(count: int = 1) -> None:
    pass


@contextmanager
def _bar(label: str, total: int | None, unit: str) -> Iterator[Step]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[counts]}  {task.fields[rate]}", markup=False),
        TimeRemainingColumn(compact=True),
    )
    begun, done = time.monotonic(), 0
    _shown.append(label)
    try:
        with Progress(*columns, console=Console(stderr=True)) as bars:
            task = bars.add_task(label, total=total, rate="", counts="")

            def step(count: int = 1) -> None:
                nonlocal done
                done += count
                rate = f"{_amount(done / max(time.monotonic() - begun, 1e-9), unit)}/s"
                bars.update(task, advance=count, rate=rate, counts=_of(done, total, unit))

            yield step
    finally:
        _shown.remove(label)


@contextmanager
def _lines(label: str, total: int | None, unit: str) -> Iterator[Step]:
    begun = last = time.monotonic()
    done = 0

    def report(seconds: float, left: str = "") -> None:
        rate = _amount(done / max(seconds, 1e-9), unit)
        note(f"{label}: {_of(done, total, unit)}, {rate}/s{left}")

    def step(count: int = 1) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            left = f", {_duration((total - done) * (now - begun) / done)} left" if total and done else ""
            report(now - begun, left)

    yield step
    if last != begun:  # at least one line was printed: say that it is over
        report(time.monotonic() - begun, f", done in {_duration(time.monotonic() - begun)}")


def _amount(number: float, unit: str) -> str:
    if unit != "byte":
        whole = number >= 10 or number == int(number)
        return counted(round(number), unit) if whole else f"{number:.1f} {unit}s"
    for scale, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= scale:
            return f"{number / scale:.1f} {name}"
    return counted(round(number), unit)


def _of(done: int, total: int | None, unit: str) -> str:
    return _amount(done, unit) if total is None else f"{_amount(done, unit)} of {_amount(total, unit)}"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
