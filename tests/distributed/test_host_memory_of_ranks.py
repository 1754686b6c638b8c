"""Host memory of several ranks of one machine: all look whether there is enough before any of them takes its part."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from training_run import ARCHITECTURE, SEQUENCE_LENGTH, SEQUENCES

from megatron_apriel.parallel import groups
from megatron_apriel.planning.host_memory import SPARE, Room
from megatron_apriel.testing.layouts import layout_of
from megatron_apriel.testing.ranks import run_ranks
from megatron_apriel.testing.stages import small_stage
from megatron_apriel.train import pinned_memory, state_placement
from megatron_apriel.train.trainer import Trainer

SETTINGS: dict[str, dict[str, Any]] = {
    "states": {"optimizer": {"peak": 1e-3, "host": 0.5}},
    "inputs": {"recompute": {"mode": "full", "inputs": "host"}},
}


@pytest.mark.parametrize("what", SETTINGS)
def test_a_rank_that_looks_late_finds_as_much_as_the_first(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, layout = small_stage(SEQUENCE_LENGTH, SEQUENCES, **SETTINGS[what]), layout_of("DP2")
    made = pinned_memory._made
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")

    def on_rank(rank: int, size: int, free: int, notes: Path) -> None:
        def room() -> Room:
            time.sleep(rank)  # the second of two looks a second late
            return Room(free - sum(file.stat().st_size for file in notes.iterdir()), "the machine")

        def noted(bytes_of_slab: int, *more: Any) -> Any:
            with (notes / str(rank)).open("ab") as file:
                file.truncate(file.tell() + bytes_of_slab)
            return made(bytes_of_slab, *more)

        monkeypatch.setattr(state_placement, "free_host_memory", room)
        monkeypatch.setattr(pinned_memory, "_made", noted)
        with groups.initialized(layout):
            Trainer(ARCHITECTURE, config, layout)

    def taken_of(free: int, name: str) -> int:
        notes = tmp_path / name
        notes.mkdir()
        run_ranks(2, on_rank, free, notes)
        return sum(file.stat().st_size for file in notes.iterdir())

    taken = taken_of(1 << 40, "plenty")
    assert taken > 10_000
    assert taken_of(round(taken / (1 - SPARE)) + 1000, "just enough") == taken
