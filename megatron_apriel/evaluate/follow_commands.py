"""The commands that follow a run: what makes a Hugging Face directory of a checkpoint, and what evaluates one.

Each is a process of its own, which a person could start as well: its output is shown, it resumes where it was stopped,
and its failure ends nothing else.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Protocol

from megatron_apriel.config.schema import StageConfig
from megatron_apriel.errors import ExitCode
from megatron_apriel.terminal import note, say
from megatron_apriel.workers import end_with_parent

_ENDING_SECONDS = 90.0
_MARGIN_S = 120
"""Before the end of a job, for an engine to end."""


class Figures(Protocol):
    """Where a run's figures go."""

    def take_scores(self) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Commands:
    """What is done with a checkpoint, and how its scores get into the run's figures.

    Attributes:
        converting, evaluating: the tools.
        options: of the evaluation, that its stage does not say: what serves the model, and what judges.
        figures: opens the figures of a run that is not running.
    """

    converting: Path
    evaluating: Path
    options: Sequence[str]
    figures: Callable[[StageConfig], Figures]

    def export(self, checkpoint: Path, destination: Path) -> int:
        """Make a Hugging Face directory of a checkpoint; the exit code."""
        return run([sys.executable, str(self.converting), str(checkpoint), str(destination), "--to", "hf"])

    def evaluate(self, config: StageConfig, model: Path, name: str, out: Path, earlier: Path | None) -> int:
        """Evaluate a model as its stage says, with the items of an earlier evaluation if any; the exit code."""
        section = config.evaluate
        assert section is not None, "asked for by the stage"
        settings = {
            "benchmarks": ",".join(section.benchmarks), "data": section.data, "pictures": section.pictures,
            "samples": section.samples, "limit": section.limit, "runs": section.runs,
            "temperature": section.temperature, "max-tokens": section.max_tokens, "items-from": earlier,
        }  # fmt: skip
        words = [word for key, value in settings.items() if value is not None for word in (f"--{key}", str(value))]
        command = [sys.executable, str(self.evaluating), str(out), "--model", str(model), "--name", name]
        return run([*command, *words, *self.options])


def run(command: Sequence[str]) -> int:
    """Run a command with its output shown; its exit code. It ends with this process."""
    say("", f"$ {shlex.join(command)}")
    own = os.getpid()
    # Not as a context, which waits for the command's own end where a signal comes before the block below: without one
    # the command ends with this process.
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, preexec_fn=lambda: end_with_parent(own, signal.SIGTERM)
    )
    try:
        return process.wait()
    except BaseException:
        # A signal to this process alone.
        _end(process)
        raise


def _end(process: subprocess.Popen[bytes]) -> None:
    """Let a command end what it has started; another signal to this process does not cut that short."""
    process.terminate()
    end = time.monotonic() + _ENDING_SECONDS
    while process.poll() is None and (left := end - time.monotonic()) > 0:
        with suppress(subprocess.TimeoutExpired, KeyboardInterrupt, SystemExit):
            process.wait(left)
    process.kill()


@contextmanager
def ended_before_job() -> Iterator[None]:
    """End the block, with the exit code that asks for another start, before a Slurm job's time is over.

    At Slurm's warning (SIGUSR1), or by the clock where the environment has the end of the job.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        note("the job's time is nearly over")
        raise SystemExit(ExitCode.REQUEUE)

    end = os.environ.get("SLURM_JOB_END_TIME", "")
    before = {number: signal.signal(number, stop) for number in (signal.SIGUSR1, signal.SIGALRM)}
    if end.isdigit():
        signal.setitimer(signal.ITIMER_REAL, max(int(end) - time.time() - _MARGIN_S, 1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
