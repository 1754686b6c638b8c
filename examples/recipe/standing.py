"""Where the chain stands: which products are there, which jobs are queued or running, how far each stage has come."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from examples.recipe.chain import Step, missing
from examples.recipe.record import Record, logs_below
from examples.recipe.scheduler import Job
from megatron_apriel.errors import brief
from megatron_apriel.inputs import open_input
from megatron_apriel.tables import figures, lines_of, standard_output

WIDTH = 120
START_OF_ATTEMPT = b"---- attempt "
"""Before every start of the ranks, in a job's log (``examples/launch.sh``)."""
_TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class Standing:
    """The chain at one moment.

    Attributes:
        steps: by name.
        runs: directory of the runs.
        record: what was submitted for it.
        jobs: what Slurm knows of these jobs; None where it does not answer.
    """

    steps: Mapping[str, Step]
    runs: Path
    record: Record
    jobs: Mapping[str, Job] | None

    @cached_property
    def live(self) -> dict[str, Job]:
        """By step, the jobs that run or will: a job behind one that failed never runs, and Slurm is about to cancel it.

        Where Slurm did not answer, there is none.
        """
        found: dict[str, Job] = {}
        for name, step in self.steps.items():
            job = self.job_of(name)
            if job is None or not job.live:
                continue
            may_run = all(self._may_end_well(number, step, found) for number in self.record.latest[name].after)
            if job.state != "PENDING" or may_run:
                found[name] = job
        return found

    def job_of(self, name: str) -> Job | None:
        """What Slurm knows of a step's latest job. A job of another name has its number by chance."""
        submitted = self.record.latest.get(name)
        job = self.jobs.get(submitted.job) if submitted is not None and self.jobs is not None else None
        return job if job is not None and job.name == name else None

    def _may_end_well(self, number: str, step: Step, live: Mapping[str, Job]) -> bool:
        """Whether a job that ``step``'s job waits for has ended well, or still may."""
        job = self.jobs.get(number) if self.jobs is not None else None
        if job is not None and job.state == "COMPLETED":
            return True
        own = [name for name in step.before if name in self.record.latest and self.record.latest[name].job == number]
        return any(name in live or self.steps[name].done for name in own)

    @cached_property
    def missing(self) -> list[Step]:
        """Steps whose products are wanted and not there, in order; some of them may be :attr:`live`."""
        return missing(self.steps)

    def table(self) -> list[str]:
        """The chain for a person to read, a line for each step."""
        table = figures("step", "job", "state", "why it waits", "attempts", "reached", "product", words=(0, 2, 3, 6))
        for name, step in self.steps.items():
            submitted = self.record.latest.get(name)
            table.add_row(
                name,
                submitted.job if submitted is not None else "-",
                self._state(step),
                self._reason(step),
                str(attempts(self.runs, name) or "-") if step.stage else "",
                reached(step) if step.stage else "",
                str(step.product.relative_to(self.runs)) if step.done else "-",
            )
        return lines_of(table, standard_output(WIDTH).width)

    def _state(self, step: Step) -> str:
        job = self.job_of(step.name)
        if job is not None and (job.live or not step.done):
            return job.state.lower() if step.name in self.live or not job.live else "never runs"
        if step.done:
            return "done"
        if step not in self.missing:
            return "not needed"
        if step.name not in self.record.latest:
            return "not submitted"
        return "ended" if self.jobs is not None else "unknown"

    def _reason(self, step: Step) -> str:
        job = self.job_of(step.name)
        if job is None or job.state != "PENDING":
            return ""
        before = [name for name in step.before if self.record.latest.get(name) and not self.steps[name].done]
        if step.name not in self.live:
            return f"{', '.join(before) or 'a job before it'} did not end well"
        if job.reason == "Dependency" and before:
            return f"for {', '.join(before)}"
        return f"{job.reason}, from {job.start.replace('T', ' ')}" if job.start else job.reason

    def failed(self) -> Iterator[str]:
        """A line for each job that ended without its product: where its log is, and what that says last."""
        if self.jobs is None:
            return
        for step in self.missing:
            submitted, job = self.record.latest.get(step.name), self.job_of(step.name)
            if submitted is None or (job is not None and job.live):
                continue
            log, name = log_of(self.runs, step.name, submitted.job), f"{step.name}: job {submitted.job}"
            if log.exists():
                yield f"{name} ended without its product; {log} ends:"
                yield f"    {brief(last_line(log), WIDTH - 4)}"
            elif job is not None and job.state == "FAILED":
                yield f"{name} failed and wrote no log; its node must be able to write {log}"


def log_of(runs: Path, name: str, job: str) -> Path:
    """The log of a step's job."""
    return logs_below(runs) / f"{name}-{job.partition(';')[0]}.log"


def attempts(runs: Path, name: str) -> int:
    """How often a stage's ranks were started, by its logs."""
    pattern = re.compile(rf"{re.escape(name)}-[0-9]+\.log")
    logs = logs_below(runs)
    found = [log for log in logs.iterdir() if pattern.fullmatch(log.name)] if logs.is_dir() else []
    count = 0
    for log in found:
        with open_input(log) as file:
            count += sum(line.startswith(START_OF_ATTEMPT) for line in file)
    return count


def reached(step: Step) -> str:
    """``120 of 800`` steps of a stage, by its newest record."""
    for line in reversed(_tail(step.product.parent / "metrics.jsonl")):
        try:
            record = json.loads(line)
            return f"{int(record['step']):,} of {int(record['steps']):,}"
        except (ValueError, KeyError, TypeError):
            continue  # cut off, or not about a step
    return "-"


def last_line(log: Path) -> str:
    lines = [line for line in _tail(log) if line.strip()]
    return lines[-1].strip() if lines else "nothing"


def _tail(path: Path) -> list[str]:
    """The lines at a file's end; none where it is not there."""
    try:
        with open_input(path) as file:
            file.seek(max(file.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
            return file.read().decode("utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
