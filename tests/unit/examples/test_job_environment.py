"""What a job's environment does to its ranks: Slurm's word about the job, a user's wishes, what is left of others."""

from __future__ import annotations

from pathlib import Path

import pytest
from stand_ins import Stage, spooled


def test_variables_of_another_run_do_no_harm(slurm: Stage, tmp_path: Path) -> None:
    slurm.run(spooled(tmp_path, "sft"), RANK="3", WORLD_SIZE="64", MASTER_ADDR="elsewhere", MASTER_PORT="23456")
    assert slurm.calls("env") == [["", "23456", "", ""]]
    assert slurm.calls("fakepython")[1][-3:] == ["--world-size", "32", "--check-data"]


def test_what_the_submitting_shell_left_of_a_step_does_no_harm(slurm: Stage, tmp_path: Path) -> None:
    """As where sbatch is called inside of a step or an allocation."""
    script = spooled(tmp_path, "sft")
    slurm.run(script, SLURM_MEM_PER_CPU="100", SLURM_MEM_PER_NODE="4096", SLURM_RESTART_COUNT="abc")
    slurm.run(script, SLURM_MEM_PER_NODE="4096", SLURM_CPU_BIND="none")
    slurm.run(script, SLURM_CPU_BIND="mask_cpu:0x1", SLURM_CPU_BIND_TYPE="mask_cpu:", SLURM_CPU_BIND_LIST="0x1")
    assert slurm.calls("left") == [[], ["SLURM_CPU_BIND=none", "SLURM_MEM_PER_NODE=4096"], []]


def test_ranks_share_the_cores_of_the_step_that_starts_them(slurm: Stage, tmp_path: Path) -> None:
    script = spooled(tmp_path, "sft")
    slurm.run(script, SLURM_STEP_ID="0")
    slurm.run(script, SLURM_STEP_ID="0", ENVIRONMENT="BATCH")  # left of another job
    slurm.run(script)
    assert ["--overlap" in call for call in slurm.calls("srun")] == [True, False, False]


def test_cores_of_a_rank(slurm: Stage, tmp_path: Path) -> None:
    """As many as the smallest node gives, or as were asked for."""
    script = spooled(tmp_path, "sft")
    slurm.run(script, SLURM_JOB_CPUS_PER_NODE="104(x3),72")
    slurm.run(script, SLURM_JOB_CPUS_PER_NODE="104(x4)", SLURM_CPUS_PER_TASK="6")
    slurm.run(script, SLURM_CPUS_ON_NODE="4")  # fewer than ranks
    # An odd number of hardware threads takes one more: 6 x 18 are not there. 8 x 13 are all of them.
    slurm.run(script, SLURM_CPUS_ON_NODE="104", NPROC_PER_NODE="6")
    slurm.run(script, SLURM_CPUS_ON_NODE="104", NPROC_PER_NODE="8")
    slurm.run(script, SLURM_CPUS_ON_NODE="110", NPROC_PER_NODE="5")
    slurm.run(script, SLURM_JOB_CPUS_PER_NODE="94(x2),128", NPROC_PER_NODE="8")
    given = [[word for word in call if word.startswith("--cpus-per-task")] for call in slurm.calls("srun")]
    words = [word.partition("=")[2] for words in given for word in (words or [""])]
    assert words == ["9", "6", "", "16", "13", "22", "10"]


def test_ranks_of_a_node(slurm: Stage, tmp_path: Path) -> None:
    del slurm.environment["SLURM_NTASKS_PER_NODE"]
    script = spooled(tmp_path, "sft")
    slurm.run(script, SLURM_GPUS_ON_NODE="4", SLURM_TASKS_PER_NODE="1(x4)")
    slurm.run(script, SLURM_GPUS_ON_NODE="0", SLURM_TASKS_PER_NODE="2(x4)")  # a cluster without GPUs
    slurm.run(script, SLURM_GPUS_ON_NODE="4", NPROC_PER_NODE="1")
    given = [next(word for word in call if word.startswith("--ntasks=")) for call in slurm.calls("srun")]
    assert given == ["--ntasks=16", "--ntasks=8", "--ntasks=4"]
    assert "is not known" in slurm.run(script, code=2, SLURM_TASKS_PER_NODE="2(x3),1").stderr


def test_tasks_may_be_counted_for_all_nodes(slurm: Stage, tmp_path: Path) -> None:
    """With ``--ntasks``, sbatch takes the tasks a node that the script asks for as the most that there may be."""
    script = spooled(tmp_path, "sft")
    for given in ("32", "8", "4"):
        slurm.run(script, SLURM_NTASKS=given)
    slurm.run(script, SLURM_NTASKS="8", NPROC_PER_NODE="4")
    ranks = [next(word for word in call if word.startswith("--ntasks=")) for call in slurm.calls("srun")]
    assert ranks == ["--ntasks=32", "--ntasks=8", "--ntasks=4", "--ntasks=16"]
    refused = slurm.run(script, code=2, SLURM_NTASKS="9")
    assert "9 tasks cannot be spread evenly over 4 nodes." in refused.stderr and "--ntasks-per-node" in refused.stderr


WISHES = {
    "SLURM_CONSTRAINT": "gold", "SLURM_EXCLUSIVE": "1", "SLURM_GRES": "gpu:1", "SLURM_NO_KILL": "1",
    "SLURM_TIMELIMIT": "1", "SLURM_WORKING_DIR": "/nowhere", "SLURM_REMOTE_CWD": "/nowhere", "SLURM_STDOUTMODE": "x",
    "SLURM_STDERRMODE": "x", "SLURM_STDINMODE": "x", "SRUN_OUTPUT": "x", "SRUN_ERROR": "x", "SRUN_INPUT": "x",
    "SLURM_NTASKS_PER_GPU": "1", "SLURM_NTASKS_PER_TRES": "1", "SLURM_CLUSTERS": "other",
}  # fmt: skip
"""Variables of srun, by which a step would get less than its job, another place, or nothing at all."""


def test_wishes_of_the_shell_do_not_reach_srun(slurm: Stage, tmp_path: Path) -> None:
    kept = {"SLURM_MPI_TYPE": "pmi2", "SLURM_CPU_BIND": "none"}
    slurm.run(spooled(tmp_path, "sft"), FAKE_LEFT="|".join((*WISHES, *kept)), **WISHES, **kept)
    assert slurm.calls("left") == [["SLURM_CPU_BIND=none", "SLURM_MPI_TYPE=pmi2"]]


@pytest.mark.parametrize("name", ["SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK"])
def test_gpus_for_each_task_are_this_jobs_or_nobodys(slurm: Stage, tmp_path: Path, name: str) -> None:
    script, given = spooled(tmp_path, "sft"), {name: "gres/gpu:1", "FAKE_LEFT": name}
    slurm.run(script, FAKE_TRES="N/A", **given)  # left of another
    slurm.run(script, FAKE_TRES="gres:gpu:1", **given)  # as 22.05 says it
    slurm.run(script, FAKE_TRES="cpu=13,gres/gpu=1", **given)  # as 25.05 does
    slurm.run(script, FAKE_SQUEUE_CODE="1", FAKE_SQUEUE_SAYS="x", **given)  # not known
    assert [bool(left) for left in slurm.calls("left")] == [False, True, True, True]


@pytest.mark.parametrize(("parent", "tasks", "refused"), [("0", "4", True), ("0", "1", False), ("batch", "4", False)])
def test_a_script_that_srun_starts_as_several_tasks(
    slurm: Stage, tmp_path: Path, parent: str, tasks: str, refused: bool
) -> None:
    """The number of tasks may be left of the step in which sbatch was called; who started the script is certain."""
    caller = tmp_path / "slurmstepd"
    caller.write_text(
        f"exec -a 'slurmstepd: [54242.{parent}]' bash -c 'bash \"$1\"; exit $?' - '{spooled(tmp_path, 'sft')}'"
    )
    finished = slurm.run(caller, code=2 if refused else 0, SLURM_STEP_NUM_TASKS=tasks)
    assert ("srun started this script as 4 tasks." in finished.stderr) == refused
    assert len(slurm.calls("srun")) == (0 if refused else 1)


def test_directories_of_the_same_name_elsewhere_are_not_entered(shell: Stage, tmp_path: Path) -> None:
    """Where the shell looks for directories in other places, too."""
    (tmp_path / "elsewhere" / "examples").mkdir(parents=True)
    variables = {"CDPATH": str(tmp_path / "elsewhere"), "CONTAINER_IMAGE": "/images/x.sif"}
    shell.run("examples/sft.sh", **variables)
    assert not {f"{tmp_path}/elsewhere"} & {word for call in shell.calls("apptainer") for word in call}
    assert "realign" in shell.run("examples/submit_all.sh", "--status", CDPATH=str(tmp_path / "elsewhere")).stdout


def test_a_log_on_a_full_disk_ends_nothing(slurm: Stage, tmp_path: Path) -> None:
    caller = tmp_path / "slurmd"
    caller.write_text(f"exec bash '{spooled(tmp_path, 'sft')}' >/dev/full 2>&1")
    slurm.run(caller, code=75, FAKE_CODE="75")
    assert slurm.calls("scontrol") == [["requeue", "54242"]]
    slurm.run(caller, code=76, FAKE_CODE="76", RETRY_AFTER="0")
    assert len(slurm.calls("srun")) == 4
