"""Steps whose global batch holds no target: no update, on any layout, and whole runs that have such steps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stage_runs import records, run
from training_run import ARCHITECTURE

from megatron_apriel.batch import IGNORED_LABEL, Batch
from megatron_apriel.config.schedule import learning_rate
from megatron_apriel.config.training_sections import OptimizerSection
from megatron_apriel.errors import ExitCode
from megatron_apriel.parallel import groups
from megatron_apriel.testing.checkpoints import hf_model
from megatron_apriel.testing.corpora import write_corpus
from megatron_apriel.testing.layouts import ALONE, CASES, LAYOUTS, LayoutRun, Setup, batches
from megatron_apriel.testing.optimizer_state import optimizer_state
from megatron_apriel.testing.ranks import RankFailure, run_ranks
from megatron_apriel.testing.weights import from_transformers
from megatron_apriel.train.step_result import StepResult

CASE, LENGTH, TEXT = CASES["all, mixed"], 48, 8
RUN_ON = ("DP2 overlap", "TP2 SP", "PP2", "PP2 VP2 overlap", "CP2 DP2 overlap", "TP2 SP PP2 recompute")


def without_targets(batch: Batch) -> Batch:
    return replace(batch, labels_S=torch.full_like(batch.labels_S, IGNORED_LABEL), num_loss_tokens=0)


def trained(setup: Setup, compute: str, weights: dict[str, torch.Tensor]) -> LayoutRun:
    return LayoutRun(ARCHITECTURE, CASE, setup, weights, LENGTH, TEXT, precision={"compute": compute})


def empty_step(of: LayoutRun, number: int, all_but: int | None = None) -> StepResult:
    """A step without targets; but for those of sequence ``all_but``, where it is given."""

    def silenced() -> Iterator[Batch]:
        for batch in batches(ARCHITECTURE, CASE, number, of.trainer.layout, LENGTH, TEXT):
            yield batch if batch.sequence == all_but else without_targets(batch)

    return of.trainer.step(silenced(), of.config.optimizer.peak)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return from_transformers(hf_model(ARCHITECTURE, seed=1).state_dict(), ARCHITECTURE)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("compute", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["one", *RUN_ON])
def test_a_step_without_a_target_changes_nothing_and_the_next_is_as_without_it(
    name: str, compute: str, weights: dict[str, torch.Tensor]
) -> None:
    setup = LAYOUTS.get(name, ALONE)

    def on_rank(rank: int, size: int) -> None:
        with groups.initialized(setup.layout):
            disturbed, undisturbed = trained(setup, compute, weights), trained(setup, compute, weights)
            start = optimizer_state(undisturbed.trainer)
            for run in (disturbed, undisturbed):
                for number in range(2):
                    if run is disturbed:
                        before = optimizer_state(run.trainer)
                        result = empty_step(run, 7 + number)
                        assert (result.applied, result.finite, result.empty) == (False, True, True)
                        assert (result.loss, result.gradient_norm, result.bad_sequences) == (0.0, 0.0, [])
                        after = optimizer_state(run.trainer)
                        assert set(before) <= set(after)
                        assert equal(before, {name: after[name] for name in before})
                        # Moments may be made there; they then hold nothing.
                        assert not any(after[name].any() for name in after.keys() - before.keys())
                    result = run.step(number)
                    assert result.applied and not result.empty
            ends = [optimizer_state(run.trainer) for run in (disturbed, undisturbed)]
            assert equal(*ends)
            assert not equal(start, {name: ends[0][name] for name in start})

    run_ranks(setup.layout.world_size, on_rank)


@pytest.mark.parametrize("name", RUN_ON)
def test_one_target_on_any_rank_is_an_update(name: str, weights: dict[str, torch.Tensor]) -> None:
    setup = LAYOUTS[name]

    def on_rank(rank: int, size: int) -> list[tuple[float, float]]:
        with groups.initialized(setup.layout):
            run = trained(setup, "fp32", weights)
            results = [empty_step(run, 0, all_but=sequence) for sequence in range(len(CASE.images))]
        assert all(result.applied and not result.empty for result in results)
        return [(result.loss, sum(result.source_counts)) for result in results]

    found = run_ranks(setup.layout.world_size, on_rank)
    assert all(losses == found[0] for losses in found)
    assert all(loss > 0 and count > 0 for loss, count in found[0])


PROMPTS, ANSWERS = 5, 3
CHATS = (
    "sequence_length=128", "batch_tokens=128", "tokens=1024", "validation=null", "logging.every=1",
    "train={decoder: 1.0}",
)  # fmt: skip


@pytest.fixture
def chats(root: Path) -> str:
    """A document of eight sequences, of which the last three hold its response, as a mixture."""
    size = 128 * (PROMPTS + ANSWERS)
    write_corpus(root / "chats", [size], responses=lambda tokens: np.arange(tokens) >= 128 * PROMPTS)
    return f"mixture=[{{corpus: {root}/chats, loss: responses, long_documents: split}}]"


def test_a_run_counts_its_steps_without_a_target(root: Path, chats: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(root, "chatting", *CHATS, chats) == [ExitCode.OK]
    steps, empty = records(root, "chatting", "step"), records(root, "chatting", "empty")
    assert (len(steps), len(empty)) == (ANSWERS, PROMPTS)
    assert [record["empty"] for record in empty] == list(range(1, PROMPTS + 1))
    assert all((record["sources"], record["sequences"]) == (["chats"], 1) for record in empty)
    # The schedule and the position in the data go on.
    assert sorted(record["step"] for record in [*steps, *empty]) == list(range(1, 9))
    schedule = OptimizerSection(peak=1e-2, warmup="20%")
    for record in steps:
        assert record["lr"] == learning_rate(record["step"] - 1, 8, schedule)
        assert record["skipped"] == 0 and record["loss_tokens"] in (127, 128)
        assert record["empty"] == sum(other["step"] < record["step"] for other in empty)
    (end,) = records(root, "chatting", "end")
    assert (end["complete"], end["skipped"], end["empty"]) == (True, 0, PROMPTS)
    assert not (root / "chatting" / "skipped_steps.jsonl").exists()
    printed = capfd.readouterr().out
    assert "EMPTY, no update: none of its 1 sequence (chats) has a token to learn; 5 such steps in all" in printed
    assert "without an update: 0 skipped, 5 empty" in printed


def test_a_resumed_run_goes_on_counting(root: Path, chats: str) -> None:
    assert run(root, "cut_short", *CHATS, chats, "checkpoint.keep=all", "checkpoint.every=4") == [ExitCode.OK]
    last = max(path for path in (root / "cut_short" / "checkpoints").iterdir())
    assert json.loads((last / "run.json").read_text())["extra"]["empty"] == PROMPTS
    last.rename(root / "cut_short" / "aside")
    assert run(root, "cut_short", *CHATS, chats, "checkpoint.keep=all", "checkpoint.every=4") == [ExitCode.OK]
    first, again = records(root, "cut_short", "end")
    assert (first["empty"], again["empty"]) == (PROMPTS, PROMPTS)


def test_documents_without_a_target_are_counted_in_the_figures(root: Path) -> None:
    write_corpus(root / "some", [300, 200, 40, 1])
    source = f"{{corpus: {root}/some, loss: responses, long_documents: truncate, without_targets: drop}}"
    assert run(root, "counted", f"mixture=[{source}]", "validation=null", "train={decoder: 1.0}", ranks=2) == [0, 0]
    (figures,) = records(root, "counted", "source")
    names = ("source", "documents", "long_documents", "dropped_documents", "dropped_tokens")
    assert [figures[name] for name in names] == ["some", 4, 2, 0, 172 + 72]
    names = ("without_targets", "without_targets_as_cut", "shortened_documents", "lost_targets", "images")
    assert [figures[name] for name in names] == [2, 1, 2, 150 + 72, 0]


def test_a_run_from_before_these_settings_is_resumed(root: Path, chats: str) -> None:
    words = (*CHATS, "checkpoint.keep=all", "checkpoint.every=4")
    assert run(root, "older", *words, chats) == [ExitCode.OK]
    checkpoints = root / "older" / "checkpoints"
    (checkpoints / "step_00000008").rename(root / "older" / "aside")
    file = checkpoints / "step_00000004" / "run.json"
    record = json.loads(file.read_text())
    del record["extra"]["empty"]
    for source in record["extra"]["config"]["mixture"]:
        del source["without_targets"]
    file.write_text(json.dumps(record))
    with pytest.raises(RankFailure, match=r"mixture\[\w+\]\.without_targets: error -> drop"):
        run(root, "older", *words, chats.replace("}", ", without_targets: drop}"))
    assert run(root, "older", *words, chats) == [ExitCode.OK]
    first, again = ({record["step"]: record["loss"] for record in half} for half in halves(root, "older"))
    assert again and again.items() <= first.items()


def halves(root: Path, name: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The records of a run's steps, before it was resumed after step 4 and after."""
    steps = records(root, name, "step")
    place = next(place for place in range(1, len(steps)) if steps[place]["step"] <= steps[place - 1]["step"])
    return steps[:place], steps[place:]
