"""A trainer that has ended leaves nothing: no weight, gradient, state or activation, whatever it trained with."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from stage_runs import poison, stage_file
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from training_run import ARCHITECTURE, SEQUENCE_LENGTH, SEQUENCES

from megatron_apriel.checkpoint.store import CheckpointStore
from megatron_apriel.config.load import load_stage
from megatron_apriel.data.loading.loader import TrainingLoader, ValidationLoader
from megatron_apriel.errors import DataError
from megatron_apriel.model.apriel import AprielModel
from megatron_apriel.parallel import groups
from megatron_apriel.testing.layouts import ALONE, CASES, LAYOUTS, Setup, batches
from megatron_apriel.testing.ranks import run_ranks
from megatron_apriel.testing.stages import small_stage
from megatron_apriel.train.run import run_stage
from megatron_apriel.train.trainer import Trainer

BF16 = {"precision": {"compute": "bf16"}}
NARROW = {"peak": 1e-3, "moments": "int8", "master": "24bit", "gradients": "24bit", "host": 0.5}
RECOMPUTED = {"recompute": {"mode": "full", "layers": 2, "inputs": "host"}}
TRAINERS: dict[str, tuple[Setup, dict[str, Any]]] = {
    "float32": (ALONE, {}),
    "float32, overlap": (Setup(ALONE.layout, overlap=True), {}),
    "float32, inputs on the host": (ALONE, RECOMPUTED),
    "bf16, narrow": (ALONE, BF16 | {"optimizer": NARROW}),
    "bf16, narrow, overlap": (Setup(ALONE.layout, overlap=True), BF16 | {"optimizer": NARROW} | RECOMPUTED),
    "projector": (ALONE, {"train": {"projector": 1}}),
    "TP2 SP": (LAYOUTS["TP2 SP"], {}),
    "PP2 VP2 overlap": (LAYOUTS["PP2 VP2 overlap"], {}),
    "CP2": (LAYOUTS["CP2"], BF16 | {"optimizer": NARROW}),
}


class Storages(TorchDispatchMode):
    """Notes the memory of every tensor that any operation gives, also of those that no Python object holds."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                seen = StorageWeakRef(tensor.untyped_storage())
                self._seen[seen.cdata] = seen
        return result

    def left(self) -> set[int]:
        return {place for place, storage in self._seen.items() if not storage.expired()}


def train(setup: Setup, changes: dict[str, Any]) -> tuple[list[str], set[int]]:
    """What is left of a trainer: some of its objects, by name, and memory."""
    settings = {"train": CASES["all, mixed"].train.model_dump(), "optimizer": {"peak": 1e-3}, **setup.settings}
    config = small_stage(SEQUENCE_LENGTH, SEQUENCES, **(settings | changes))

    def made(step: int) -> Any:
        return batches(ARCHITECTURE, CASES["all, mixed"], step, setup.layout, SEQUENCE_LENGTH, 12)

    with groups.initialized(setup.layout):
        with Storages() as storages:
            trainer = Trainer(ARCHITECTURE, config, setup.layout)
            assert all(trainer.step(made(step), 1e-3).applied for step in range(2))
            trainer.evaluate(made(2), trainer.micro_batches)
        objects = {
            "trainer": weakref.ref(trainer),
            "optimizer": weakref.ref(trainer.optimizer),
            **{f"chunk {number}": weakref.ref(chunk) for number, chunk in enumerate(trainer.chunks)},
            **{name: weakref.ref(parameter) for name, parameter in trainer.chunks[0].named_parameters()},
        }
        del trainer
        groups.seed_all(0)  # states of random numbers are the groups'
    gc.collect()
    return [name for name, each in objects.items() if each() is not None], storages.left()


@pytest.mark.parametrize("name", TRAINERS)
def test_nothing_is_left_of_a_trainer(name: str) -> None:
    """But for constants, which the first of them made and the second uses as well."""
    setup, changes = TRAINERS[name]

    def on_rank(rank: int, size: int) -> tuple[list[str], int]:
        (_, constants), (objects, memory) = (train(setup, changes) for _ in range(2))
        return objects, len(memory - constants)

    assert run_ranks(setup.layout.world_size, on_rank) == [([], 0)] * setup.layout.world_size


def test_nothing_is_left_of_runs(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saved in the background, evaluated and ended by too many steps that are not finite."""

    def left() -> list[str]:
        gc.collect()
        kinds = (Trainer, AprielModel, TrainingLoader, ValidationLoader, CheckpointStore)
        return [type(each).__name__ for each in gc.get_objects() if type(each) in kinds]

    def on_rank(rank: int, size: int) -> tuple[list[str], list[str], int]:
        before = threading.active_count()
        run_stage(load_stage(stage_file(root, "background"), ["checkpoint.background=true"]))
        of_whole = left()
        poison(monkeypatch, set(range(100)))
        with contextlib.suppress(DataError):
            run_stage(load_stage(stage_file(root, "poisoned"), ["faults.max_skipped_in_a_row=2"]))
            raise AssertionError("it ended well")
        return of_whole, left(), threading.active_count() - before

    assert run_ranks(1, on_rank) == [([], [], 0)]
