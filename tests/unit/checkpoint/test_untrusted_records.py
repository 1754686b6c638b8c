"""What a stranger's checkpoint says beside its tensors: run.json, a run's state, random states, files that are none."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from untrusted import SHARD

from megatron_apriel.checkpoint.metadata import read_metadata
from megatron_apriel.checkpoint.random_state import random_states, restore_random_states
from megatron_apriel.errors import CheckpointError, run_command
from megatron_apriel.formats.run_record import read_run_file, run_state
from megatron_apriel.testing.changed_checkpoints import (
    Calls,
    changed_record,
    refresh,
)

RECORDS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "outside": (lambda r: r["files"].__setitem__("../a", 1), "is no file in the checkpoint"),
    "absolute": (lambda r: r["files"].__setitem__("/etc/hostname", 1), "is no file in the checkpoint"),
    "digest outside": (lambda r: r["sha256"].__setitem__("/etc/hostname", "0"), "is no file in the checkpoint"),
    "itself": (lambda r: r["files"].__setitem__(".", 1), "is no file in the checkpoint"),
    "zero byte": (lambda r: r["files"].__setitem__("a\0b", 1), "is no file in the checkpoint"),
    "unlisted": (lambda r: r["sha256"].__setitem__("a", "0"), "digests of files that it does not list"),
    "negative": (lambda r: r["files"].__setitem__("run.json", -1), "files.run.json: "),
    "step": (lambda r: r.__setitem__("step", -1), "step: "),
    "step as text": (lambda r: r.__setitem__("step", "1"), "step: "),
    "endless step": (lambda r: r.__setitem__("step", 10**40), "step: "),
    "layout": (lambda r: r.__setitem__("layout", {"tensor": 0}), "layout."),
    "groups": (lambda r: r.__setitem__("optimizer_groups", 5), "optimizer_groups: "),
    "rate": (lambda r: r.__setitem__("optimizer_groups", [{"lr": "a"}]), "optimizer_groups.0.lr: "),
    "nested": (lambda r: r.__setitem__("optimizer_groups", [{"x": {"a": 1}}]), "optimizer_groups.0.x"),
    "parameters": (lambda r: r.__setitem__("optimizer_groups", [{"params": []}]), "optimizer_groups.0: .*params"),
    "unknown": (lambda r: r.__setitem__("more", 1), "more: "),
    "extra": (lambda r: r.__setitem__("extra", []), "extra: "),
    "format": (lambda r: r.__setitem__("format", 9), "is of format 9"),
    "no format": (lambda r: r.pop("format"), "format: "),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_that_cannot_be_is_refused(path: Path, kind: str) -> None:
    change, message = RECORDS[kind]
    with changed_record(path) as record:
        change(record)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_run_file(path)
    assert "run.json" in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "1" * 10_000, '{"format": 1e400}', "[" * 100_000, '{"format": NaN}', "\xff"]
)
def test_a_record_that_is_none(path: Path, text: str) -> None:
    (path / "run.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"run\.json is damaged"):
        read_run_file(path)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "nothing of a run"),
        ({"config": {}, "sequences": -1}, r"extra\.sequences"),
        ({"config": [], "sequences": 1}, r"extra\.config"),
        ({"config": {"mixture": [1]}, "sequences": 1}, r"extra\.config\.mixture\.0"),
        ({"config": {}, "sequences": 1, "corpora": [None]}, r"extra\.corpora\.0"),
    ],
)
def test_a_run_state_that_cannot_be(path: Path, state: dict[str, Any], message: str) -> None:
    with changed_record(path) as record:
        record["extra"] = state
    with pytest.raises(CheckpointError, match=message):
        run_state(path, read_run_file(path))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("numpy", lambda state: state.index_fill_(0, torch.tensor([624]), 625)),
        ("numpy", lambda state: state.index_fill_(0, torch.tensor([624]), -1)),
        ("numpy", lambda state: state.index_fill_(0, torch.tensor([3]), 2**32)),
        ("python", lambda state: state.index_fill_(0, torch.tensor([0]), 9)),
        ("python", lambda state: state.index_fill_(0, torch.tensor([5]), 2**40)),
        ("python", lambda state: state.index_fill_(0, torch.tensor([625]), 700)),
        ("python_gauss", lambda state: state.fill_(float("nan"))),
        ("torch", lambda state: state.fill_(255)),
        ("torch", lambda state: state.resize_(5)),
    ],
)
def test_random_states_of_no_generator(name: str, change: Callable[[torch.Tensor], Any]) -> None:
    states = {key: state.clone() for key, state in random_states().items()}
    change(states[name])
    with pytest.raises(CheckpointError, match="of no generator"):
        restore_random_states(states)


def test_pipes_in_a_checkpoint_are_not_waited_for(path: Path) -> None:
    for name in (SHARD, ".metadata", "run.json"):
        (path / name).rename(path / f"{name}.away")
        os.mkfifo(path / name)
        with pytest.raises(CheckpointError):
            read_metadata(path) if name != "run.json" else read_run_file(path)
        (path / name).unlink()
        (path / f"{name}.away").rename(path / name)
    refresh(path)
    assert json.loads((path / "run.json").read_text())["files"]
    read_metadata(path)


def test_command_lines_forbid_unrestricted_loading(tmp_path: Path) -> None:
    """Also where a library asks for it."""
    torch.save(Calls(tmp_path / "mark"), tmp_path / "file.pt")

    def main() -> None:
        with pytest.raises(pickle.UnpicklingError):
            torch.load(tmp_path / "file.pt", weights_only=False)

    assert run_command(main) == 0
    assert not (tmp_path / "mark").exists()
    torch.load(tmp_path / "file.pt", weights_only=False)  # outside of a command line as before
    assert (tmp_path / "mark").exists()
