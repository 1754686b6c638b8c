"""What befalls one rank in the middle of a step: whether the others raise it as well, or must be told."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from stage_runs import poison, records, run, stage_file, write_inputs

from megatron_apriel.config.load import load_stage
from megatron_apriel.errors import DataError, ExitCode
from megatron_apriel.testing.ranks import run_ranks
from megatron_apriel.train.run import run_stage


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs whose images are all damaged."""
    root = write_inputs(tmp_path_factory.mktemp("damaged"))
    images = root / "images" / "images.bin"
    images.write_bytes(bytes(images.stat().st_size))
    return root


def error_of(root: Path, name: str, *overrides: str) -> tuple[str, bool]:
    """What ends the run, and whether that is an error of one rank."""
    config = load_stage(stage_file(root, name), overrides)

    def main(rank: int, size: int) -> tuple[str, bool]:
        with pytest.raises(DataError) as caught:
            run_stage(config)
        return str(caught.value), caught.value.of_one_rank

    return run_ranks(1, main)[0]


@pytest.mark.parametrize("used", ["training", "validation"])
def test_a_damaged_image_is_an_error_of_its_rank(damaged: Path, used: str) -> None:
    text = f"[{{corpus: {damaged}/text, long_documents: split}}]"
    images = f"[{{corpus: {damaged}/images}}]"
    settings = ("validation=null",) if used == "training" else (f"mixture={text}", f"validation.corpora={images}")
    said, of_one_rank = error_of(damaged, used, *settings, "images.required=false")
    assert "cannot be decoded" in said and of_one_rank


def test_too_many_bad_steps_are_an_error_of_all_ranks(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, set(range(100)))
    said, of_one_rank = error_of(root, "bad_steps", "faults.max_skipped_in_a_row=2")
    assert "2 steps in a row" in said and not of_one_rank


def test_a_list_of_skipped_steps_that_cannot_be_written_does_not_end_the_run(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is rank 0's: the other would wait for it."""
    details = root / "unlisted" / "skipped_steps.jsonl"
    details.mkdir(parents=True)
    poison(monkeypatch, {9})
    assert run(root, "unlisted", "tokens=2K", ranks=2) == [ExitCode.OK] * 2
    assert [record["step"] for record in records(root, "unlisted", "skipped")] == [3]
    assert f"warning: {details} cannot be written: " in capfd.readouterr().err


def test_a_checkpoint_that_cannot_be_removed_stays_and_the_run_goes_on(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    rename = Path.rename

    def refused(path: Path, target: Path) -> Path:
        if path.name == "step_00000002":
            raise OSError(errno.EPERM, "Operation not permitted")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    assert run(root, "stuck", "checkpoint.keep=last 1", ranks=2) == [ExitCode.OK] * 2
    folder = root / "stuck" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step_00000002", "step_00000006"]
    assert f"warning: {folder}/step_00000002 cannot be removed: [Errno 1]" in capfd.readouterr().err


def test_a_service_that_is_gone_does_not_end_the_run(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Weights & Biases raises errors of its own, of several kinds."""

    def gone(*arguments: Any, **more: Any) -> None:
        raise RuntimeError("no service")

    wandb_run = SimpleNamespace(log=gone, finish=gone)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **settings: wandb_run))
    assert run(root, "gone", "tokens=1K", "logging.wandb=offline", ranks=2) == [ExitCode.OK] * 2
    said = capfd.readouterr().err
    assert "warning: WeightsAndBiases cannot write figures: RuntimeError: no service" in said
