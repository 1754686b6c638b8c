"""What is asked of Slurm for the chain: to submit a job, and what became of jobs. Only this file calls its programs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from megatron_apriel.errors import ConfigError, ServerError, shown

PATIENCE_S = 120
"""For one answer: a controller under load answers late, and Slurm's programs try again by themselves meanwhile."""

_FINISHED = {
    "COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY",
    "REVOKED",
}  # fmt: skip
_OF_ALL_JOBS = (
    "SBATCH_ARRAY_INX", "SBATCH_ERROR", "SBATCH_JOB_NAME", "SBATCH_OPEN_MODE", "SBATCH_OUTPUT", "SBATCH_WAIT",
)  # fmt: skip
"""Variables of sbatch that say what the chain itself says for each job, or that it cannot work with."""
_FIELDS = "%A|%T|%S|%r|%j"


@dataclass(frozen=True)
class Job:
    """A job that Slurm still knows.

    Attributes:
        state: in Slurm's words, as PENDING.
        start: when it began or is expected to; empty where that is not known.
        reason: why it waits, in Slurm's words, as Dependency.
    """

    number: str
    name: str
    state: str
    start: str
    reason: str

    @property
    def live(self) -> bool:
        """Whether it runs or may still run."""
        return self.state not in _FINISHED and "DependencyNeverSatisfied" not in self.reason


def is_here() -> bool:
    return shutil.which("sbatch") is not None


def submit(arguments: Sequence[str], gpus: bool) -> str:
    """Submit a job; returns its number, with ``;CLUSTER`` behind it where sbatch names one.

    Args:
        arguments: of sbatch.
        gpus: whether variables of sbatch that ask for GPUs are meant for this job.

    Raises:
        ServerError: sbatch refused it, or answered something else.
    """
    unwanted = set() if gpus else {name for name in os.environ if name.startswith("SBATCH_") and _asks_for_gpus(name)}
    answer = _ask(["sbatch", "--parsable", *arguments], {*_OF_ALL_JOBS, *unwanted})
    # Wrappers of sites may print more, and may not know --parsable.
    for line in reversed(answer.split("\n")):
        if match := re.fullmatch(
            r"(?:Submitted batch job )?([0-9]+)((?:;[\w.-]+)?)(?: on cluster [\w.-]+)?", line.strip()
        ):
            return match[1] + match[2]
    raise ServerError(
        f"sbatch answered {shown(answer.strip(), 200)} instead of a job's number.",
        "The job may be in the queue, or not.",
        "Look with squeue --me, and cancel what should not be there.",
    )


def _asks_for_gpus(name: str) -> bool:
    return "GPU" in name or (name in ("SBATCH_GRES", "SBATCH_TRES_PER_TASK") and "gpu" in os.environ[name])


def look_up(numbers: Iterable[str]) -> dict[str, Job]:
    """Jobs by number, as :func:`submit` returned it. Those that Slurm has forgotten are left out.

    Raises:
        ServerError: squeue does not answer.
    """
    clusters: dict[str, list[str]] = {}
    for number in numbers:
        clusters.setdefault(number.partition(";")[2], []).append(number.partition(";")[0])
    found: dict[str, Job] = {}
    for cluster, wanted in clusters.items():
        where = [f"--clusters={cluster}"] if cluster else []
        command = ["squeue", "--noheader", *where, "--states=all", f"--format={_FIELDS}", f"--jobs={','.join(wanted)}"]
        try:
            answer = _ask(command, {"SLURM_CLUSTERS"})
        except ServerError as error:
            # What it says if it knows none of them.
            if "Invalid job id" not in str(error):
                raise
            answer = ""
        for line in answer.split("\n"):
            parts = [part.strip() for part in line.split("|", 4)]
            if len(parts) == 5 and parts[0] in wanted:
                start = "" if parts[2] in ("N/A", "NONE", "Unknown") else parts[2]
                found[f"{parts[0]};{cluster}" if cluster else parts[0]] = Job(
                    parts[0], parts[4], parts[1], start, parts[3]
                )
    return found


def _ask(command: Sequence[str], without: set[str]) -> str:
    """Standard output of one of Slurm's programs.

    Variables with which a user changes what squeue shows are not passed on, and ``without`` are not.
    """
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_") and name not in without
    }
    environment["SLURM_TIME_FORMAT"] = "standard"
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            check=False, timeout=PATIENCE_S,
        )  # fmt: skip
    except FileNotFoundError:
        raise ConfigError(f"{command[0]} is not found.", fix="Use a machine from which jobs are submitted.") from None
    except subprocess.TimeoutExpired:
        raise ServerError(
            f"{command[0]} did not answer within {PATIENCE_S} s.",
            "A job that was to be submitted may be in the queue, or not." if command[0] == "sbatch" else "",
            "Try again when Slurm answers (sinfo); look with squeue --me first.",
        ) from None
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip() or "nothing"
        raise ServerError(f"{command[0]} ended with exit code {done.returncode}; it says: {shown(said, 400)}")
    return done.stdout
