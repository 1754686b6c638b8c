"""Whole runs that write their checkpoints in the background: the same training, and nothing half-written at any end."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from slow_disk import fail_writing, hold_writing_until_all_wait, slow_writing, writing_has_ended
from stage_runs import before_step, losses, poison, records, run, stage_file, start, start_held, wait_for_line

from megatron_apriel.config.load import load_stage
from megatron_apriel.errors import CheckpointError, ExitCode
from megatron_apriel.planning.host_memory import Room
from megatron_apriel.testing.ranks import RankFailure, run_ranks
from megatron_apriel.train import state_placement
from megatron_apriel.train.metrics import WeightsAndBiases
from megatron_apriel.train.run import run_stage

BACKGROUND = "checkpoint.background=true"


def checkpoints(root: Path, name: str) -> list[str]:
    return sorted(path.name for path in (root / name / "checkpoints").iterdir())


def test_the_training_is_the_same(root: Path) -> None:
    assert run(root, "foreground", ranks=2) == [0, 0]
    assert run(root, "background", BACKGROUND, ranks=2) == [0, 0]
    assert losses(root, "background") == losses(root, "foreground")
    assert checkpoints(root, "background") == checkpoints(root, "foreground") == ["step_00000004", "step_00000006"]
    for file in sorted((root / "foreground" / "checkpoints").rglob("*.distcp")):
        other = root / "background" / file.relative_to(root / "foreground")
        assert file.read_bytes() == other.read_bytes(), file
    for name in ("foreground", "background"):
        told = records(root, name, "checkpoint")
        assert [record["step"] for record in told] == [2, 4, 6]
        still = [record["blocked_seconds"] < record["seconds"] for record in told]
        # Nothing is left to do during the last.
        assert still == ([True, True, False] if name == "background" else [False] * 3)


def test_a_copy_that_the_host_does_not_hold_is_refused_before_the_first_step(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken all the same, it would not be refused by the system: it would end the process at the first save."""
    monkeypatch.setattr(state_placement, "free_host_memory", lambda: Room(100_000, "the machine"))
    assert run(root, "no_room", "tokens=512", ranks=2) == [0, 0]
    with pytest.raises(RankFailure) as caught:
        run(root, "no_room_behind", "tokens=512", BACKGROUND, ranks=2)
    assert str(caught.value).count("ConfigError: checkpoint.background=true needs") == 2
    assert "and 87.9 KiB may be taken" in str(caught.value)
    assert "Set checkpoint.background=false, give the job more memory" in str(caught.value)
    assert records(root, "no_room_behind", "step") == []


def test_killed_runs_continue_to_the_bit(root: Path, reference: list[float]) -> None:
    process = start_held(root, "killed_behind", 4, BACKGROUND, "checkpoint.every=1")
    wait_for_line(process, "step 4/6")
    process.kill()
    process.wait()
    again = start(root, "killed_behind", BACKGROUND, "checkpoint.every=1")
    output, _ = again.communicate(timeout=180)
    assert again.returncode == ExitCode.OK, output
    assert "resumed from" in output and "training stood still for" in output
    assert losses(root, "killed_behind") == reference
    final, expected = (load_file(root / name / "final/model.safetensors") for name in ("killed_behind", "reference"))
    assert all(torch.equal(final[name], expected[name]) for name in expected)


def test_a_request_to_stop_waits_for_what_is_being_written(
    root: Path, reference: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One rank is asked to stop, the other still writes."""

    def asked(rank: int) -> None:
        if rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    def one_rank_writes_slowly(rank: int, size: int) -> int:
        hold_writing_until_all_wait(rank == 1)
        return int(run_stage(config))

    config = load_stage(stage_file(root, "asked"), [BACKGROUND])
    with monkeypatch.context() as patch:
        before_step(patch, 2, asked)
        assert run_ranks(2, one_rank_writes_slowly) == [ExitCode.REQUEUE] * 2
    assert checkpoints(root, "asked") == ["step_00000002", "step_00000003"]
    lines = [json.loads(line) for line in (root / "asked" / "metrics.jsonl").read_text().splitlines()]
    told = [(line["kind"], line["step"]) for line in lines if line["kind"] in ("step", "checkpoint")]
    steps = [("step", step) for step in (1, 2, 3)]
    assert told == [*steps, ("checkpoint", 2), ("checkpoint", 3)]
    first, second = records(root, "asked", "checkpoint")
    assert first["blocked_seconds"] > first["waited_seconds"] > 0.3
    assert second["blocked_seconds"] == second["seconds"]
    assert run(root, "asked", BACKGROUND, ranks=2) == [0, 0]
    assert losses(root, "asked") == pytest.approx(reference, rel=2e-5)


def test_the_next_save_waits_and_says_so(root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = load_stage(
        stage_file(root, "hurried"), [BACKGROUND, "checkpoint.every=1", "checkpoint.keep=all", "tokens=1536"]
    )

    def writes_slowly(rank: int, size: int) -> int:
        hold_writing_until_all_wait(True)
        return int(run_stage(config))

    assert run_ranks(1, writes_slowly) == [ExitCode.OK]
    assert checkpoints(root, "hurried") == [f"step_{step:08d}" for step in (1, 2, 3)]
    first, second, _ = records(root, "hurried", "checkpoint")
    assert first["waited_seconds"] > 0.3 and second["waited_seconds"] > 0.3
    assert "s of it waiting for the disk" in capfd.readouterr().out


def test_a_write_that_fails_on_one_rank_ends_all_at_the_next_step(
    root: Path, reference: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_stage(stage_file(root, "full_behind"), [BACKGROUND])

    def one_rank_fails(rank: int, size: int) -> str:
        if rank == 1:
            fail_writing()
        with pytest.raises(CheckpointError) as caught:
            run_stage(config)
        return str(caught.value)

    with monkeypatch.context() as patch:
        before_step(patch, 2, lambda rank: writing_has_ended())
        for message in run_ranks(2, one_rank_fails):
            assert "step_00000002 could not be written" in message and "bytes free" in message
    assert checkpoints(root, "full_behind") == []
    assert len(records(root, "full_behind", "step")) == 3


def test_an_error_meanwhile_ends_the_run_soon_and_publishes_nothing(
    root: Path, reference: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_stage(stage_file(root, "broken"), [BACKGROUND])

    def breaks(rank: int) -> None:
        raise ArithmeticError("broken")

    def fails_meanwhile(rank: int, size: int) -> int:
        begun = slow_writing(1)
        with pytest.raises(ArithmeticError, match="broken"):
            run_stage(config)
        assert threading.active_count() == 1
        return len(begun)

    with monkeypatch.context() as patch:
        before_step(patch, 3, breaks)
        (tensors,) = run_ranks(1, fails_meanwhile)
    assert tensors < 50  # of a hundred, each of which takes a second
    assert checkpoints(root, "broken") == ["step_00000002.partial"]
    assert run(root, "broken", BACKGROUND) == [ExitCode.OK]
    assert losses(root, "broken") == reference


def test_a_run_that_ends_for_bad_steps_leaves_what_is_being_written(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_stage(stage_file(root, "bad_behind"), [BACKGROUND, "faults.max_skipped_in_a_row=1"])

    def writes_slowly(rank: int, size: int) -> None:
        slow_writing(0.01)
        run_stage(config)

    poison(monkeypatch, set(range(8, 100)))
    with pytest.raises(RankFailure, match="the last of them step 3"):
        run_ranks(1, writes_slowly)
    assert checkpoints(root, "bad_behind") == ["step_00000002"]


def test_weights_and_biases_gets_figures_of_an_earlier_step(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes steps in rising order only, and would drop a checkpoint's that was written in the background."""
    logged: list[tuple[dict[str, float], int]] = []
    run_of_wandb = SimpleNamespace(log=lambda scalars, step: logged.append((scalars, step)))
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **settings: run_of_wandb))
    sink = WeightsAndBiases(load_stage(stage_file(root, "ordered"), ["logging.wandb=offline"]))
    for kind, step in (("step", 2), ("step", 3), ("checkpoint", 2), ("step", 4)):
        sink.write({"kind": kind, "step": step, "seconds": 1.5})
    assert [step for _, step in logged] == [2, 3, 3, 4]
    assert logged[2][0] == {"checkpoint/seconds": 1.5}
