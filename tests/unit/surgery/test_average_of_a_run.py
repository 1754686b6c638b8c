"""tools/average_checkpoints.py --run: which of a run's checkpoints are averaged, and single ones beside directories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from surgery_files import text_config, text_tensors

from megatron_apriel.errors import CheckpointError, ConfigError
from megatron_apriel.surgery import run_steps
from megatron_apriel.surgery.average_inputs import DirectoryReader
from megatron_apriel.testing.plain_safetensors import read_model, write_model

Tool = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with eight checkpoints, whose tensors come from files: the reader itself is tested with the checkpoints."""
    reader = pytest.importorskip("megatron_apriel.checkpoint.distributed_weights")

    class Reader(DirectoryReader):
        def __init__(self, path: Path) -> None:
            super().__init__(path / "tensors")
            self.sidecars = path / "hf"

    monkeypatch.setattr(reader, "DistributedCheckpointReader", Reader)
    for number in range(1, 9):
        step = tmp_path / "run" / "checkpoints" / f"step_{number * 50:08}"
        write_model(step / "tensors", text_tensors(1, seed=number), {})
        (step / "hf").mkdir()
        (step / "hf" / "config.json").write_text(json.dumps(text_config(1)))
        (step / "hf" / "tokenizer.json").write_text("tokens")
        (step / "run.json").write_text("{}")
    (tmp_path / "run" / "checkpoints" / "step_00000450.partial").mkdir()
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("choice", "steps"),
    [
        (("--equispaced", 4), [100, 200, 300, 400]),
        (("--equispaced", 8), [50, 100, 150, 200, 250, 300, 350, 400]),
        (("--last", 2), [350, 400]),
        (("--steps", 50, 300), [50, 300]),
    ],
)
def test_checkpoints_of_a_run(
    choice: tuple[Any, ...], steps: list[int], run: Path, tmp_path: Path, average_checkpoints: Tool
) -> None:
    assert average_checkpoints(tmp_path / "mean", "--run", run, *choice) == 0
    directories = []
    for step in steps:
        model = write_model(tmp_path / "hf" / str(step), text_tensors(1, seed=step // 50), text_config(1))
        directories.append(model)
    assert average_checkpoints(tmp_path / "wanted", "--checkpoints", *directories) == 0
    assert read_model(tmp_path / "mean") == read_model(tmp_path / "wanted")
    assert (tmp_path / "mean" / "tokenizer.json").read_text() == "tokens"
    manifest = json.loads((tmp_path / "mean" / "surgery.json").read_text())
    assert [int(entry["path"][-8:]) for entry in manifest["inputs"]] == steps


def test_single_steps_are_inputs_like_directories(
    run: Path, tmp_path: Path, average_checkpoints: Tool, capsys: pytest.CaptureFixture[str]
) -> None:
    step = run / "checkpoints" / "step_00000100"
    model = write_model(tmp_path / "hf", text_tensors(1, seed=9), text_config(1))
    twin = write_model(tmp_path / "twin", text_tensors(1, seed=2), text_config(1))
    assert average_checkpoints(tmp_path / "mean", "--checkpoints", step, model) == 0
    assert average_checkpoints(tmp_path / "wanted", "--checkpoints", twin, model) == 0
    assert read_model(tmp_path / "mean") == read_model(tmp_path / "wanted")
    assert average_checkpoints(step / "mean", "--checkpoints", step, model) == 1
    assert "step_00000100/mean lies inside the input" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_not_passed_over(
    tmp_path: Path, average_checkpoints: Tool, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint without the file that is written last was whole once: its name says so."""
    pytest.importorskip("megatron_apriel.checkpoint.distributed_weights")
    for step in (1, 2):
        (tmp_path / "run" / "checkpoints" / f"step_{step:08}").mkdir(parents=True)
    assert average_checkpoints(tmp_path / "mean", "--run", tmp_path / "run", "--last", 2) == 1
    assert "step_00000001/run.json does not exist" in capsys.readouterr().err


def test_choices_that_a_run_does_not_have(
    run: Path, tmp_path: Path, average_checkpoints: Tool, capsys: pytest.CaptureFixture[str]
) -> None:
    for choice, message in (
        (("--equispaced", 9), "--equispaced 9 is not possible: the run has 8 checkpoints"),
        (("--last", 0), "--last 0 is not possible"),
        (("--steps", 50, 75), "no checkpoint of step 75.\n  It has 50, 100"),
        (("--steps", 50, 50), "--steps names 50 more than once"),
        ((), "--run needs to know which checkpoints"),
    ):
        assert average_checkpoints(tmp_path / "mean", "--run", run, *choice) == 1
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_equispaced_ends_with_the_last_and_is_even() -> None:
    assert run_steps.equispaced(range(1, 13), 6) == [2, 4, 6, 8, 10, 12]
    for available in range(1, 30):
        for count in range(1, available + 1):
            steps = run_steps.equispaced(range(1, available + 1), count)
            gaps = {second - first for first, second in zip([0, *steps], steps, strict=False)}
            assert len(steps) == count
            assert steps[-1] == available
            assert max(gaps) - min(gaps) <= 1
    assert run_steps.equispaced([1000, 1010, 1020, 1030, 2000, 3000], 3) == [1000, 2000, 3000]
    assert run_steps.equispaced([10, 20, 30, 1000], 3) == [20, 30, 1000]
    with pytest.raises(ConfigError, match="the run has 2 checkpoints"):
        run_steps.equispaced([1, 2], 3)
    with pytest.raises(CheckpointError, match="has no checkpoints"):
        run_steps.available_steps("/nowhere")
