"""Requests to stop: SIGTERM, Slurm's warning signal, Ctrl-C, and the end of the job's time.

A request is only noted here; the loop asks after each step, lets all ranks agree, saves, and ends with an exit code
that scripts can act on. A second signal of the same kind is not waited for: the default action takes place.
"""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

from megatron_apriel.errors import ExitCode

WATCHED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Whether, and why, this process was asked to stop. Use as a context manager around the loop.

    Args:
        margin_s: seconds before the end of a Slurm job's time (``SLURM_JOB_END_TIME``, seconds since the epoch) at
            which a stop is requested even if no signal came.
    """

    def __init__(self, margin_s: int = 300) -> None:
        self.reason = ""
        self.exit_code = ExitCode.OK
        end = os.environ.get("SLURM_JOB_END_TIME", "")
        self._deadline = float(end) - margin_s if end.isdigit() else float("inf")
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        for number in WATCHED:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
        self.exit_code = ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.REQUEUE
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    def poll(self) -> bool:
        """Whether this process wants to stop after the current step."""
        if not self.reason and time.time() > self._deadline:
            self.reason, self.exit_code = "the job's time is nearly over", ExitCode.REQUEUE
        return bool(self.reason)

    def adopt(self, code: int) -> None:
        """Take over a request that another rank received."""
        if not self.reason:
            self.reason, self.exit_code = "another rank was asked to stop", ExitCode(code)
