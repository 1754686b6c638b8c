"""The chain under a real Slurm: one stage is killed, the rest is submitted again, and it ends in the average."""

from __future__ import annotations

import pytest
from cluster import Cluster
from stage_jobs import ROOT, SMALL, Jobs

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(3600)]

LAST = ("sft", "sft_subset", "sft_long", "release")


@pytest.fixture
def chain(jobs: Jobs) -> Jobs:
    """Its first half is done."""
    (jobs.runs / "cpt_stage1" / "average").rename(jobs.runs / "final")
    (jobs.runs / "cpt_stage2").mkdir()
    (jobs.runs / "final").rename(jobs.runs / "cpt_stage2" / "final")
    return jobs


def submit_all(jobs: Jobs, *options: str, code: int = 0) -> str:
    size = ["--nodes=1", "--tasks-per-node=1", "--gpus-per-node=0", "--sbatch=tools:--mem=2G"]
    settings = [f"--set={word}" for word in (*SMALL, "tokens=3072", "sft:tokens=409600")]
    words = [ROOT / "examples" / "submit_all.sh", *(options or (*size, *settings))]
    return jobs.cluster.run(*words, cwd=jobs.here, code=code, **jobs.environment)


def numbers(said: str) -> dict[str, str]:
    """Jobs by step, as they were printed."""
    lines = [line.split() for line in said.splitlines()]
    return {words[0]: words[2] for words in lines if len(words) == 3 and words[1] == "job"}


def rows(said: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines()]
    return {row[0]: row[1:] for row in cells if row}


def test_a_stage_is_killed_and_the_rest_submitted_again(cluster: Cluster, chain: Jobs) -> None:
    first = numbers(submit_all(chain))
    assert tuple(first) == LAST
    submit_all(chain, code=2)  # no second copy
    cluster.wait_for(lambda: "step 20/" in chain.log(first["sft"], "sft"), "a step", 900)
    shown = rows(submit_all(chain, "--status"))
    assert shown["sft"][:2] == [first["sft"], "running"] and shown["sft"][4].endswith(" of 800")
    assert shown["release"][:3] == [first["release"], "pending", "for sft_subset, sft_long"]
    cluster.run("scancel", first["sft"])
    cluster.wait_for_state(first["sft"], "CANCELLED")
    # At once: Slurm may not have cancelled the jobs behind it yet.
    second = numbers(submit_all(chain))
    assert tuple(second) == LAST and not set(first.values()) & set(second.values())
    for step in LAST:
        cluster.wait_for_state(second[step], "COMPLETED")
    assert "resumed from" in chain.log(second["sft"], "sft")
    for step in LAST[1:]:
        assert cluster.job(first[step])["JobState"] == "CANCELLED"
    assert f"complete: {chain.runs}/release" in submit_all(chain, "--status")
    assert (chain.runs / "release" / "config.json").is_file()
    assert not list(chain.here.iterdir())
    assert numbers(submit_all(chain)) == {}
