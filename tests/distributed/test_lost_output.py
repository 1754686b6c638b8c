"""A run whose output directory goes while it trains ends at the next step, on all ranks, and writes nowhere else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from slow_disk import writing_has_ended
from stage_runs import before_step, losses, run, stage_file

from megatron_apriel.checkpoint.store import CheckpointStore
from megatron_apriel.config.load import load_stage
from megatron_apriel.errors import ExitCode, OutputError
from megatron_apriel.testing.ranks import run_ranks
from megatron_apriel.train.run import run_stage


def renamed(output: Path) -> None:
    output.rename(output.with_name("elsewhere"))


def replaced(output: Path) -> None:
    output.rename(output.with_name("elsewhere"))
    output.mkdir()


def ending(root: Path, name: str, ranks: int, *overrides: str) -> list[str]:
    """What each rank's OutputError says."""
    file = stage_file(root, name)

    def main(rank: int, size: int) -> str:
        with pytest.raises(OutputError) as caught:
            run_stage(load_stage(file, overrides))
        return str(caught.value)

    return run_ranks(ranks, main)


@pytest.mark.parametrize("loses", [shutil.rmtree, renamed, replaced])
@pytest.mark.parametrize("background", ["false", "true"])
def test_every_rank_ends_and_nothing_is_made_anew(
    root: Path, monkeypatch: pytest.MonkeyPatch, loses: Callable[[Path], None], background: str
) -> None:
    output = root / "lost"

    def lost(rank: int) -> None:
        writing_has_ended()  # on both ranks: a directory that is written to meanwhile cannot be removed
        torch.distributed.barrier()
        if rank == 0:
            loses(output)

    with monkeypatch.context() as patch:
        # Before the third step: the one behind which the second checkpoint would be saved is never made.
        before_step(patch, 2, lost)
        messages = ending(root, "lost", 2, f"checkpoint.background={background}")
    assert len(messages) == 2
    for message in messages:
        assert message.startswith(f"{output} is no longer the directory that this run began in; noticed after step 3.")
    assert output.exists() == (loses is replaced)
    assert not [*output.rglob("*")]
    shutil.rmtree(output, ignore_errors=True)
    shutil.rmtree(root / "elsewhere", ignore_errors=True)


def test_what_was_moved_is_put_back_and_resumed(
    root: Path, reference: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = root / "moved"
    with monkeypatch.context() as patch:
        before_step(patch, 3, lambda rank: renamed(output) if rank == 0 else None)
        ending(root, "moved", 1)
    (root / "elsewhere").rename(output)
    assert [path.name for path in sorted((output / "checkpoints").iterdir())] == ["step_00000002"]
    assert run(root, "moved") == [ExitCode.OK]
    assert losses(root, "moved") == reference


def test_a_directory_that_goes_during_the_save_is_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of the look after a step, but of the save itself, which makes no directory above its own."""
    output, config = root / "gone", load_stage(stage_file(root, "gone"))
    prepare = CheckpointStore._prepare

    def gone(store: CheckpointStore, partial: Path) -> None:
        shutil.rmtree(output)
        prepare(store, partial)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "_prepare", gone)

        def main(rank: int, size: int) -> str:
            with pytest.raises(Exception, match="could not be written") as caught:
                run_stage(config)
            return type(caught.value).__name__

        assert run_ranks(2, main) == ["CheckpointError"] * 2
    assert not output.exists()
