"""Requests to stop: SIGTERM, Slurm's warning signal, Ctrl-C, and the end of the job's time.

The first signal is answered at once and only noted: the loop asks after each step, lets all ranks agree, saves, and
ends with an exit code that scripts can act on. A second one ends this process now, after the words where the next
start resumes; what is being written then is left under a name that is never read. But a SIGTERM after a SIGTERM of
Slurm's is its own: it sends one at the beginning of the time of grace, one at the end, and then kills. A save that is
nearly done by then may still end.

Python calls a signal's handler between two of its own instructions, and the main thread may be in one, the backward
pass of a step, for minutes. So a thread answers: the interpreter writes the number of a signal into a pipe when it
comes, whatever the main thread is doing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType

from megatron_apriel.errors import ConfigError, ExitCode, ended_by
from megatron_apriel.formats.run_directory import checkpoints_in
from megatron_apriel.parallel.agreement import greatest
from megatron_apriel.terminal import say
from megatron_apriel.train import early_requests

WATCHED = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
WARNING = signal.SIGUSR1
"""Slurm's, before the end of a job: it may come just before or after a SIGTERM, and is no second request then."""
_PATIENCE = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
"""How long torchrun waits for ranks that it has passed a signal to, where its option does not say it."""


def _end_of_job() -> float:
    """When the Slurm job's time ends, in seconds since the epoch; infinite where that is not known."""
    end = os.environ.get("SLURM_JOB_END_TIME", "")
    return float(end) if end.isdigit() else float("inf")


def check_time_left(margin_s: int) -> None:
    """Raise ConfigError if a run that begins now would be stopped by the clock before its first step."""
    left = _end_of_job() - time.time()
    if left <= margin_s:
        raise ConfigError(
            f"the job ends in {max(left, 0):.0f} s, and faults.save_before_end_of_job_s={margin_s} of them are for"
            " saving.",
            "No step would be made, in this job or in one that is started again with the same limit.",
            "Give the job a longer limit (sbatch --time), or lower that setting to what a save takes.",
        )


class StopRequest:
    """Whether, and why, this process was asked to stop. Use as a context manager around the loop, in the main thread.

    Args:
        margin_s: seconds before the end of a Slurm job's time (``SLURM_JOB_END_TIME``, seconds since the epoch) at
            which a stop is requested even if no signal came.
        checkpoints: folder of the run's, from which the next start resumes.
        rank: of this process; all but the first say it.

    Attributes:
        when: at what a request stops now, in words.
    """

    def __init__(self, margin_s: int = 300, checkpoints: Path | None = None, rank: int = 0) -> None:
        self.reason = ""
        self.exit_code = ExitCode.OK
        self.when = "before the first step"
        self._deadline = _end_of_job() - margin_s
        self._checkpoints, self._prefix = checkpoints, f"rank {rank}: " if rank else ""
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._thread = threading.Thread(target=self._answer_all, args=(reader,), name="stop-request", daemon=True)
        self._thread.start()
        self._previous_writer = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in WATCHED:
            self._previous[number] = signal.signal(number, self._note)
        for early in early_requests.noted():
            self._note(early, None)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        signal.set_wakeup_fd(self._previous_writer)
        os.close(self._writer)
        self._thread.join()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.reason:
            self.reason = signal.Signals(number).name
            self.exit_code = ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.REQUEUE

    def _answer_all(self, reader: int) -> None:
        """In a thread: answer every signal whose number comes through the pipe, until it is closed."""
        asked: set[int] = set()
        while numbers := os.read(reader, 64):
            for number in numbers:
                if number in WATCHED:
                    self._answer(signal.Signals(number), asked)
                    asked.add(number)
        os.close(reader)

    def _answer(self, received: signal.Signals, asked: set[int]) -> None:
        kind = {WARNING} if received == WARNING else set(WATCHED) - {WARNING}
        slurms = received == signal.SIGTERM and "SLURM_JOB_ID" in os.environ
        again = bool(asked & kind) and not (slurms and asked & kind == {signal.SIGTERM})
        if again:
            words = f"{received.name} again: stopping now; {self._next_start()}"
        elif received in asked:
            words = f"{received.name} again: still stopping {self.when}"
        else:
            how = "SIGINT" if slurms else "again"
            words = f"{received.name}: stopping {self.when}; {how} to stop now"
            if not self._prefix and "TORCHELASTIC_RUN_ID" in os.environ and _PATIENCE not in os.environ:
                words += f"; torchrun kills its ranks after 30 s, unless {_PATIENCE} or its option says longer"
        try:
            with contextlib.suppress(OSError, ValueError):  # nobody reads any more
                say(f"{self._prefix}{words}")
        finally:
            if again:
                os._exit(ended_by(received))

    def _next_start(self) -> str:
        paths = list(checkpoints_in(self._checkpoints).values()) if self._checkpoints is not None else []
        return f"the next start resumes from {paths[-1]}" if paths else "there is no checkpoint to resume from"

    def poll(self) -> bool:
        """Whether this process wants to stop."""
        if not self.reason and time.time() > self._deadline:
            self.reason, self.exit_code = "the job's time is nearly over", ExitCode.REQUEUE
        return bool(self.reason)

    def agreed(self) -> bool:
        """Whether any rank wants to stop, which then all do; collective."""
        if code := greatest(int(self.exit_code) if self.poll() else 0):
            self.adopt(code)
        return bool(code)

    def adopt(self, code: int) -> None:
        """End with ``code``, on which the ranks have agreed: they may have received different requests, or none."""
        self.reason = self.reason or "another rank was asked to stop"
        self.exit_code = ExitCode(code)
