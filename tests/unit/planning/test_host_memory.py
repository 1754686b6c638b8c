"""What a machine and its control groups leave, from files laid out as Linux has them in both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_apriel.planning.host_memory import Room, free_host_memory, ranks_of_this_host

GIB = 2**30


def lay_out(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": f"MemTotal: 1 kB\nMemAvailable:   {100 * GIB // 1024} kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def second(limit: str, used: int, cached: int = 0) -> dict[str, str]:
    return {
        "memory.max": f"{limit}\n",
        "memory.current": f"{used}\n",
        "memory.stat": f"anon 5\ninactive_file {cached}\n",
    }


def first(limit: int, used: int, cached: int = 0) -> dict[str, str]:
    stat = f"inactive_file 1\ntotal_inactive_file {cached}\ntotal_active_file 7\n"
    return {"memory.limit_in_bytes": f"{limit}", "memory.usage_in_bytes": f"{used}", "memory.stat": stat}


def at(place: str, files: dict[str, str]) -> dict[str, str]:
    return {f"sys/fs/cgroup/{place}/{name}".replace("//", "/"): text for name, text in files.items()}


V2, V1 = {"proc/self/cgroup": "0::/user/job\n"}, {"proc/self/cgroup": "5:cpu:/x\n4:memory,hugetlb:/slurm/job\n"}
CASES = {
    "no groups": ({}, 100 * GIB, "the machine"),
    "second, no limit": (V2 | at("user/job", second("max", GIB)), 100 * GIB, "the machine"),
    "second": (V2 | at("user/job", second(str(64 * GIB), 10 * GIB)), 54 * GIB, "control group /user/job"),
    "second, cached files give way": (
        V2 | at("user/job", second(str(64 * GIB), 10 * GIB, 4 * GIB)), 58 * GIB, "control group /user/job",
    ),
    "second, of a group around it": (
        V2 | at("user/job", second("max", GIB)) | at("user", second(str(32 * GIB), 30 * GIB)), 2 * GIB,
        "control group /user",
    ),
    "second, full": (V2 | at("user/job", second(str(GIB), 2 * GIB)), 0, "control group /user/job"),
    "second, of the whole container": (V2 | at("", second(str(8 * GIB), GIB)), 7 * GIB, "control group /"),
    "first": (V1 | at("memory/slurm/job", first(64 * GIB, 10 * GIB, 100)), 54 * GIB + 107, "control group /slurm/job"),
    "first, no limit": (V1 | at("memory/slurm/job", first(9223372036854771712, GIB)), 100 * GIB, "the machine"),
    "first, path of the host": (V1 | at("memory", first(16 * GIB, GIB)), 15 * GIB + 7, "control group /"),
    "what cannot be understood": ({"proc/self/cgroup": "\n0\nx:y\n::\n"}, 100 * GIB, "the machine"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_least_that_anyone_leaves(name: str, tmp_path: Path) -> None:
    files, free, of = CASES[name]
    assert free_host_memory(lay_out(tmp_path, files)) == Room(free, of)


def test_this_machine_has_some() -> None:
    assert 0 < free_host_memory().free < 1 << 60


@pytest.mark.parametrize(
    ("variables", "ranks"),
    [({}, 1), ({"LOCAL_WORLD_SIZE": "8"}, 8), ({"SLURM_NTASKS_PER_NODE": "4"}, 4),
     ({"LOCAL_WORLD_SIZE": "2", "SLURM_NTASKS_PER_NODE": "4"}, 2),
     # srun --ntasks=20 over three hosts: Slurm says how many stand on each, and nothing of tasks per node.
     ({"SLURM_STEP_TASKS_PER_NODE": "8(x2),4", "SLURM_NODEID": "1"}, 8),
     ({"SLURM_STEP_TASKS_PER_NODE": "8(x2),4", "SLURM_NODEID": "2"}, 4),
     ({"SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_NODEID": "0", "SLURM_NTASKS_PER_NODE": "2"}, 8),
     ({"SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_NTASKS_PER_NODE": "2"}, 2),
     ({"SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_NODEID": "0", "LOCAL_WORLD_SIZE": "4"}, 4)],
)  # fmt: skip
def test_ranks_that_share_it(variables: dict[str, str], ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE", "SLURM_STEP_TASKS_PER_NODE", "SLURM_NODEID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ranks_of_this_host() == ranks
