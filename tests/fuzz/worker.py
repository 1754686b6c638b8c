"""A process that runs cases for the run's process: it says which one it begins, and what became of it."""

from __future__ import annotations

import faulthandler
import os
import resource
import time
import traceback
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TextIO

from . import findings
from .case import Target, limit_process, quiet, run_case

_WORN_OUT = 3 * 2**30
"""Bytes of memory beyond which a process is replaced: what outside libraries leak adds up."""


@dataclass(frozen=True)
class Slice:
    """Cases of one target, from number ``first`` on, for so many seconds and at most so many."""

    target: str
    first: int
    seconds: float
    most: int


@dataclass
class Tally:
    """What became of the cases of a slice."""

    cases: int = 0
    accepted: int = 0
    refused: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    cpu_seconds: float = 0
    slowest: float = 0

    def add(self, other: Tally) -> None:
        self.cases += other.cases
        self.accepted += other.accepted
        self.refused += other.refused
        for signature, count in other.failures.items():
            self.failures[signature] = self.failures.get(signature, 0) + count
        self.cpu_seconds += other.cpu_seconds
        self.slowest = max(self.slowest, other.slowest)


def honest_files(target: Target, work: Path) -> Path:
    """The honest files of a target, made if they are not there yet."""
    place = work / "honest" / target.name
    if not place.is_dir():
        partial = place.with_name(f".{target.name}-{os.getpid()}")
        partial.mkdir(parents=True)
        target.make(partial)
        try:
            partial.rename(place)
        except OSError:  # another process was quicker
            if not place.is_dir():
                raise
    return place


def main(connection: Connection, work: Path, seed: int, kept: Path) -> None:
    """Take slices from the connection until there are none."""
    quiet()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):  # the code's own output, and what C libraries remark on damage
        os.dup2(nowhere, stream)
    from .targets import targets

    known, opened = targets(), set[str]()
    faults = (work / f"faults-{os.getpid()}").open("w")
    faulthandler.enable(faults)
    try:
        while (task := connection.recv()) is not None:
            target = known[task.target]
            if task.target not in opened:
                target.open(honest_files(target, work))
                opened.add(task.target)
            _run(connection, target, task, work, seed, kept, faults)
            _say_done(connection)
    except Exception:  # a defect of a target, which the run's process shows
        faults.write(traceback.format_exc())
        faults.flush()
        raise


def _say_done(connection: Connection) -> None:
    worn_out = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > _WORN_OUT
    connection.send(("worn out" if worn_out else "done",))


def _run(
    connection: Connection, target: Target, task: Slice, work: Path, seed: int, kept: Path, faults: TextIO
) -> None:
    files = work / f"process-{os.getpid()}"
    end = time.monotonic() + task.seconds
    # What is imported and cached by the first reading is no case's doing.
    run_case(target, seed, 0, files)
    limit_process()
    for case in range(task.first, task.first + task.most):
        connection.send(("begin", case))
        faulthandler.dump_traceback_later(50, file=faults)
        began = time.process_time()
        result = run_case(target, seed, case, files)
        spent = time.process_time() - began
        faulthandler.cancel_dump_traceback_later()
        tally = Tally(1, result.outcome == "accepted", result.outcome == "refused", cpu_seconds=spent, slowest=spent)
        place = None
        if result.outcome == "failed":
            tally.failures[result.signature] = 1
            place = findings.keep(kept, target.name, seed, case, result, files)
        connection.send(("end", case, tally, str(place) if place else ""))
        if time.monotonic() > end:
            return
