"""A run of many cases: processes that are watched and replaced, targets that take turns, a table of the results."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from . import findings, worker
from .case import Result
from .worker import Slice, Tally

SLICE_SECONDS = 20.0
WAIT_SECONDS = 60.0
"""A case that has not ended by then waits for something, or is lost in code that cannot be interrupted."""
_SETUP_SECONDS = 300.0
_BLOCK = 1_000_000
"""Numbers set apart for each slice, so that no case is run twice."""


@dataclass
class Process:
    """A worker, and what it is doing."""

    process: Any
    connection: Connection
    task: Slice | None = None
    case: int | None = None
    since: float = field(default_factory=time.monotonic)

    @property
    def pid(self) -> int:
        return int(self.process.pid)


class Run:
    """A run; :meth:`go` ends when the time is over.

    Args:
        names: of the targets.
        processes: how many work at a time.
        seed: of all cases.
        work: directory for honest files and cases.
        kept: directory for failing inputs.
    """

    def __init__(self, names: Sequence[str], processes: int, seed: int, work: Path, kept: Path) -> None:
        self.seed, self.work, self.kept = seed, work, kept
        self.tallies = {name: Tally() for name in names}
        self.begun = time.monotonic()
        self._context = multiprocessing.get_context("spawn")
        self._turns = list(names)
        self._blocks = 0
        self._processes = [self._start() for _ in range(processes)]

    def go(self, seconds: float, report_every: float = 60) -> None:
        """Run cases for so long, and print the table every so often."""
        end, report = time.monotonic() + seconds, time.monotonic() + report_every
        try:
            while time.monotonic() < end:
                for process in self._processes:
                    if process.task is None:
                        self._give(process, end - time.monotonic())
                for connection in wait([process.connection for process in self._processes], timeout=1):
                    self._hear(next(one for one in self._processes if one.connection is connection))
                for process in list(self._processes):
                    limit = WAIT_SECONDS if process.case is not None else _SETUP_SECONDS
                    if time.monotonic() - process.since > limit:
                        self._lost(process, f"waits more than {limit:.0f} s")
                if time.monotonic() > report:
                    print(self.table(), flush=True)
                    report += report_every
        finally:
            for process in self._processes:
                process.process.kill()
                process.process.join()

    def table(self) -> str:
        """What became of the cases so far."""
        minutes = (time.monotonic() - self.begun) / 60
        head = ("target", "cases", "accepted", "refused", "failures", "kinds", "CPU s", "slowest")
        rows: list[tuple[object, ...]] = [
            (name, one.cases, one.accepted, one.refused, sum(one.failures.values()), len(one.failures),
             f"{one.cpu_seconds:.0f}", f"{one.slowest:.2f}")
            for name, one in self.tallies.items()
        ]  # fmt: skip
        total = Tally()
        for one in self.tallies.values():
            total.add(one)
        failed = sum(total.failures.values())
        rows.append(("all", total.cases, total.accepted, total.refused, failed, len(total.failures),
                     f"{total.cpu_seconds:.0f}", f"{total.slowest:.2f}"))  # fmt: skip
        lines = [f"{row[0]:<14}" + "".join(f"{value:>10}" for value in row[1:]) for row in (head, *rows)]
        return f"after {minutes:.1f} minutes, seed {self.seed}\n" + "\n".join(lines)

    def _start(self) -> Process:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=worker.main, args=(theirs, self.work, self.seed, self.kept), daemon=True)
        process.start()
        theirs.close()
        return Process(process, ours)

    def _give(self, process: Process, left: float) -> None:
        name = self._turns.pop(0)
        self._turns.append(name)
        first = self._blocks * _BLOCK + 1
        self._blocks += 1
        process.task, process.case, process.since = (
            Slice(name, first, min(SLICE_SECONDS, left), _BLOCK - 1),
            None,
            time.monotonic(),
        )
        process.connection.send(process.task)

    def _hear(self, process: Process) -> None:
        try:
            message = process.connection.recv()
        except (EOFError, OSError):
            process.process.join()
            code = process.process.exitcode
            name = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
            self._lost(process, f"ends the process ({name})")
            return
        process.since = time.monotonic()
        match message:
            case ("begin", case):
                process.case = case
            case ("end", case, tally, place):
                process.case = None
                assert process.task is not None
                self._account(process.task.target, case, tally, place)
            case ("done",):
                process.task = None
            case ("worn out",):
                self._replace(process)

    def _account(self, target: str, case: int, tally: Tally, place: str) -> None:
        for signature in tally.failures.keys() - self.tallies[target].failures.keys():
            print(f"{target}, case {case}: {signature}" + (f"; kept in {place}" if place else ""), flush=True)
        self.tallies[target].add(tally)

    def _lost(self, process: Process, what: str) -> None:
        """A process that died or does not answer: the case it was at is a failure."""
        if process.task is None:
            raise RuntimeError(f"a worker {what} without work to do")
        process.process.kill()
        process.process.join()
        faults = self.work / f"faults-{process.pid}"
        text = faults.read_text(errors="replace") if faults.is_file() else ""
        target = process.task.target
        if process.case is None:
            what += " while it makes or reads the honest files"
        result = Result("failed", what, text)
        case = process.case or 0
        place = findings.keep(self.kept, target, self.seed, case, result, self.work / f"process-{process.pid}")
        self._account(target, case, Tally(1, failures={what: 1}), str(place or ""))
        if case == 0:
            raise RuntimeError(f"{target}: a worker {what}\n{text}")
        self._replace(process)

    def _replace(self, process: Process) -> None:
        process.process.kill()
        process.process.join()
        shutil.rmtree(self.work / f"process-{process.pid}", ignore_errors=True)
        (self.work / f"faults-{process.pid}").unlink(missing_ok=True)
        self._processes[self._processes.index(process)] = self._start()


def cpu_count() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))
