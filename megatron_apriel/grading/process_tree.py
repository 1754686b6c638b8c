"""The processes that a process started: how many, how much memory they hold, and their end."""

from __future__ import annotations

import os
import resource
import select
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PAGE = resource.getpagesize()
_ROUNDS = 200


def descendants(process: int) -> list[int]:
    """Its children, their children and so on; a parent comes before its children."""
    found = list(_children(process))
    for child in found:
        found += _children(child)
    return found


def _children(process: int) -> Iterator[int]:
    """Of all its threads: any of them may have started one."""
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{process}/task"):  # noqa: PTH208
            with suppress(OSError):
                yield from map(int, Path(f"/proc/{process}/task/{thread}/children").read_text("ascii").split())


def resident_bytes(processes: list[int]) -> int:
    """Memory that processes hold, shared pages counted for each."""
    total = 0
    for process in processes:
        with suppress(OSError, IndexError):
            total += int(Path(f"/proc/{process}/statm").read_text("ascii").split()[1]) * _PAGE
    return total


def wait_for_end(process: int, seconds: float) -> None:
    """Wait until a process has ended, and with the first one of a PID namespace all others in it; not only children."""
    with suppress(ProcessLookupError):
        handle = os.pidfd_open(process)
        try:
            select.select([handle], [], [], seconds)
        finally:
            os.close(handle)


def kill_tree(process: int) -> None:
    """Kill its descendants until there are none, then itself; orphans must come back to it or die with it."""
    none_seen = 0
    for number in range(_ROUNDS):
        living = descendants(process)
        for child in living:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)
        none_seen = 0 if living else none_seen + 1
        if none_seen == 2:  # one look can miss a child that is on its way from a dead parent to the next
            break
        time.sleep(min(number, 20) / 1000)  # on a busy machine, what is killed takes a moment to end
    with suppress(ProcessLookupError, PermissionError):
        os.kill(process, signal.SIGKILL)
