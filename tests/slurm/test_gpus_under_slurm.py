"""Which GPUs the ranks see: on nodes with four of them, which may be shared with other jobs. The GPUs are pretended."""

from __future__ import annotations

import re

import pytest
from cluster import Cluster
from stage_jobs import ROOT, Jobs

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]

GPUS = 4
"""Of each node."""

SHOWS = """#!/usr/bin/env bash
case $* in
    *--dry-run* | *-c*) exit 0 ;;
    *) echo "rank $SLURM_PROCID of $SLURM_NTASKS sees $CUDA_VISIBLE_DEVICES" ;;
esac
until [[ -z ${UNTIL:-} || -e $UNTIL ]]; do sleep 0.2; done
"""
"""An interpreter that says where each rank is instead of training, and stays until a file is there."""


@pytest.fixture
def showing(jobs: Jobs) -> Jobs:
    script = jobs.here / "shows"
    script.write_text(SHOWS)
    script.chmod(0o755)
    jobs.environment["PYTHON"] = str(script)
    return jobs


def submit(jobs: Jobs, *options: str) -> str:
    words = ["sbatch", "--parsable", *options, ROOT / "examples" / "sft.sh"]
    return jobs.cluster.run(*words, cwd=jobs.here, **jobs.environment).strip()


def ranks(jobs: Jobs, job: str) -> list[tuple[str, str, set[str]]]:
    """Rank, number of ranks and visible devices."""
    found = re.findall(r"rank (\d+) of (\d+) sees ([\d,]*)", jobs.log(job, "sft"))
    return sorted((rank, of, set(devices.split(","))) for rank, of, devices in found)


def test_nodes_with_four_gpus(cluster: Cluster, showing: Jobs) -> None:
    job = submit(showing, "-N2", "--ntasks-per-node=4", "--gpus-per-node=4")
    cluster.wait_for_state(job, "COMPLETED")
    assert ranks(showing, job) == [(str(rank), "8", {"0", "1", "2", "3"}) for rank in range(8)]


def test_two_jobs_on_one_node_see_their_own(cluster: Cluster, showing: Jobs) -> None:
    both_run = showing.here / "both run"
    showing.environment["UNTIL"] = str(both_run)
    half = ("-N1", "-w", "virtual1", "--oversubscribe", "--mem=4G", "--ntasks-per-node=2", "--gpus-per-node=2")
    first, second = (submit(showing, *half) for _ in range(2))
    for job in (first, second):
        cluster.wait_for_state(job, "RUNNING")
    both_run.touch()
    for job in (first, second):
        cluster.wait_for_state(job, "COMPLETED")
    seen = []
    for job in (first, second):
        (_, _, devices), (_, _, other) = ranks(showing, job)
        assert len(devices) == 2 and devices == other
        seen.append(devices)
    assert not seen[0] & seen[1]


def test_a_gpu_for_each_task(cluster: Cluster, showing: Jobs) -> None:
    job = submit(showing, "-N1", "--ntasks-per-node=4", "--gpus-per-node=4", "--gpus-per-task=1")
    cluster.wait_for_state(job, "COMPLETED")
    seen = [devices for _, _, devices in ranks(showing, job)]
    assert len(seen) == 4


def test_wishes_of_the_submitting_shell(cluster: Cluster, showing: Jobs) -> None:
    """As left of another allocation; srun would give the ranks fewer GPUs, wait for ever or start nothing."""
    wishes = {"CONSTRAINT": "gold", "GRES": "gpu:1", "EXCLUSIVE": "1", "NTASKS_PER_GPU": "2", "GPUS_PER_TASK": "2"}
    showing.environment |= {f"SLURM_{name}": value for name, value in wishes.items()}
    job = submit(showing, "-N2", "--ntasks-per-node=4", "--gpus-per-node=4")
    cluster.wait_for_state(job, "COMPLETED")
    assert ranks(showing, job) == [(str(rank), "8", {"0", "1", "2", "3"}) for rank in range(8)]


def test_tasks_counted_for_all_nodes(cluster: Cluster, showing: Jobs) -> None:
    job = submit(showing, "-N2", "--ntasks=4", "--gpus-per-node=2")
    cluster.wait_for_state(job, "COMPLETED")
    assert [of for _, of, _ in ranks(showing, job)] == ["4"] * 4


def test_a_script_that_srun_starts_several_times(cluster: Cluster, showing: Jobs) -> None:
    words = ["srun", "-N1", "--ntasks=2", "--gpus-per-node=2", "bash", ROOT / "examples" / "sft.sh"]
    with pytest.raises(AssertionError, match="srun started this script as 2 tasks"):
        cluster.run(*words, cwd=showing.here, **showing.environment)


def test_more_gpus_than_a_node_has_are_refused(showing: Jobs) -> None:
    with pytest.raises(AssertionError, match="Requested node configuration is not available"):
        submit(showing, "-N1")  # eight, as the scripts ask for
