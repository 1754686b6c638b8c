"""What a result says of how it was made, however long its history is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from surgery_files import text_config, text_tensors

from megatron_apriel.errors import CheckpointError
from megatron_apriel.surgery import manifest
from megatron_apriel.surgery.average import average, plan_average
from megatron_apriel.surgery.average_inputs import AverageInput
from megatron_apriel.surgery.layer_maps import layer_map
from megatron_apriel.surgery.manifest import MANIFEST
from megatron_apriel.surgery.models import GivenModel
from megatron_apriel.surgery.upscale import plan_upscale
from megatron_apriel.testing.plain_safetensors import write_model


def averaged(destination: Path, *inputs: Path) -> dict[str, Any]:
    average(plan_average([AverageInput.from_directory(path) for path in inputs]), destination)
    said: dict[str, Any] = json.loads((destination / MANIFEST).read_text())
    return said


def generations(said: Any) -> int:
    """How many manifests lie in one another, of the first inputs."""
    return 1 + generations(said["inputs"][0].get("made_by")) if isinstance(said, dict) else 0


def test_a_moving_average_goes_on_for_ever(tmp_path: Path) -> None:
    """Each is of the one before and a new model: of the oldest only the place is said."""
    newest, new = (write_model(tmp_path / name, text_tensors(1), text_config(1)) for name in ("first", "new"))
    for number in range(1, 25):
        said = averaged(tmp_path / str(number), newest, new)
        assert generations(said) == min(number, 11)
        newest = tmp_path / str(number)
    while isinstance(said, dict):
        oldest, said = said["inputs"][0], said["inputs"][0]["made_by"]
    assert oldest["path"] == str(tmp_path / "13") and said == f"left out: see {MANIFEST} there"


def test_a_broad_history_is_cut_where_it_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "MOST_BYTES", 20_000)
    level = [write_model(tmp_path / f"0-{number}", text_tensors(1), text_config(1)) for number in range(3)]
    for height in range(1, 4):
        for number in range(3):
            said = averaged(tmp_path / f"{height}-{number}", *level)
        level = [tmp_path / f"{height}-{number}" for number in range(3)]
    assert (level[-1] / MANIFEST).stat().st_size <= 10_000 and generations(said) < 3


def test_a_damaged_one_is_refused_before_the_work(tmp_path: Path) -> None:
    one, other = (write_model(tmp_path / name, text_tensors(2), text_config(2)) for name in ("a", "b"))
    (other / MANIFEST).write_text("{")
    with pytest.raises(CheckpointError, match=r"b/surgery\.json cannot be read"):
        plan_average([AverageInput.from_directory(path) for path in (one, other)])
    with pytest.raises(CheckpointError, match=r"b/surgery\.json cannot be read"):
        plan_upscale(GivenModel.open(other), layer_map("block", 2, 3))
