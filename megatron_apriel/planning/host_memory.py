"""How much memory this machine and the control groups around this process leave to it. No torch.

A process in a container or a batch job may have less than its machine: every control group that it is in has a limit,
and what all processes of the group use counts, their cached files too, but these give way. Linux has two versions of
control groups, which say the same in different files. What cannot be read sets no limit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

SPARE = 0.1
"""Part of what is free that is left to everything else: data, the program, the system's buffers."""
_TASKS = re.compile(r"([0-9]+)(?:\(x([0-9]+)\))?")
_UNLIMITED = 1 << 60
"""The first version of control groups writes some such number where there is no limit."""


@dataclass(frozen=True)
class Room:
    """Bytes that are free, and in whose words."""

    free: int
    of: str


def free_host_memory(root: Path = Path("/")) -> Room:
    """The least that the machine and any control group leave.

    Args:
        root: where the system's own files begin; another one in tests.
    """
    return min([_machine(root), *_groups(root)], key=lambda room: room.free)


def ranks_of_this_host() -> int:
    """How many processes of the run share this machine, by what ``torchrun`` or Slurm says."""
    if local := os.environ.get("LOCAL_WORLD_SIZE"):
        return int(local)
    # Of the step's hosts in their order, as 8(x2),4. What sbatch was given is not there if it was a number for all.
    counts = [
        int(tasks)
        for tasks, hosts in _TASKS.findall(os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
        for _ in range(int(hosts or 1))
    ]
    host = os.environ.get("SLURM_NODEID", "")
    if host.isdecimal() and int(host) < len(counts):
        return counts[int(host)]
    return int(os.environ.get("SLURM_NTASKS_PER_NODE") or 1)


def _machine(root: Path) -> Room:
    lines = _text(root / "proc/meminfo").splitlines()
    amounts = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if rest.split()}
    return Room(1024 * amounts.get("MemAvailable", _UNLIMITED), "the machine")


def _groups(root: Path) -> Iterator[Room]:
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            mount, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "")
        elif "memory" in controllers.split(","):
            mount, names = root / "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
        else:
            continue
        # Inside a container the path may be the host's, of which only the end, or nothing, can be seen.
        for place in [PurePosixPath(path), *PurePosixPath(path).parents]:
            room = _group(mount / str(place).lstrip("/"), *names)
            if room is not None:
                yield Room(room, f"control group {place}")


def _group(directory: Path, limit: str, usage: str, prefix: str) -> int | None:
    most, used = _text(directory / limit).strip(), _text(directory / usage).strip()
    if not most.isdigit() or not used.isdigit() or int(most) >= _UNLIMITED:
        return None
    stat = dict(line.split(" ", 1) for line in _text(directory / "memory.stat").splitlines() if " " in line)
    cached = sum(int(stat.get(f"{prefix}{name}_file", 0)) for name in ("inactive", "active"))
    return max(int(most) - int(used) + cached, 0)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""
