"""Requests to stop that come before a run can act on them: while libraries are imported, ranks meet, weights load.

Slurm's warning is on its way to all ranks at once, some of which may not have got further than their imports. It must
kill none of them: it is noted, and the run that then begins stops before its first step. The launch script has both
signals ignored until this file listens.

Ctrl-C during imports ends the process at once: nothing is lost, and what Python makes of it there, a traceback or
another error, would help nobody.

Imports nothing that takes time.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from megatron_apriel.errors import ExitCode, ended_by
from megatron_apriel.terminal import note, say

NOTED = (signal.SIGTERM, signal.SIGUSR1)
_requests: list[int] = []
_when = ["stopping before the first step"]
_before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}


def listen() -> None:
    """Note these signals from now on; the same one again ends the process. In the main thread, before all else."""
    for number in NOTED:
        _before[number] = signal.signal(number, _note)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        _before[signal.SIGINT] = signal.signal(signal.SIGINT, _leave)


def loaded() -> None:
    """All is imported: from now on Ctrl-C is an exception again, behind which what was begun is cleared away."""
    if signal.SIGINT in _before:
        signal.signal(signal.SIGINT, _before.pop(signal.SIGINT))


def give_back() -> None:
    """Nothing will be trained: let signals do what they did before. Those that have come do it now."""
    for number, handler in _before.items():
        signal.signal(number, handler)
    _before.clear()
    for number in _requests:
        os.kill(os.getpid(), number)


def ignore() -> None:
    """Ignore these signals from now on: the run is over, and nothing may replace its exit code.

    Python takes seconds to end, and in that time gives signals that it handles back to the system, which kills.
    """
    for number in (*NOTED, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def noted() -> list[int]:
    """Numbers of the signals that have come, in order, for the run that begins; they are given once."""
    _when[:] = ["the run is at its end"]
    numbers = _requests.copy()
    _requests.clear()
    return numbers


def _note(number: int, frame: FrameType | None) -> None:
    again, name = number in _requests, signal.Signals(number).name
    _requests.append(number)
    with contextlib.suppress(RuntimeError, OSError, ValueError):  # it came while a line was printed, or nobody reads
        say(f"{name} again: stopping now" if again else f"{name}: {_when[0]}; again to stop now")
    if again:
        os._exit(ended_by(number))


def _leave(number: int, frame: FrameType | None) -> None:
    with contextlib.suppress(RuntimeError, OSError, ValueError):
        note("interrupted; nothing was left half-written")
    os._exit(ExitCode.INTERRUPTED)
