"""Training in bf16 with masters that are kept as weights and remainders, on one and on two ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from training_run import ARCHITECTURE, KEEP_ALL, Run

from megatron_apriel.checkpoint import training_state
from megatron_apriel.checkpoint.store import CheckpointStore
from megatron_apriel.parallel import groups
from megatron_apriel.testing.checkpoints import write_hf_checkpoint
from megatron_apriel.testing.layouts import layout_of
from megatron_apriel.testing.optimizer_state import optimizer_state
from megatron_apriel.testing.ranks import run_ranks
from megatron_apriel.train.split_master import split


def trained(name: str) -> Run:
    run = Run(layout_of(name), dtype=torch.bfloat16)
    run.steps(0, 3)
    return run


def weights_follow_from_masters(run: Run) -> bool:
    """On this rank, of its own runs of the parameters; and the others' weights are the same as here."""
    parts = getattr(run.optimizer, "chained_optimizers", [run.optimizer])
    own = [
        torch.equal(parameter, split(numbers["param"].read(0, len(numbers["param"])))[0])
        for part in parts
        for group in part.optimizer.param_groups
        for parameter in group["params"]
        for numbers in [part.optimizer.numbers(parameter)]
    ]
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, run.weights())
    alike = [torch.equal(mine, its) for other in everywhere for mine, its in zip(everywhere[0], other, strict=True)]
    return bool(own) and all(own) and all(alike)


@pytest.mark.parametrize("name", ["one", "DP2"])
def test_weights_are_the_upper_halves_of_masters(name: str) -> None:
    def on_rank(rank: int, size: int) -> None:
        with groups.initialized(layout_of(name)):
            run = trained(name)
            assert weights_follow_from_masters(run)
            state = optimizer_state(run.trainer)
            masters = [tensor for key, tensor in state.items() if key.startswith("param ")]
            assert all(master.dtype == torch.float32 for master in masters)
            assert any(not torch.equal(master, master.bfloat16().float()) for master in masters)

    run_ranks(layout_of(name).world_size, on_rank)


@pytest.mark.parametrize("name", ["one", "DP2"])
def test_masters_of_a_checkpoint_say_what_the_weights_are(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its weights were rounded from them in another way, as halves to even once were."""
    read, source = training_state.read_shards, write_hf_checkpoint(tmp_path / "hf", ARCHITECTURE, dtype="bfloat16")

    def otherwise_rounded(*arguments: Any) -> Any:
        loaded = read(*arguments)
        for tensor in loaded["model"].values():
            tensor.view(torch.int16).bitwise_xor_(1)
        return loaded

    def on_rank(rank: int, size: int) -> None:
        with groups.initialized(layout_of(name)):
            run, store = trained(name), CheckpointStore(tmp_path / "run", KEEP_ALL, 4)
            before = optimizer_state(run.trainer)
            store.save(3, run.chunks, run.optimizer, {}, source)
            another = Run(layout_of(name), dtype=torch.bfloat16)
            monkeypatch.setattr(training_state, "read_shards", otherwise_rounded)
            store.load(store.latest(), another.chunks, another.optimizer)  # type: ignore[arg-type]
            after = optimizer_state(another.trainer)
            assert before.keys() == after.keys()
            assert all(torch.equal(before[key], after[key]) for key in before)
            assert weights_follow_from_masters(another)

    run_ranks(layout_of(name).world_size, on_rank)
