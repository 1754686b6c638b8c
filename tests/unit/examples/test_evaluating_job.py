"""The job that evaluates the checkpoints of runs: what it starts, and when it is started again."""

from __future__ import annotations

from pathlib import Path

from stand_ins import Stage, spooled

FOLLOWING = ["tools/evaluate.py", "--follow", "runs/a", "runs/b", "--engine", "vllm"]


def test_it_follows_the_runs(shell: Stage) -> None:
    finished = shell.run("examples/evaluate.sh", *FOLLOWING[2:])
    assert shell.calls("fakepython")[-1] == FOLLOWING
    assert "evaluate: done; the scores are in metrics.jsonl of the runs (exit code 0)" in finished.stdout


def test_a_job_whose_time_is_over_is_started_again(slurm: Stage, tmp_path: Path) -> None:
    slurm.run(spooled(tmp_path, "evaluate"), *FOLLOWING[2:], code=75, FAKE_CODE="75")
    assert slurm.calls("fakepython")[-1] == FOLLOWING
    assert slurm.calls("scontrol")[-1] == ["requeue", "54242"]


def test_what_failed_is_not(slurm: Stage, tmp_path: Path) -> None:
    finished = slurm.run(spooled(tmp_path, "evaluate"), *FOLLOWING[2:], code=1, FAKE_CODE="1")
    assert not slurm.calls("scontrol")
    assert "not all was evaluated; the reasons stand above" in finished.stdout


def test_it_needs_a_run(shell: Stage) -> None:
    finished = shell.run("examples/evaluate.sh", code=2)
    assert "no run was named." in finished.stderr
