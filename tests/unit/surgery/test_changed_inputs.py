"""Models that change while a result is made of them: refused, and nothing is left at the destination."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from surgery_files import text_config, text_tensors

from megatron_apriel.errors import CheckpointError
from megatron_apriel.surgery.average import average, plan_average
from megatron_apriel.surgery.average_inputs import AverageInput
from megatron_apriel.surgery.layer_maps import layer_map
from megatron_apriel.surgery.models import GivenModel
from megatron_apriel.surgery.upscale import plan_upscale, upscale
from megatron_apriel.testing.plain_safetensors import write_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model", text_tensors(4), text_config(4))


def replace(model: Path) -> None:
    """What a run does that exports its newest weights to the same place."""
    newer = write_model(model.with_name("newer"), text_tensors(4, seed=1), text_config(4))
    os.utime(newer / "model.safetensors", (1e9, 1e9))  # the clock may tick rarely
    (newer / "model.safetensors").replace(model / "model.safetensors")


def test_an_upscaled_model_is_of_one_model(model: Path, tmp_path: Path) -> None:
    plan = plan_upscale(GivenModel.open(model), layer_map("block", 4, 6))
    replace(model)
    with pytest.raises(CheckpointError, match=r"model\.safetensors was changed while"):
        upscale(plan, tmp_path / "result")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "newer"}


def test_an_average_is_of_the_models_that_were_checked(model: Path, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", text_tensors(4, seed=2), text_config(4))
    plan = plan_average([AverageInput.from_directory(path) for path in (model, other)])
    replace(model)
    with pytest.raises(CheckpointError, match=r"model\.safetensors was changed while"):
        average(plan, tmp_path / "result")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "newer", "other"}
