"""What befalls one rank in the middle of a step: whether the others raise it as well, or must be told."""

from __future__ import annotations

from pathlib import Path

import pytest
from stage_runs import poison, stage_file, write_inputs

from megatron_apriel.config.load import load_stage
from megatron_apriel.errors import DataError
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
