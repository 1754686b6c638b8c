"""What was submitted for a directory of runs: one line for each job, in ``logs/submitted.jsonl`` below it.

Slurm knows jobs by number only. The record says which of them are this chain's, so that no second copy is submitted.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_apriel.errors import ConfigError, OutputError
from megatron_apriel.inputs import open_input
from megatron_apriel.locks import HeldError, take_lock


@dataclass(frozen=True)
class Submitted:
    """A job of the chain.

    Attributes:
        step: name of its step.
        job: its number, with ``;CLUSTER`` behind it where sbatch named one.
        after: numbers of the jobs that it waits for.
        settings: of the stage, beyond its file.
    """

    step: str
    job: str
    after: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()


def logs_below(runs: Path) -> Path:
    """The one directory of the chain's logs."""
    return runs / "logs"


class Record:
    """The jobs of one directory of runs.

    Attributes:
        latest: by step, the job that was submitted last.
    """

    def __init__(self, runs: Path) -> None:
        self.path = logs_below(runs) / "submitted.jsonl"
        self.latest: dict[str, Submitted] = {}
        if not self.path.exists():
            return
        with open_input(self.path) as file:
            for number, line in enumerate(file, 1):
                try:
                    values = json.loads(line)
                    job = Submitted(
                        str(values["step"]), str(values["job"]), tuple(map(str, values["after"])),
                        tuple(map(str, values["settings"])),
                    )  # fmt: skip
                except (ValueError, KeyError, TypeError):
                    raise ConfigError(
                        f"line {number} of {self.path} is not of a job that was submitted.",
                        "Without it nobody knows which jobs are in the queue for these runs.",
                        "Look with squeue --me; remove the file if none of them is.",
                    ) from None
                self.latest[job.step] = job

    def add(self, job: Submitted) -> None:
        """Write a job down, at once: what follows may fail.

        Raises:
            OutputError: it cannot be written; nothing of it is left, so that the record can still be read.
        """
        with self.path.open("ab", buffering=0) as file:
            begun, line = file.seek(0, os.SEEK_END), (json.dumps(asdict(job)) + "\n").encode()
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError as error:
                file.truncate(begun)
                raise OutputError(
                    f"{job.step} was submitted as job {job.job}, but {self.path} cannot be written: {error.strerror}.",
                    "Nobody would know that this job is in the queue, and a second one would be submitted.",
                    f"Cancel it (scancel {job.job.partition(';')[0]}), make room, and call this again.",
                ) from None
        self.latest[job.step] = job


@contextlib.contextmanager
def submitting(runs: Path) -> Iterator[Record]:
    """The record, while nobody else submits for the same runs; makes the directory of logs.

    Raises:
        ConfigError: somebody else does.
        OutputError: the directory cannot be written.
    """
    logs = logs_below(runs)
    try:
        logs.mkdir(parents=True, exist_ok=True)
        lock = take_lock(logs / ".submitting")
    except HeldError as error:
        raise ConfigError(
            f"these runs are being submitted at this moment: {error}.", fix="Wait, then look with --status."
        ) from None
    except OSError as error:
        raise OutputError(
            f"{logs} cannot be written: {error.strerror or error}.",
            "The logs of all jobs go there.",
            "Set RUN_ROOT to a directory that is yours, or change its permissions.",
        ) from None
    with lock:
        yield Record(runs)
