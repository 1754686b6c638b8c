"""The trainer with states in host memory: every number as without; saved and resumed at any share, on other ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_run import ARCHITECTURE, KEEP_ALL, Run

from megatron_apriel.checkpoint.store import CheckpointStore
from megatron_apriel.parallel import groups
from megatron_apriel.testing.checkpoints import write_hf_checkpoint
from megatron_apriel.testing.layouts import layout_of
from megatron_apriel.testing.optimizer_state import optimizer_state
from megatron_apriel.testing.ranks import run_ranks
from megatron_apriel.train import optimizer_states

BF16, FP32 = torch.bfloat16, torch.float32


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("name", ["one", "DP2", "TP2 SP", "PP2"])
def test_every_number_is_as_without(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def on_rank(rank: int, size: int) -> None:
        with groups.initialized(layout_of(name)):
            found = []
            for share, piece in ((0.0, 1 << 20), (0.37, 1001), (1.0, 333), (1.0, 1 << 20)):
                monkeypatch.setattr(optimizer_states, "PIECE_NUMBERS", piece)
                groups.seed_all(7)
                run = Run(layout_of(name), dtype=dtype, host=share)
                losses = run.steps(0, 3)
                found.append((losses, optimizer_state(run.trainer)))
            assert all(losses == found[0][0] and equal(state, found[0][1]) for losses, state in found[1:])

    run_ranks(layout_of(name).world_size, on_rank)


def test_saved_at_one_share_and_resumed_at_another_on_other_ranks(tmp_path: Path) -> None:
    """From all on the host to none, and on two ranks to a part; and back. Nothing is lost on the way."""
    source = write_hf_checkpoint(tmp_path / "hf", ARCHITECTURE, dtype="bfloat16")
    store_of = lambda name: CheckpointStore(tmp_path / name, KEEP_ALL, 9)  # noqa: E731

    def begin(rank: int, size: int) -> Any:
        with groups.initialized(layout_of("one")):
            run = Run(layout_of("one"), dtype=BF16, host=1.0)
            run.steps(0, 2)
            store_of("first").save(2, run.chunks, run.optimizer, {}, source)
            return optimizer_state(run.trainer)

    def move(rank: int, size: int) -> None:
        with groups.initialized(layout_of("DP2")):
            run, store = Run(layout_of("DP2"), dtype=BF16, host=0.4), store_of("first")
            store.load(store.latest(), run.chunks, run.optimizer)  # type: ignore[arg-type]
            store_of("second").save(2, run.chunks, run.optimizer, {}, source)

    def end(rank: int, size: int) -> Any:
        found = []
        with groups.initialized(layout_of("one")):
            for name in ("first", "second"):
                run, store = Run(layout_of("one"), dtype=BF16), store_of(name)
                store.load(store.latest(), run.chunks, run.optimizer)  # type: ignore[arg-type]
                resumed = optimizer_state(run.trainer)
                found.append((resumed, run.steps(2, 4), optimizer_state(run.trainer)))
        return found

    begun = run_ranks(1, begin)[0]
    run_ranks(2, move)
    first, second = run_ranks(1, end)[0]
    assert equal(begun, first[0]) and equal(begun, second[0])
    assert first[1] == second[1] and equal(first[2], second[2]) and not equal(first[0], first[2])
