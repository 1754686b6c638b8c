"""Slices of the full-width model in training on one GPU, for tests that compare runs to the bit or with the plan.

Everything is made, kept and compared where it is trained: billions of numbers on their way to the host and through it
would take minutes. The vocabulary is small where it is not said otherwise, since embedding and head would be most of a
slice.

Two runs are only equal where every kernel adds up in one order. Of the attention for packed sequences that is cuDNN's
by Transformer Engine (``NVTE_ALLOW_NONDETERMINISTIC_ALGO=0``), for few tokens: on Hopper its room grows with their
square, and from 2**30 heads times tokens times tokens on Transformer Engine takes something else without a word.

Where there is no GPU and the tests are not skipped for that, the same is trained in miniature.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from benchmarks.cases import CASES, batches, small
from benchmarks.stages import stage_config
from megatron_apriel.batch import Batch
from megatron_apriel.config.choices import Fp8Weights, Inputs, Recompute
from megatron_apriel.config.machine_sections import RecomputeSection
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.config.training_sections import OptimizerSection
from megatron_apriel.formats.architecture import Architecture, DecoderArchitecture
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.fp8_scales import forget_scales
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning.memory import RankMemory, rank_memory
from megatron_apriel.testing.optimizer_state import kept_states
from megatron_apriel.train.step_result import StepResult
from megatron_apriel.train.trainer import Trainer

TINY = not torch.cuda.is_available()
SMALL_VOCABULARY = 16384
FEW_TOKENS = 1024
"""Of a sequence of one document, for which 32 heads take 4 GiB to go backward in one order."""
RATE = 1e-5
SEED = 1234


@dataclass(frozen=True)
class Slice:
    """What is trained.

    Attributes:
        precision: ``bf16`` or a recipe of FP8.
        layers: of the decoder.
        recompute: mode of recomputation.
        recomputed: with ``full``, of so many layers; None for all.
        inputs: where layers' inputs wait.
        fp8_weights: how long 8-bit copies of weights live.
        optimizer: settings of the optimizer: where its states lie, and in which form.
        case: kind of sequences, with their length; one document of :data:`FEW_TOKENS` where None, by kernels that add
            up in one order.
        width: ``full`` as Apriel-1.5, or the ``half`` or less of it where only the arithmetic counts.
        whole_vocabulary: and not :data:`SMALL_VOCABULARY`.
        micro_batches: of a step.
    """

    precision: str
    layers: int
    recompute: Recompute = "full"
    recomputed: int | None = None
    inputs: Inputs = "gpu"
    fp8_weights: Fp8Weights = "remade"
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    case: str | None = None
    width: Literal["full", "half"] = "full"
    whole_vocabulary: bool = False
    micro_batches: int = 2

    def on_host(self, share: float) -> Slice:
        """The same with a share of the states there, and layers' inputs where there are any."""
        inputs: Inputs = "host" if self.recompute == "full" else "gpu"
        return replace(self, optimizer={**self.optimizer, "host": share}, inputs=inputs)

    def architecture(self) -> Architecture:
        whole = Architecture.from_preset("tiny" if TINY else "apriel-15b").with_layers(self.layers)
        decoder = whole.decoder
        if not TINY and self.width == "half":
            decoder = DecoderArchitecture(2048, self.layers, 16, 4, 128, 5632, decoder.vocab_size)
        if not TINY and not self.whole_vocabulary:
            decoder = replace(decoder, vocab_size=SMALL_VOCABULARY)
        if self.case is not None and CASES[self.case].has_images:
            return replace(whole, decoder=decoder)
        return Architecture(decoder, image_token_id=whole.image_token_id)

    def made(self) -> tuple[StageConfig, Architecture, list[Batch]]:
        case = replace(CASES[self.case or "8192"], micro_batches=self.micro_batches)
        case = case if self.case else replace(case, sequence_length=FEW_TOKENS)
        case = small(case) if TINY else case
        recompute = RecomputeSection(mode=self.recompute, layers=self.recomputed, inputs=self.inputs)
        precision = "bf16" if TINY else self.precision
        weights = "kept" if precision == "bf16" else self.fp8_weights
        config = stage_config(case, precision, recompute=recompute, compute="bf16", fp8_weights=weights)
        changes: dict[str, Any] = {"optimizer": OptimizerSection(peak=1e-5, **self.optimizer)}
        if self.case is None and not TINY:
            changes["attention"] = "cudnn"
        architecture = self.architecture()
        return config.model_copy(update=changes), architecture, batches(case, architecture)


class Run:
    """A slice in training, within the process groups of one rank.

    Attributes:
        trainer: the trainer.
        predicted: memory, by the plan.
        held_before: bytes of the GPU that something else in the process held when this began.
    """

    def __init__(self, what: Slice) -> None:
        config, self.architecture, made = what.made()
        free()
        self.held_before = 0 if TINY else torch.cuda.memory_allocated()
        groups.seed_all(SEED)
        self.trainer = Trainer(self.architecture, config, Layout())
        self.predicted: RankMemory = rank_memory(config, self.architecture, Layout(), 0)
        self._batches = [batch.to(groups.current_device()) for batch in made]

    def steps(self, count: int) -> list[StepResult]:
        results = [self.trainer.step(iter(self._batches), RATE) for _ in range(count)]
        assert all(result.applied for result in results)
        return results

    def figures(self, count: int) -> list[tuple[float, float]]:
        """Loss and gradient norm of so many steps."""
        return [(result.loss, result.gradient_norm) for result in self.steps(count)]

    def state(self) -> dict[str, torch.Tensor]:
        """Copies of weights and states, where they are trained."""
        return kept_states(self.trainer)

    def peak_of(self, work: Callable[[], object]) -> int:
        """Most bytes of the GPU that the process holds during some work; nothing where there is none."""
        if TINY:
            work()
            return 0
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated()

    def end(self) -> None:
        """Give back everything, also to those who still hold this run."""
        del self.trainer, self._batches
        free()


@contextlib.contextmanager
def running(what: Slice) -> Iterator[Run]:
    """A slice in training; process groups must exist."""
    before = os.environ.get("NVTE_ALLOW_NONDETERMINISTIC_ALGO")
    os.environ["NVTE_ALLOW_NONDETERMINISTIC_ALGO"] = "0" if what.case is None else "1"
    run = None
    try:
        run = Run(what)
        yield run
    finally:
        if run is not None:
            run.end()
        del os.environ["NVTE_ALLOW_NONDETERMINISTIC_ALGO"]
        if before is not None:
            os.environ["NVTE_ALLOW_NONDETERMINISTIC_ALGO"] = before


def free() -> None:
    """Nothing of runs that have ended is held, on GPU and host."""
    forget_scales()
    gc.collect()
    if not TINY:
        torch.cuda.empty_cache()


def attention_by_cudnn() -> bool:
    """Whether Transformer Engine chose it for the last step."""
    from transformer_engine.pytorch.attention.dot_product_attention import dot_product_attention

    return bool(dot_product_attention._attention_backends["use_fused_attention"])


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())
