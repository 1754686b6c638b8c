"""What a target is, and one case of it: an honest input is changed, read, and judged."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import resource
import shutil
import signal
import time
import traceback
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from megatron_apriel import errors
from megatron_apriel.errors import AprielError
from megatron_apriel.inputs import NotAFileError, TooLargeError

_REFUSALS: tuple[type[Exception], ...] = (AprielError, NotAFileError, TooLargeError)
CPU_SECONDS = 10
MEMORY_BYTES = 512 * 2**20
"""What one case may take of processor time and of memory beyond what the process had before."""


class Wrong(AssertionError):
    """An input was accepted, and the result is not what an independent reading of it gives."""


class TooSlow(BaseException):
    """A case took too much processor time, or waits; no ``except Exception`` of the code can hide it."""


class Target(ABC):
    """One kind of input.

    Attributes:
        name: on the command line.
        about: what is read, in a few words.
        guided: name of the one file of a case that holds a text, where coverage may choose its bytes.
        refusals: exceptions beside the project's own that are a proper refusal, as the interface documents them.
    """

    name: str
    about: str
    guided: str | None = None
    refusals: tuple[type[Exception], ...] = ()

    @abstractmethod
    def make(self, directory: Path) -> None:
        """Write the honest files; called once a run, in one process."""

    def open(self, directory: Path) -> None:
        """Read what :meth:`make` wrote; called once in each process."""
        self.honest = directory

    @abstractmethod
    def mutate(self, random: Random, directory: Path, changes: int) -> str:
        """Write a case into an empty directory.

        Args:
            random: decides everything.
            directory: of the case.
            changes: how many mutations; with none, the files are honest.

        Returns:
            What was done, for people.
        """

    @abstractmethod
    def check(self, directory: Path) -> None:
        """Read the case as users do, and compare what is accepted with an independent reading.

        Raises:
            AprielError, or one of ``refusals``: the case is refused, as it may be.
            Wrong: it is accepted, and the result is wrong.
        """


@dataclass(frozen=True)
class Result:
    """What became of a case: ``accepted``, ``refused`` or ``failed``.

    Attributes:
        signature: of a failure, the same for all cases that fail in the same way.
        text: the refusal's message, or the failure's traceback.
        changes: what was done to the honest files.
        memory: bytes that it took at most.
    """

    outcome: str
    signature: str = ""
    text: str = ""
    changes: str = ""
    memory: int = 0


def run_case(target: Target, seed: int, case: int, directory: Path) -> Result:
    """Run case number ``case``; its files are left in ``directory``, which is emptied first. Case 0 is honest."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    random = Random(f"{seed} {target.name} {case}")
    changes = min(1 + int(random.expovariate(0.8)), 8) if case else 0
    done = target.mutate(random, directory, changes)
    before = _start_of_memory()
    with limited():
        result = judged(target, directory, honest=not changes)
    memory = max(0, _memory("VmHWM") - before)
    if memory > MEMORY_BYTES and result.outcome != "failed":
        text = f"{memory / 2**20:.0f} MiB; it was {result.outcome}: {result.text}"
        result = Result("failed", f"memory beyond {MEMORY_BYTES >> 20} MiB", text)
    return Result(result.outcome, result.signature, result.text, done, memory)


def judged(target: Target, directory: Path, honest: bool) -> Result:
    try:
        target.check(directory)
    except _REFUSALS + target.refusals as refusal:
        if honest:
            return Result("failed", "honest files are refused", traceback.format_exc())
        return Result("refused", text=str(refusal))
    except Wrong as wrong:
        return Result("failed", f"accepted: {_plain(str(wrong))}", traceback.format_exc())
    except (Exception, TooSlow) as error:
        # What the operating system refuses is a message of the command line too.
        if isinstance(error, OSError) and error.errno in errors._REFUSALS:
            return Result("refused", text=str(error))
        return Result("failed", _signature(error), traceback.format_exc())
    return Result("accepted")


def _signature(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/megatron_apriel/" in frame.filename]
    last = (ours or list(frames))[-1]
    place = last.filename.partition("/megatron_apriel/")[2] or Path(last.filename).name
    return f"{type(error).__name__} in {place} {last.name}"


def _plain(text: str) -> str:
    """The beginning of a message without the numbers and names that differ from case to case."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|[0-9]+|/\S+", "_", text.partition("\n")[0])[:100]


def folder_name(signature: str) -> str:
    """A short name for a directory of one kind of failure."""
    words = re.sub(r"[^A-Za-z0-9]+", "-", signature)[:60].strip("-")
    return f"{words}-{hashlib.sha256(signature.encode()).hexdigest()[:6]}"


@contextmanager
def limited() -> Iterator[None]:
    """At most CPU_SECONDS of processor time, and no waiting: other processes on the machine use up neither."""

    def late(*_: Any) -> None:
        raise TooSlow(f"more than {CPU_SECONDS} s of processor time")

    idle = _Idle()
    before: list[Any] = [signal.signal(signal.SIGPROF, late), signal.signal(signal.SIGALRM, idle.look)]
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, _LOOK_SECONDS, _LOOK_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGPROF, before[0])
        signal.signal(signal.SIGALRM, before[1])


_LOOK_SECONDS = 3


class _Idle:
    """Tells waiting for something that does not come from waiting for a processor."""

    def __init__(self) -> None:
        self._wall, self._busy, self._idle = time.monotonic(), self._used(), 0

    def look(self, *_: Any) -> None:
        """Called every few seconds; raises TooSlow when twice in a row nearly nothing was done or wanted."""
        wall, busy = time.monotonic(), self._used()
        self._idle = self._idle + 1 if busy - self._busy < 0.1 * (wall - self._wall) else 0
        self._wall, self._busy = wall, busy
        if self._idle == 2:
            raise TooSlow("it waits for something that does not come")

    @staticmethod
    def _used() -> float:
        """Seconds that this process ran, and that its main thread was ready to run and had no processor."""
        _, delayed, _ = Path("/proc/self/schedstat").read_text().split()
        return time.process_time() + int(delayed) / 1e9


def limit_process(margin: int = 2 * 2**30) -> None:
    """Let this process have ``margin`` bytes more of address space than it has now, and write no larger file."""
    for limit, most in ((resource.RLIMIT_AS, _memory("VmSize") + margin), (resource.RLIMIT_FSIZE, margin)):
        resource.setrlimit(limit, (most, resource.getrlimit(limit)[1]))


def _start_of_memory() -> int:
    """Begin to watch the peak of memory anew; returns what is in use."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _memory("VmHWM")
    return _memory("VmRSS")


def _memory(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def repeated(changes: int, change: Callable[[], str]) -> str:
    """Apply ``change`` so often and list what it says it did."""
    return "; ".join(change() for _ in range(changes))


def quiet() -> None:
    """Outside libraries remark on what they are given, and a damaged input is remarked on a lot."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
