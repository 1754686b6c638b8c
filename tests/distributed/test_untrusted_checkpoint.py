"""Resuming from a checkpoint that a stranger changed: refused on every rank, and nothing in it is executed."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex
from training_run import ARCHITECTURE, KEEP_ALL, Run
from transformers import LlavaForConditionalGeneration  # noqa: F401  (imported once, before the ranks are forked)

from megatron_apriel.checkpoint.store import CheckpointStore
from megatron_apriel.errors import AprielError
from megatron_apriel.parallel import groups
from megatron_apriel.testing.changed_checkpoints import Calls, changed_metadata
from megatron_apriel.testing.checkpoints import write_hf_checkpoint
from megatron_apriel.testing.layouts import layout_of
from megatron_apriel.testing.ranks import run_ranks

LAYOUT = layout_of("DP2")
STEP = "step_00000002"


def _save(rank: int, world_size: int, source: Path, where: Path) -> list[float]:
    with groups.initialized(LAYOUT):
        run = Run(LAYOUT)
        run.start_from(source)
        run.steps(0, 2)
        CheckpointStore(where, KEEP_ALL, 4).save(2, run.wrapped, run.optimizer, {}, source)
        return run.steps(2, 3)


def _load(rank: int, world_size: int, where: Path) -> str | list[float]:
    # What reads pickles without restriction, in torch and so in Megatron: never called while a run resumes.
    unrestricted: list[str] = []
    load = torch.load

    def watched(*given: Any, **named: Any) -> Any:
        if not named.get("weights_only"):
            unrestricted.append("torch.load")
        return load(*given, **named)

    with groups.initialized(LAYOUT):
        run, store = Run(LAYOUT), CheckpointStore(where, KEEP_ALL, 4)
        torch.load = watched
        FileSystemReader.read_metadata = lambda *_, **__: unrestricted.append("read_metadata")  # type: ignore
        try:
            store.load(store.latest(), run.chunks, run.optimizer)  # type: ignore[arg-type]
            losses = run.steps(2, 3)
        except AprielError as error:
            return str(error)
        finally:
            assert not unrestricted
    return losses


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[float]]]:
    source = write_hf_checkpoint(tmp_path_factory.mktemp("hf"), ARCHITECTURE)
    where = tmp_path_factory.mktemp("run") / "checkpoints"
    return where, run_ranks(2, _save, source, where)


def test_an_honest_one_resumes_to_the_bit(saved: tuple[Path, list[list[float]]]) -> None:
    where, losses = saved
    assert run_ranks(2, _load, where) == losses


def _as_bytes(key: str) -> Callable[[Path, Metadata, Path], None]:
    """A tensor that the run wants is an entry of bytes that torch's loader would unpickle."""

    def change(step: Path, metadata: Metadata, mark: Path) -> None:
        data = io.BytesIO()
        torch.save(Calls(mark), data)
        found = [index for index in metadata.storage_data if index.fqn == key]
        infos = [metadata.storage_data.pop(index) for index in found]
        metadata.state_dict_metadata[key] = BytesStorageMetadata()
        with (step / infos[0].relative_path).open("ab") as file:
            place = type(infos[0])(infos[0].relative_path, file.tell(), len(data.getvalue()))
            file.write(data.getvalue())
        metadata.storage_data[MetadataIndex(key)] = place

    return change


def _random_state_elsewhere(step: Path, metadata: Metadata, mark: Path) -> None:
    entry = metadata.state_dict_metadata["random.torch"]
    key = "random.numpy"
    metadata.state_dict_metadata[key] = entry
    for index in [index for index in metadata.storage_data if index.fqn == key]:
        del metadata.storage_data[index]
    places = {index: place for index, place in metadata.storage_data.items() if index.fqn == "random.torch"}
    for index, place in places.items():
        copy = (step / place.relative_path).read_bytes()[place.offset : place.offset + place.length]
        with (step / place.relative_path).open("ab") as file:
            elsewhere = type(place)(place.relative_path, file.tell(), len(copy))
            file.write(copy)
        metadata.storage_data[MetadataIndex(key, index.offset, index.index)] = elsewhere


MOMENT = "optimizer.state.exp_avg.decoder.final_layernorm.weight"
CHANGES: dict[str, tuple[Callable[[Path, Metadata, Path], Any], str]] = {
    "a moment": (_as_bytes(MOMENT), f"holds {MOMENT}, which is refused"),
    "a random state": (_as_bytes("random.torch"), "holds random.torch, which is refused"),
    "a weight": (_as_bytes("output_layer.weight"), "1 missing (output_layer.weight)"),
    "the common state": (_as_bytes("common_state/shard_0_1"), "common_state/shard_0_1, which is refused: it is not"),
    "the directory": (lambda step, m, mark: setattr(m, "planner_data", Calls(mark)), "cannot be read: it asks for"),
    "a random state of another generator": (_random_state_elsewhere, "random.numpy has shape [2, 5056]"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_it_is_refused_for_what_it_is(saved: tuple[Path, list[list[float]]], tmp_path: Path, kind: str) -> None:
    change, message = CHANGES[kind]
    where, mark = tmp_path / "checkpoints", tmp_path / "mark"
    shutil.copytree(saved[0], where)
    step = where / STEP
    with changed_metadata(step) as metadata:
        change(step, metadata, mark)
    for said in run_ranks(2, _load, where):
        assert message in said and "damaged" not in str(said).partition("\n")[0]
    assert not mark.exists()
