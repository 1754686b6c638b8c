"""A run's output directory: which checkpoints are whole, in which order, and what is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_apriel.errors import OutputError
from megatron_apriel.formats.run_directory import (
    RunDirectory,
    checkpoint_path,
    checkpoints_in,
    former_of,
    is_checkpoint,
    partial_of,
    partials_in,
)


def test_whole_checkpoints_by_step(tmp_path: Path) -> None:
    steps = (500, 20, 123_456_789)
    for step in steps:
        checkpoint_path(tmp_path, step).mkdir()
        partial_of(checkpoint_path(tmp_path, step + 1)).mkdir()
    former_of(checkpoint_path(tmp_path, 20)).mkdir()
    for name in (
        "step_20",
        "step_0000002x",
        "astep_00000030",
        "step_00000030.old",
        "step_\u0663\u0663\u0663\u0663\u0663\u0663\u0663\u0663",
    ):
        (tmp_path / name).mkdir()
    assert checkpoint_path(tmp_path, 20).name == "step_00000020"
    assert list(checkpoints_in(tmp_path).items()) == [(step, checkpoint_path(tmp_path, step)) for step in sorted(steps)]
    assert [path.name for path in partials_in(tmp_path)] == [
        "step_00000020.former.partial",
        "step_00000021.partial",
        "step_00000501.partial",
        "step_123456790.partial",
    ]
    assert checkpoints_in(tmp_path / "absent") == {}


def test_a_distributed_checkpoint_is_known_by_either_file(tmp_path: Path) -> None:
    """Other trainers' have a .metadata too, and no folder of sidecars."""
    names = {"run.json": True, "hf/config.json": False, ".metadata": False, "config.json": False}
    for name, alone in names.items():
        directory = tmp_path / f"with {name.replace('/', ' ')}"
        (directory / name).parent.mkdir(parents=True)
        (directory / name).touch()
        assert is_checkpoint(directory) == alone
    (tmp_path / "with hf config.json" / ".metadata").touch()
    assert is_checkpoint(tmp_path / "with hf config.json")


@pytest.mark.parametrize("name", ["corpus.json", "config.json", "params.json", "model-00001-of-00002.safetensors"])
def test_a_run_does_not_begin_in_the_directory_of_something_else(name: str, tmp_path: Path) -> None:
    RunDirectory(tmp_path / "new").check_own()
    (tmp_path / "final").mkdir()
    for own in ("config.resolved.yaml", "metrics.jsonl", "final/config.json", "notes.txt"):
        (tmp_path / own).write_text("{}")
    RunDirectory(tmp_path).check_own()
    (tmp_path / name).write_text("{}")
    with pytest.raises(OutputError, match=f"is the directory of a (model|corpus): it holds {name}"):
        RunDirectory(tmp_path).check_own()
