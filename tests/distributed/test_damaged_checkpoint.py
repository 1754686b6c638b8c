"""Bytes that have changed inside a checkpoint: every rank ends, with an error that names it, and none waits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from training_run import ARCHITECTURE, KEEP_ALL, Run
from transformers import LlavaForConditionalGeneration  # noqa: F401  (imported once, before the ranks are forked)

from megatron_apriel.checkpoint.metadata import read_metadata
from megatron_apriel.checkpoint.store import CheckpointStore
from megatron_apriel.errors import AprielError
from megatron_apriel.parallel import groups
from megatron_apriel.testing.changed_checkpoints import changed_metadata
from megatron_apriel.testing.checkpoints import write_hf_checkpoint
from megatron_apriel.testing.layouts import layout_of
from megatron_apriel.testing.ranks import run_ranks


def _save(rank: int, world_size: int, source: Path, where: Path, name: str = "DP2") -> None:
    layout = layout_of(name)
    with groups.initialized(layout):
        run = Run(layout)
        run.start_from(source)
        run.steps(0, 1)
        CheckpointStore(where, KEEP_ALL, 4).save(1, run.wrapped, run.optimizer, {}, source)


def _load(rank: int, world_size: int, where: Path, name: str = "DP2") -> str:
    layout = layout_of(name)
    with groups.initialized(layout):
        run, store = Run(layout), CheckpointStore(where, KEEP_ALL, 4)
        try:
            store.load(store.latest(), run.chunks, run.optimizer)  # type: ignore[arg-type]
        except AprielError as error:
            return str(error)
        return "loaded"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = write_hf_checkpoint(tmp_path_factory.mktemp("hf"), ARCHITECTURE)
    where = tmp_path_factory.mktemp("run") / "checkpoints"
    run_ranks(2, _save, source, where)
    return where


def test_it_loads_as_it_was_written(saved: Path) -> None:
    assert run_ranks(2, _load, saved) == ["loaded", "loaded"]


@pytest.mark.parametrize("place", ["beginning", "middle"])
@pytest.mark.parametrize("key", ["optimizer.state.exp_avg.decoder.layers.1", "decoder.layers.1", "tower.", "random."])
def test_all_ranks_end(saved: Path, tmp_path: Path, key: str, place: str) -> None:
    where = tmp_path / "checkpoints"
    shutil.copytree(saved, where)
    step = where / "step_00000001"
    tensors = read_metadata(step).tensors
    piece = next(tensor.pieces[0].extent for name, tensor in tensors.items() if name.startswith(key))
    with (step / piece.file).open("r+b") as file:
        file.seek(piece.offset + (0 if place == "beginning" else piece.length // 2))
        file.write(b"\x5a" * 40)
    for said in run_ranks(2, _load, where):
        assert f"{step} could not be read" in said
        assert "Remove or rename" in said


def test_what_only_one_rank_needs_and_misses_ends_all(tmp_path: Path) -> None:
    """The moment of a layer on the second of two pipeline stages."""
    source, where = write_hf_checkpoint(tmp_path / "hf", ARCHITECTURE), tmp_path / "checkpoints"
    run_ranks(2, _save, source, where, "PP2")
    missing = "optimizer.state.exp_avg.decoder.layers.3.mlp.linear_fc2.weight"
    with changed_metadata(where / "step_00000001") as metadata:
        del metadata.state_dict_metadata[missing]
        for index in [index for index in metadata.storage_data if index.fqn == missing]:
            del metadata.storage_data[index]
    for said in run_ranks(2, _load, where, "PP2", timeout=60):
        assert f"{missing} is missing" in said
