"""Requests to stop a whole run: answered, met after at most the step in flight, and nothing lost by them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from stage_runs import before_step, losses, records, run, stage_file, start, start_held, wait_for_line, without_times

from megatron_apriel.config.load import load_stage
from megatron_apriel.errors import ExitCode
from megatron_apriel.testing.ranks import RankFailure, run_ranks
from megatron_apriel.train import assembly
from megatron_apriel.train import loop as loop_module
from megatron_apriel.train import run as run_module
from megatron_apriel.train.run import run_stage


def test_sigterm_saves_and_asks_to_be_started_again(root: Path, reference: list[float]) -> None:
    process = start_held(root, "terminated", 1, "checkpoint.every=100")
    wait_for_line(process, "step 1/6")
    process.send_signal(signal.SIGTERM)
    wait_for_line(process, "SIGTERM: stopping after this step")
    output, _ = process.communicate("go\n", timeout=120)
    assert process.returncode == ExitCode.REQUEUE, output
    assert "SIGTERM; run the same command to resume" in output
    assert not (root / "terminated" / "final").exists()
    assert run(root, "terminated", "checkpoint.every=100") == [ExitCode.OK]
    assert losses(root, "terminated") == reference


@pytest.mark.parametrize("asked", ["while the weights are loaded", "while the run is put together"])
def test_a_request_to_stop_before_the_first_step_is_met(
    root: Path, reference: list[float], monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """On one of two ranks only."""
    name = f"early_{len(asked)}"
    place = "load_weights" if "weights" in asked else "_keep_sidecars"
    original, file = getattr(assembly, place), stage_file(root, name)

    def main(rank: int, size: int) -> int:
        def interrupted(*arguments: Any) -> Any:
            if rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(assembly, place, interrupted)
            return int(run_stage(load_stage(file)))

    assert run_ranks(2, main) == [ExitCode.REQUEUE] * 2
    assert not (root / name / "checkpoints").exists()
    (end,) = records(root, name, "end")
    assert end["reason"] == "another rank was asked to stop"
    assert run(root, name) == [ExitCode.OK]
    assert losses(root, name) == reference


def test_ranks_that_got_different_requests_end_alike(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C at one host while Slurm's warning reaches another; all answer as the one with the greater exit code."""
    signals = {0: signal.SIGUSR1, 1: signal.SIGINT}
    with monkeypatch.context() as patch:
        before_step(patch, 2, lambda rank: os.kill(os.getpid(), signals[rank]))
        assert run(root, "different", ranks=2) == [ExitCode.INTERRUPTED] * 2
    (end,) = records(root, "different", "end")
    assert (end["step"], end["reason"]) == (3, "SIGUSR1")


def test_a_request_to_stop_during_the_export_is_not_acted_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export = run_module._export

    def interrupted(*arguments: Any) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)
        export(*arguments)

    monkeypatch.setattr(run_module, "_export", interrupted)
    assert run(root, "late_signal", "tokens=1024") == [ExitCode.OK]
    assert (root / "late_signal" / "final" / "model.safetensors").exists()


def steps_and_validations(root: Path, name: str) -> tuple[list[int], list[int]]:
    steps, validations = ([record["step"] for record in records(root, name, kind)] for kind in ("step", "validation"))
    return steps, validations


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, ExitCode.REQUEUE), (signal.SIGINT, ExitCode.INTERRUPTED)]
)
def test_a_request_is_answered_and_at_most_the_step_in_flight_is_made(root: Path, number: int, code: int) -> None:
    name = f"answered_{number}"
    process = start(root, name, "tokens=200K", "checkpoint.every=1000", "validation=null")
    wait_for_line(process, "step 2/")
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    lines = without_times(output)
    answer = lines.index(f"{signal.Signals(number).name}: stopping after this step; again to stop now")
    assert sum(line.startswith("step ") and "loss" in line for line in lines[answer:]) <= 1
    assert "saved" in lines[-2] and "run the same command to resume" in lines[-1]


@pytest.mark.parametrize("moment", ["_validate", "_save", "_record"])
def test_no_further_step_is_begun_where_a_request_comes_between_two(
    root: Path, reference: list[float], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """While the held-out loss is measured, a checkpoint is written or figures are, on one of two ranks."""
    file, original, name = stage_file(root, f"during{moment}"), getattr(loop_module, moment), f"during{moment}"
    step = 3 if moment == "_validate" else 2

    def main(rank: int, size: int) -> int:
        def interrupted(stage: Any, *arguments: Any, **more: Any) -> Any:
            if rank == 1 and stage.finished_steps == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(stage, *arguments, **more)

        with monkeypatch.context() as patch:
            patch.setattr(loop_module, moment, interrupted)
            return int(run_stage(load_stage(file)))

    assert run_ranks(2, main) == [ExitCode.REQUEUE] * 2
    assert steps_and_validations(root, name)[0] == list(range(1, step + 1))
    assert (root / name / "checkpoints" / f"step_{step:08d}").is_dir()
    assert run(root, name, ranks=2) == [ExitCode.OK] * 2
    assert steps_and_validations(root, name) == ([1, 2, 3, 4, 5, 6], [0, 3, 6])
    assert losses(root, name) == pytest.approx(reference, rel=2e-5)


def test_held_out_loss_that_was_due_is_measured_by_the_next_start(
    root: Path, reference: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        before_step(patch, 2, lambda rank: os.kill(os.getpid(), signal.SIGUSR1))
        assert run(root, "due") == [ExitCode.REQUEUE]
    assert steps_and_validations(root, "due") == ([1, 2, 3], [0])
    assert run(root, "due") == [ExitCode.OK]
    assert steps_and_validations(root, "due") == ([1, 2, 3, 4, 5, 6], [0, 3, 6])
    expected = [record["loss"] for record in records(root, "reference", "validation")]
    assert [record["loss"] for record in records(root, "due", "validation")] == expected
    assert losses(root, "due") == reference


def test_a_second_request_stops_at_once_and_names_the_checkpoint(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """On one of two ranks; the other notices that it is gone."""

    def twice(rank: int) -> None:
        for _ in range(2 if rank == 1 else 0):
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch, pytest.raises(RankFailure):
        before_step(patch, 4, twice)
        run(root, "at_once", ranks=2)
    lines = capfd.readouterr().out.splitlines()
    newest = root / "at_once" / "checkpoints" / "step_00000004"
    assert "rank 1: SIGTERM: stopping after this step; again to stop now" in lines
    assert f"rank 1: SIGTERM again: stopping now; the next start resumes from {newest}" in lines
    assert run(root, "at_once", ranks=2) == [ExitCode.OK] * 2
    assert f"resumed from {newest}" in capfd.readouterr().out
