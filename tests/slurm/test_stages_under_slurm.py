"""The stages' scripts under a real Slurm: what starts, what stops them, and how they go on."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cluster import NODES, Cluster, command_of
from stage_jobs import ROOT, SMALL, Jobs

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(3600)]

LONG = 4000
"""Steps of a run that is stopped long before its end."""


@pytest.mark.parametrize(("nodes", "tasks"), [(1, 1), (1, 2), (2, 1)])
def test_a_stage_on_nodes_and_tasks(cluster: Cluster, jobs: Jobs, nodes: int, tasks: int) -> None:
    job = jobs.submit(nodes=nodes, tasks=tasks)
    assert cluster.wait_for_state(job, "COMPLETED", "FAILED")["ExitCode"] == "0:0", jobs.log(job)
    log = jobs.log(job).splitlines()
    assert log[0].endswith(f"cpt_stage2: job {job}, restart 0")
    assert log[1].endswith(f"; {nodes} x {tasks} ranks") and "virtual" in log[1]
    assert log[2].startswith("---- time limit: 30:00, until ")
    assert "torch 2." in log[3] and ", Slurm " in log[3]
    product = jobs.runs / "cpt_stage2" / "final"
    assert log[-1].endswith(f"complete; the product is {product} (exit code 0)") and product.is_dir()
    assert len(jobs.losses()) == 6
    assert not list(jobs.here.iterdir()), "the log was moved"


def test_a_time_limit_requeues_with_the_same_losses(cluster: Cluster, jobs: Jobs) -> None:
    steps = 1000
    shared = ("--oversubscribe", "--mem=3G")
    undisturbed = jobs.submit(*shared, nodes=2, steps=steps, settings=(f"output={jobs.runs}/undisturbed",))
    job = jobs.submit(*shared, "--signal=USR1@150", nodes=2, steps=steps)
    jobs.wait_for_line(job, "step 20/")
    # So little that Slurm warns when it next looks, and enough for the save on a busy machine.
    hours, minutes, seconds = map(int, cluster.job(job)["RunTime"].split(":"))
    cluster.run("scontrol", "update", f"JobId={job}", f"TimeLimit={60 * hours + minutes + 2 + (seconds >= 30)}")
    cluster.wait_for_requeue(job)
    cluster.start_again(job, "TimeLimit=60")
    cluster.wait_for_state(job, "COMPLETED")
    cluster.wait_for_state(undisturbed, "COMPLETED")
    log = jobs.log(job)
    assert f"job {job}, restart 1" in log and "SIGUSR1: stopping after this step" in log and "resumed from" in log
    assert jobs.losses() == jobs.losses("undisturbed")
    assert len(jobs.losses()) == steps


def test_a_job_that_loses_its_nodes_is_saved_and_goes_on(cluster: Cluster, jobs: Jobs) -> None:
    job = jobs.submit(nodes=2, steps=LONG)
    jobs.wait_for_line(job, "step 20/")
    words = ("--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--wrap=sleep 5")
    urgent = cluster.run("sbatch", *words, cwd=jobs.here).strip()
    cluster.wait_for_requeue(job)
    cluster.wait_for_state(urgent, "COMPLETED")
    cluster.start_again(job)
    jobs.wait_for_line(job, "resumed from")
    assert "SIGTERM: stopping" in jobs.log(job)


def test_a_node_that_dies(cluster: Cluster, jobs: Jobs) -> None:
    job = jobs.submit(nodes=2, steps=LONG, settings=("checkpoint.every=20",))
    jobs.wait_for_line(job, "step 40/")
    cluster.kill_node(NODES[1])
    try:
        cluster.wait_for(lambda: cluster.job(job)["Restarts"] != "0", "the job to be requeued", 900)
    finally:
        cluster.start_node(NODES[1])
    cluster.wait_for_requeue(job)
    cluster.start_again(job)
    jobs.wait_for_line(job, "resumed from")


def test_a_killed_rank_is_started_again(cluster: Cluster, jobs: Jobs) -> None:
    job = jobs.submit(tasks=2, steps=LONG, settings=("checkpoint.every=20",))
    jobs.wait_for_line(job, "step 40/")
    kill_rank(job, 1)
    jobs.wait_for_line(job, "---- attempt 2 of 3")
    jobs.wait_for_line(job, "resumed from")


def kill_rank(job: str, rank: int) -> None:
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        own = {f"SLURM_JOB_ID={job}".encode(), f"SLURM_PROCID={rank}".encode(), b"MASTER_ADDR="}
        if own <= set(variables) and b"megatron_apriel.train" in command_of(process):
            os.kill(int(process.name), signal.SIGKILL)
            return
    raise AssertionError(f"rank {rank} of job {job} does not run")


def test_stopping_for_good_with_a_save(cluster: Cluster, jobs: Jobs) -> None:
    job = jobs.submit(tasks=2, steps=LONG)
    jobs.wait_for_line(job, "step 20/")
    cluster.run("scancel", "--signal=INT", job)
    assert cluster.wait_for_state(job, "FAILED")["ExitCode"] == "130:0"
    assert "stopped for good; the same command resumes it from what was saved (exit code 130)" in jobs.log(job)
    assert list((jobs.runs / "cpt_stage2" / "checkpoints").iterdir())
    assert cluster.job(job)["Restarts"] == "0"


@pytest.mark.timeout(7200)
def test_a_signal_at_every_second_of_the_start(cluster: Cluster, jobs: Jobs) -> None:
    """It stops the run before its first step or after one, and the job is started again: it never fails.

    In the first moments, before Python runs, it is passed over; Slurm's own warning is then made up for by the clock.
    """
    jobs.environment["SKIP_CHECK"] = "1"

    def warned_after(second: int) -> None:
        shared = ("--oversubscribe", "--mem=2G")
        job = jobs.submit(*shared, steps=LONG, settings=(f"output={jobs.runs}/second-{second}",))
        cluster.wait_for_state(job, "RUNNING")
        cluster.wait_for(lambda: f"{job}.0" in cluster.run("squeue", "-h", "-s", "-j", job), "the ranks")
        time.sleep(second)
        before = jobs.log(job)
        cluster.run("scancel", "--signal=USR1", job)
        if "loading torch and Megatron Core" not in before:
            cluster.wait_for(lambda: "step 1/" in jobs.log(job) or "SIGUSR1" in jobs.log(job), "the run", 900)
            if "SIGUSR1" not in jobs.log(job):
                cluster.run("scancel", "--signal=USR1", job)
        cluster.wait_for_requeue(job)
        assert "asking Slurm to start job" in jobs.log(job)
        cluster.run("scancel", job)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(warned_after, range(14)))


def test_nothing_of_the_environment(cluster: Cluster, jobs: Jobs, inputs: Path) -> None:
    """The job finds everything where it was submitted, and the ranks get what the script found."""
    project = jobs.here / "project"
    project.mkdir()
    for name in ("examples", "megatron_apriel", "tools"):
        (project / name).symlink_to(ROOT / name)
    for name, place in {".venv": Path(sys.prefix), "data": inputs, "runs": jobs.runs}.items():
        (project / name).symlink_to(place)
    size = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0")
    words = ("sbatch", "--parsable", "--export=NONE", *size, "examples/cpt_stage2.sh", *SMALL, "tokens=3072")
    job = cluster.run(*words, cwd=project).strip()
    assert cluster.wait_for_state(job, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", jobs.log(job)
    assert len(jobs.losses()) == 6


def test_variables_of_another_run(cluster: Cluster, jobs: Jobs) -> None:
    jobs.environment |= {"RANK": "3", "WORLD_SIZE": "16", "LOCAL_RANK": "3", "MASTER_ADDR": "nowhere.invalid"}
    job = jobs.submit(nodes=2)
    assert cluster.wait_for_state(job, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", jobs.log(job)


def test_an_array(cluster: Cluster, jobs: Jobs) -> None:
    array = jobs.submit("--array=1-2", settings=("output=${RUN_ROOT}/trial-${SLURM_ARRAY_TASK_ID}",))
    for task in (1, 2):
        cluster.wait_for_state(f"{array}_{task}", "COMPLETED")
        job = cluster.job(f"{array}_{task}")["JobId"]
        assert f"job {job} ({array}_{task}), restart 0" in jobs.log(job)
        assert len(jobs.losses(f"trial-{task}")) == 6


def test_a_port_that_is_taken(cluster: Cluster, jobs: Jobs) -> None:
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        jobs.environment["MASTER_PORT"] = str(server.getsockname()[1])
        job = jobs.submit(tasks=2)
        cluster.wait_for_state(job, "COMPLETED")
    assert f"port {jobs.environment['MASTER_PORT']} is taken; the ranks meet at port" in jobs.log(job)
    assert "attempt 2" not in jobs.log(job)


def test_two_runs_in_one_allocation(cluster: Cluster, jobs: Jobs) -> None:
    script = jobs.here / "both.sh"
    script.write_text(
        "export NPROC_PER_NODE=1 SRUN_ARGS='--exact --mem=2G --cpus-per-task=2'\n"
        f"for name in a b; do\n    bash '{jobs.environment['PROJECT_ROOT']}/examples/cpt_stage2.sh' "
        '"$@" "output=$RUN_ROOT/$name" >"$name.log" 2>&1 &\ndone\nwait\n'
    )
    words = ["salloc", "-N2", "--ntasks-per-node=2", "--mem=6G", "bash", script, *SMALL, "tokens=3072"]
    cluster.run(*words, cwd=jobs.here, **jobs.environment)
    for name in ("a", "b"):
        assert len(jobs.losses(name)) == 6, (jobs.here / f"{name}.log").read_text()
