"""Submits what is missing of the chain: each job waits for those before it, and nothing is queued twice."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from examples.recipe import scheduler
from examples.recipe.chain import Step
from examples.recipe.options import Choice
from examples.recipe.record import Submitted, logs_below
from examples.recipe.standing import Standing
from megatron_apriel.errors import ConfigError, ServerError, listed
from megatron_apriel.terminal import note, say

VARIABLES = (
    "PROJECT_ROOT", "RUN_ROOT", "DATA_ROOT", "MODEL_ROOT", "SOURCE_MODEL", "NPROC_PER_NODE", "CONTAINER_IMAGE",
    "CONTAINER_MOUNTS", "PYTHON", "SRUN_ARGS", "MASTER_PORT", "ATTEMPTS", "RETRY_AFTER", "SRUN_WAIT", "SKIP_CHECK",
)  # fmt: skip
"""What the scripts read (``examples/launch.sh``): handed to the jobs even where they get nothing else."""


@dataclass(frozen=True)
class Request:
    """What the jobs are to be like.

    Attributes:
        scheduling: choices of options that sbatch has under the same name.
        settings: of the stages.
        further: further words for sbatch.
        for_tools: such words for the jobs without GPUs.
    """

    scheduling: tuple[Choice, ...]
    settings: Choice
    further: Choice
    for_tools: tuple[str, ...] = ()

    def arguments(self, step: Step, runs: Path, after: list[str]) -> list[str]:
        """What sbatch is called with for a step, but for ``--parsable``."""
        words = [f"--job-name={step.name}", f"--output={_literal(logs_below(runs).absolute())}/%x-%j.log"]
        for choice in self.scheduling:
            if (value := choice.last_of(step)) is not None:
                words.append(f"{choice.option}={value}")
        words += ([] if step.stage else list(self.for_tools)) + self.further.of(step)
        if exported := _exported(words):
            words = [word for word in words if not word.startswith("--export=")] + [f"--export={','.join(exported)}"]
        if after:
            numbers = ":".join(number.partition(";")[0] for number in after)
            words += [f"--dependency=afterok:{numbers}", "--kill-on-invalid-dep=yes"]
        return [*words, *step.command, *self.settings.of(step)]


def _literal(path: Path) -> str:
    """A path as sbatch takes it for a file's name, in which it replaces ``%j`` and the like.

    Raises:
        ConfigError: with a backslash in it, it replaces nothing, and all jobs would write to one file.
    """
    if "\\" in str(path):
        raise ConfigError(
            f"there is a backslash in {path}, where the logs go.",
            "Slurm then does not put the jobs' names and numbers into the names of their logs.",
            "Set RUN_ROOT to a directory without one.",
        )
    return str(path).replace("%", "%%")


def _exported(words: list[str]) -> list[str]:
    """What jobs are to get that would not get what the scripts read; empty where they get all of the environment."""
    given = [word.partition("=")[2] for word in words if word.startswith("--export=")]
    names = [name for name in (given or [os.environ.get("SBATCH_EXPORT", "")])[-1].split(",") if name]
    if not names or "ALL" in (name.upper() for name in names):
        return []
    if names[0].upper() in ("NONE", "NIL"):
        names = []
    there = {name.partition("=")[0] for name in names}
    return [*names, *(name for name in VARIABLES if name in os.environ and name not in there)]


def submit(standing: Standing, request: Request) -> None:
    """Submit the steps that are missing and have no job.

    Raises:
        ConfigError: all of them have one.
        ServerError: Slurm did not say what is queued, or refused a job; what was submitted before stays.
    """
    if standing.jobs is None:
        raise ServerError(
            "Slurm does not say whether jobs of these runs are queued, so none are submitted.",
            f"Submitted before: {_numbers(standing)}.",
            f"Try again when squeue answers. If these jobs are certainly gone, remove {standing.record.path}.",
        )
    to_submit = [step for step in standing.missing if step.name not in standing.live]
    if standing.missing and not to_submit:
        live = {name: job.number for name, job in standing.live.items()}
        jobs = listed((f"{name} {job}" for name, job in live.items()), len(live))
        raise ConfigError(
            f"this chain is in the queue already: {jobs}.",
            f"A second copy would write to the same directories in {standing.runs}.",
            f"Look at it with --status. To replace it: scancel {' '.join(live.values())}, then submit again. A second"
            " chain beside it needs a RUN_ROOT of its own.",
        )

    def queue(step: Step, after: list[str], arguments: list[str]) -> str:
        settings = tuple(request.settings.of(step))
        before = standing.record.latest.get(step.name)
        if before is not None and before.settings != settings:
            note(f"{step.name}: was submitted with {_words(before.settings)}, and is now with {_words(settings)}")
        try:
            number = scheduler.submit(arguments, gpus=step.stage)
        except ServerError as error:
            outcome = "may not have been submitted" if error.why else "was not submitted"
            raise ServerError(
                f"{step.name} {outcome}: {error.what}",
                f"{error.why} Submitted for these runs were {_numbers(standing)}.".lstrip(),
                error.fix or "Call this again to submit the rest, or cancel those with scancel.",
            ) from None
        standing.record.add(Submitted(step.name, number, tuple(after), settings))
        say(f"{step.name:18} job {number.partition(';')[0]}")
        return number

    _walk(standing, request, queue)


def dry_run(standing: Standing, request: Request) -> None:
    """Print the commands that :func:`submit` would give."""

    def show(step: Step, after: list[str], arguments: list[str]) -> str:
        say(f"{step.name:18} {shlex.join(['sbatch', '--parsable', *arguments])}")
        return f"JOB_OF_{step.name}"

    _walk(standing, request, show)


def _walk(standing: Standing, request: Request, submit_one: Callable[[Step, list[str], list[str]], str]) -> None:
    """Let ``submit_one`` submit each step that is missing and has no job, in order; say why the others are left out.

    It gets the step, the numbers of the jobs that it waits for and sbatch's arguments, and returns the job's number.
    """
    numbers = {name: standing.record.latest[name].job for name in standing.live}
    wanted = {step.name for step in standing.missing}
    for name, step in standing.steps.items():
        if step.done:
            say(f"{name:18} {step.product} is there already")
        elif name not in wanted:
            say(f"{name:18} is not needed: what follows it is there already")
        elif name in numbers:
            job = standing.live[name]
            say(f"{name:18} job {job.number} is in the queue already ({job.state.lower()})")
        else:
            after = [numbers[before] for before in step.before if before in numbers]
            numbers[name] = submit_one(step, after, request.arguments(step, standing.runs, after))


def _words(settings: tuple[str, ...]) -> str:
    return shlex.join(settings) or "no settings"


def _numbers(standing: Standing) -> str:
    latest = standing.record.latest
    return listed((f"{name} {job.job}" for name, job in latest.items()), len(latest)) or "none"
