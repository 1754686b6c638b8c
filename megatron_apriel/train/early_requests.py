"""Requests to stop that come before a run can act on them: while libraries are imported, ranks meet, weights load.

Slurm's warning is on its way to all ranks at once, some of which may not have got further than their imports. It must
kill none of them: it is noted, and the run that then begins stops before its first step. The launch script has both
signals ignored until this file listens.

Imports nothing that takes time.
"""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType

from megatron_apriel.terminal import say

NOTED = (signal.SIGTERM, signal.SIGUSR1)
_requests: list[int] = []
_when = ["stopping before the first step"]


def listen() -> None:
    """Note these signals from now on; the same one again ends the process. In the main thread."""
    for number in NOTED:
        signal.signal(number, _note)


def ignore() -> None:
    """Ignore these signals from now on: the run is over, and nothing may replace its exit code.

    Python takes seconds to end, and in that time gives signals that it handles back to the system, which kills.
    """
    for number in NOTED:
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
        os._exit(128 + number)
