"""What a result was measured from and on: commit, versions, hardware, as far as the machine can say."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT


def commit() -> str:
    """The checked-out commit, abbreviated; ``unknown`` where there is no git repository."""
    return _say(["git", "rev-parse", "--short=12", "HEAD"]) or "unknown"


def is_dirty() -> bool:
    """Whether tracked files differ from that commit."""
    return bool(_say(["git", "status", "--porcelain", "--untracked-files=no"]))


def driver() -> str:
    """Version of the GPU's driver; ``unknown`` where there is none."""
    return _of_gpu("driver_version") or "unknown"


def device() -> str:
    """Name of the first GPU, as torch calls it; ``CPU`` where there is none."""
    return _of_gpu("name") or "CPU"


def processor() -> dict[str, Any]:
    """The hardware of a record that no GPU took part in."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "device": "CPU", "model": next(models, platform.processor()), "cores": len(os.sched_getaffinity(0)),
    }  # fmt: skip


def facts(
    benchmark: str, given_commit: str, environment: Mapping[str, Any], begun: datetime.datetime, gpus: int = 1
) -> dict[str, Any]:
    """The keys that every record of a result begins with; see ``benchmarks/report.py``.

    Args:
        benchmark: name of the script.
        given_commit: the commit, where it was named; else git is asked.
        environment: as :func:`benchmarks.measure.environment` gives it; at least ``device``.
        begun: when the measurement began.
        gpus: how many took part.
    """
    hardware: dict[str, Any] = {"device": environment["device"]}
    if environment["device"] != "CPU":
        hardware |= {"count": gpus, "driver": driver()}
        if "memory_gib" in environment:
            hardware["memory_gib"] = environment["memory_gib"]
        if gpus > 1:
            hardware["nvlink_multicast"] = "off" if os.environ.get("NCCL_NVLS_ENABLE") == "0" else "on"
    versions = dict(environment.get("versions", {}))
    if environment.get("cuda"):
        versions["CUDA"] = environment["cuda"]
    return {
        "benchmark": benchmark,
        "date": f"{begun:%Y-%m-%d %H:%M}",
        "command": shlex.join(["python", f"benchmarks/{benchmark}.py", *map(_without_place, sys.argv[1:])]),
        "commit": given_commit or commit(),
        "dirty": not given_commit and is_dirty(),
        "hardware": hardware,
        "versions": {"Python": environment.get("python", sys.version.split()[0]), **versions},
    }


def _without_place(word: str) -> str:
    """A word of the command line; of an absolute path its last name, since the rest describes one machine."""
    option, equals, value = word.rpartition("=")
    return f"{option}{equals}{Path(value).name}" if value.startswith("/") else word


def _of_gpu(field: str) -> str:
    """What nvidia-smi says of the first GPU, or nothing where there is none."""
    return (_say(["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader"]).splitlines() or [""])[0]


def _say(command: Sequence[str]) -> str:
    """What a command prints, or nothing where it cannot be run."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
