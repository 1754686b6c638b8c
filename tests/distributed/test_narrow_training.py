"""Training with moments and masters of fewer bits: every layout, wherever states lie, saved and resumed to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from training_run import ARCHITECTURE, KEEP_ALL, Run

from megatron_apriel.checkpoint.metadata import read_metadata
from megatron_apriel.checkpoint.store import CheckpointStore
from megatron_apriel.parallel import groups
from megatron_apriel.testing.checkpoints import write_hf_checkpoint
from megatron_apriel.testing.layouts import layout_of
from megatron_apriel.testing.optimizer_state import optimizer_state
from megatron_apriel.testing.ranks import run_ranks
from megatron_apriel.train import optimizer_states

BF16 = torch.bfloat16
SHORT = {"moments": "bfloat16"}
SMALLEST = {"moments": "int8", "master": "24bit"}
FORMS = pytest.mark.parametrize("forms", [SHORT, SMALLEST], ids=["16-bit moments", "8-bit moments"])


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@FORMS
@pytest.mark.parametrize("name", ["one", "DP2", "TP2 SP", "PP2"])
def test_where_states_lie_changes_no_bit(name: str, forms: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def on_rank(rank: int, size: int) -> None:
        with groups.initialized(layout_of(name)):
            found = []
            for share, piece in ((0.0, 1 << 20), (0.37, 1001), (1.0, 333)):
                monkeypatch.setattr(optimizer_states, "PIECE_NUMBERS", piece)
                groups.seed_all(7)
                run = Run(layout_of(name), dtype=BF16, host=share, **forms)
                losses = run.steps(0, 3)
                found.append((losses, optimizer_state(run.trainer)))
            assert all(losses == found[0][0] and equal(state, found[0][1]) for losses, state in found[1:])
            assert all(loss == loss for loss in found[0][0])

    run_ranks(layout_of(name).world_size, on_rank)


@FORMS
def test_saved_and_resumed_to_the_bit(forms: dict[str, Any], tmp_path: Path) -> None:
    """In the same form from the host to the device; in the exact one from what was saved, bfloat16 as such."""
    source = write_hf_checkpoint(tmp_path / "hf", ARCHITECTURE, dtype="bfloat16")

    def on_rank(rank: int, size: int) -> None:
        with groups.initialized(layout_of("one")):
            store = CheckpointStore(tmp_path / "run", KEEP_ALL, 9)
            run = Run(layout_of("one"), dtype=BF16, host=1.0, **forms)
            run.steps(0, 2)
            store.save(2, run.chunks, run.optimizer, {}, source)
            before, losses = optimizer_state(run.trainer), run.steps(2, 4)
            after = optimizer_state(run.trainer)
            again, exact = Run(layout_of("one"), dtype=BF16, **forms), Run(layout_of("one"), dtype=BF16)
            for each in (again, exact):
                store.load(store.latest(), each.chunks, each.optimizer)  # type: ignore[arg-type]
            assert equal(optimizer_state(again.trainer), before)
            assert again.steps(2, 4) == losses and equal(optimizer_state(again.trainer), after)
            as_saved = {name: tensor.float() for name, tensor in before.items()}
            assert equal({name: tensor.float() for name, tensor in optimizer_state(exact.trainer).items()}, as_saved)
            exact.steps(2, 3)
            tensors = read_metadata(store.latest()).tensors  # type: ignore[arg-type]
            kept = {key: tensor.dtype for key, tensor in tensors.items() if key.startswith("optimizer.state.")}
            assert {kept[key] for key in kept if ".param." in key} == {torch.float32}
            assert kept["optimizer.state.exp_avg_sq.embedding.word_embeddings.weight"] == BF16
            of_matrix = kept["optimizer.state.exp_avg.decoder.layers.0.mlp.linear_fc1.weight"]
            assert of_matrix == (BF16 if forms is SHORT else torch.float32)

    run_ranks(1, on_rank)


def test_a_run_moves_to_two_ranks_and_other_forms(tmp_path: Path) -> None:
    source = write_hf_checkpoint(tmp_path / "hf", ARCHITECTURE, dtype="bfloat16")

    def begin(rank: int, size: int) -> None:
        with groups.initialized(layout_of("one")):
            run = Run(layout_of("one"), dtype=BF16)
            run.steps(0, 2)
            CheckpointStore(tmp_path / "run", KEEP_ALL, 9).save(2, run.chunks, run.optimizer, {}, source)

    def move(rank: int, size: int) -> list[float]:
        with groups.initialized(layout_of("DP2")):
            losses = []
            for forms in ({}, SHORT, SMALLEST):
                run, store = Run(layout_of("DP2"), dtype=BF16, **forms), CheckpointStore(tmp_path / "run", KEEP_ALL, 9)
                store.load(store.latest(), run.chunks, run.optimizer)  # type: ignore[arg-type]
                losses.append(run.steps(2, 5)[-1])
            return losses

    run_ranks(1, begin)
    exact, *narrow = run_ranks(2, move)[0]
    assert all(loss == pytest.approx(exact, rel=2e-3) for loss in narrow)
