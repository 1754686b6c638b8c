"""FP8 training of full-width slices with states and layers' inputs in host memory: every number as without, saved and
resumed without them, and memory as predicted."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from layout_runs import forget_scales

from benchmarks.cases import CASES, Case, small
from benchmarks.measure import prepared
from benchmarks.stages import stage_config
from megatron_apriel.batch import Batch
from megatron_apriel.checkpoint.store import CheckpointStore
from megatron_apriel.config.choices import Inputs
from megatron_apriel.config.machine_sections import RecomputeSection
from megatron_apriel.config.output_sections import KeepPolicy
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.json_files import write_json
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning.memory import RankMemory, rank_memory
from megatron_apriel.testing.marks import needs_transformer_engine
from megatron_apriel.testing.optimizer_state import optimizer_state
from megatron_apriel.train.step_result import StepResult
from megatron_apriel.train.trainer import Trainer

pytestmark = [pytest.mark.gpu, needs_transformer_engine]

TINY = False
"""True tries the same in miniature where there is no GPU."""
MICRO_BATCHES = 2
SMALL_VOCABULARY = 16384
"""Embedding and head would be most of what a slice saves."""


@pytest.fixture(autouse=True)
def repeatable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Attention whose backward pass adds up in one order."""
    monkeypatch.setenv("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "0")
    yield
    clean()


def clean() -> None:
    gc.collect()
    if not TINY:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak() -> int:
    return 0 if TINY else torch.cuda.max_memory_allocated()


@dataclass(frozen=True)
class Slice:
    """What is trained.

    Attributes:
        precision: a recipe of FP8.
        layers: of the decoder.
        recomputed: of them; None for all.
        share: of the states, on the host.
        inputs: where layers' inputs wait.
        case: kind of sequences.
        vocabulary: that of the model where None.
    """

    precision: str
    layers: int
    recomputed: int | None = None
    share: float = 0.0
    inputs: Inputs = "gpu"
    case: str = "8192"
    vocabulary: int | None = None

    def config(self, case: Case) -> StageConfig:
        recompute = RecomputeSection(mode="full", layers=self.recomputed, inputs=self.inputs)
        precision, fp8_weights = ("bf16", "kept") if TINY else (self.precision, "remade")
        config = stage_config(case, precision, recompute=recompute, fp8_weights=fp8_weights, host=self.share)  # type: ignore[arg-type]
        return config if TINY else config.model_copy(update={"attention": "cudnn"})

    def made(self) -> tuple[StageConfig, Architecture, list[Batch]]:
        case = replace(CASES[self.case], micro_batches=MICRO_BATCHES)
        case = small(case) if TINY else case
        architecture, batches = prepared(case, "ours", self.layers, TINY)
        if self.vocabulary is not None and not TINY:
            architecture = replace(architecture, decoder=replace(architecture.decoder, vocab_size=self.vocabulary))
            batches = [batch_within(batch, self.vocabulary) for batch in batches]
        return self.config(case), architecture, batches


def batch_within(batch: Batch, vocabulary: int) -> Batch:
    """The batch with ids of a smaller vocabulary; what is no target stays none."""
    labels_S = torch.where(batch.labels_S < 0, batch.labels_S, batch.labels_S % vocabulary)
    return replace(batch, tokens_S=batch.tokens_S % vocabulary, labels_S=labels_S)


class Run:
    """A slice in training.

    Attributes:
        trainer: the trainer.
        predicted: memory, by the plan.
    """

    def __init__(self, what: Slice) -> None:
        config, self.architecture, self._batches = what.made()
        if not TINY:
            forget_scales()
        clean()
        self.trainer = Trainer(self.architecture, config, Layout())
        self.predicted: RankMemory = rank_memory(config, self.architecture, Layout(), 0)

    def steps(self, count: int) -> list[StepResult]:
        given = [batch.to(groups.current_device()) for batch in self._batches]
        results = [self.trainer.step(iter(given), 1e-4) for _ in range(count)]
        assert all(result.applied for result in results)
        return results


@contextlib.contextmanager
def running(what: Slice) -> Iterator[Run]:
    with groups.initialized(Layout()):
        yield Run(what)


class Trained(NamedTuple):
    figures: list[tuple[float, float]]
    """Loss and gradient norm of each step."""
    state: dict[str, torch.Tensor]
    """On the host; nothing where it was not asked for."""


def figures(results: list[StepResult]) -> list[tuple[float, float]]:
    return [(result.loss, result.gradient_norm) for result in results]


def state_of(run: Run) -> dict[str, torch.Tensor]:
    return {name: tensor.cpu() for name, tensor in optimizer_state(run.trainer).items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def trained(what: Slice, steps: int, with_state: bool = True) -> Trained:
    with running(what) as run:
        return Trained(figures(run.steps(steps)), state_of(run) if with_state else {})


@pytest.mark.parametrize(("precision", "recomputed"), [("delayed", None), ("tensorwise", 2)])
def test_where_states_and_inputs_lie_changes_no_bit_of_training(precision: str, recomputed: int | None) -> None:
    here = Slice(precision, 4, recomputed)
    expected = trained(here, 20)
    again = trained(here, 20, with_state=False)
    assert again.figures == expected.figures, "the same run twice differs by itself"
    found = trained(replace(here, share=0.6, inputs="host"), 20)
    assert found.figures == expected.figures
    assert equal(found.state, expected.state)
    assert expected.figures[-1][0] < expected.figures[0][0]


@pytest.mark.parametrize(
    "what",
    [
        Slice("tensorwise", 8, share=1.0),
        Slice("delayed", 8, share=0.5, inputs="host", case="32768-sft"),
        Slice("tensorwise", 4, recomputed=2, share=0.5, inputs="host", case="32768-cpt1"),
    ],
    ids=["states", "inputs", "inputs and images"],
)
def test_the_gpu_holds_what_was_predicted(what: Slice) -> None:
    with running(what) as run:
        run.steps(1)
        if not TINY:
            torch.cuda.reset_peak_memory_stats()
        run.steps(2)
        assert TINY or peak() == pytest.approx(run.predicted.total, rel=0.03)


def test_saved_with_all_on_the_host_and_resumed_with_nothing_there(tmp_path: Path) -> None:
    """To the bit, and on from there; saving takes no memory of the GPU that training has not."""
    away = Slice("tensorwise", 4, share=1.0, inputs="host", vocabulary=SMALL_VOCABULARY)
    store = CheckpointStore(tmp_path / "checkpoints", KeepPolicy(policy="all"), 9)
    with running(away) as run:
        (tmp_path / "sidecars").mkdir()
        write_json(tmp_path / "sidecars" / "config.json", run.architecture.to_hf_config("bfloat16"))
        run.steps(1)
        if not TINY:
            torch.cuda.reset_peak_memory_stats()
        run.steps(2)
        store.save(3, run.trainer.chunks, run.trainer.optimizer, {}, tmp_path / "sidecars")
        assert TINY or peak() == pytest.approx(run.predicted.total, rel=0.03)
        saved, expected = state_of(run), figures(run.steps(2))
        ended = state_of(run)
    latest = store.latest()
    assert latest is not None
    with running(replace(away, share=0.0, inputs="gpu")) as run:
        store.load(latest, run.trainer.chunks, run.trainer.optimizer)
        assert equal(state_of(run), saved)
        assert figures(run.steps(2)) == expected
        assert equal(state_of(run), ended) and not equal(ended, saved)
