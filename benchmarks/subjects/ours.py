"""This project's trainer, as a stage has it, without a stage's files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.cases import Case
from benchmarks.subjects.megatron_memory import megatron_memory
from megatron_apriel.batch import Batch
from megatron_apriel.config.choices import Compute, Fp8Weights
from megatron_apriel.config.data_sections import SourceSection
from megatron_apriel.config.machine_sections import ParallelSection, PrecisionSection, RecomputeSection
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.config.training_sections import OptimizerSection
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.train.trainer import Trainer


class Ours:
    """The trainer of a stage, on one of the ranks of a layout."""

    def __init__(self, architecture: Architecture, config: StageConfig, layout: Layout) -> None:
        self.config, self.trainer = config, Trainer(architecture, config, layout)

    def step(self, batches: Sequence[Batch], rate: float | None = None) -> float:
        """One step on all of ``batches``; at the peak learning rate where no other is given."""
        result = self.trainer.step(iter(batches), rate or self.config.optimizer.peak, len(batches))
        if not result.applied:
            # Its time would be no training step's: numbers that are not finite cost less power, and no update was made.
            raise ArithmeticError(f"a step was skipped: loss {result.loss}, gradient norm {result.gradient_norm}")
        return result.loss

    def memory(self) -> dict[str, int]:
        return megatron_memory(self.trainer.wrapped, self.trainer.optimizer)


def stage_config(
    case: Case,
    precision: str,
    parallel: ParallelSection | None = None,
    recompute: RecomputeSection | None = None,
    compute: Compute | None = None,
    fp8_weights: Fp8Weights = "kept",
    host: float | Literal["auto"] = 0.0,
) -> StageConfig:
    """A stage that does nothing but what is measured, one step of the case's micro-batches over all ranks.

    Args:
        case: gives lengths, trained parts and the number of sequences of a step.
        precision: ``bf16`` or a recipe of FP8.
        parallel: the layout; one rank where None.
        recompute: nothing is recomputed where None.
        compute: type of what is not in 8 bits; bf16 on a GPU and fp32 elsewhere where None.
        fp8_weights: whether 8-bit copies of weights are kept over micro-batches.
        host: part of the optimizer's states that lies in host memory.
    """
    nowhere = Path("unused")
    fp8: Any = "none" if precision == "bf16" else precision
    compute = compute or ("bf16" if torch.cuda.is_available() else "fp32")
    return StageConfig(
        stage="benchmark",
        init_from=nowhere,
        output=nowhere,
        train=case.train,
        sequence_length=case.sequence_length,
        batch_tokens=case.sequence_length * case.micro_batches,
        tokens=case.sequence_length * case.micro_batches,
        mixture=[SourceSection(corpus=nowhere)],
        optimizer=OptimizerSection(peak=1e-5, host=host),
        precision=PrecisionSection(compute=compute, fp8=fp8, fp8_weights=fp8_weights),
        parallel=parallel or ParallelSection(),
        recompute=recompute or RecomputeSection(),
    )


@contextlib.contextmanager
def opened(architecture: Architecture, case: Case, precision: str) -> Iterator[Ours]:
    """This project's step on slices of ``architecture``, alone on this process's device.

    Args:
        architecture: the slice.
        case: what it trains on.
        precision: as in the subject's name, with the mode of recomputation after a plus sign.
    """
    precision, _, mode = precision.partition("+")
    recompute = RecomputeSection.model_validate({"mode": mode or "none"})
    with groups.initialized(Layout()):
        yield Ours(architecture, stage_config(case, precision, recompute=recompute), Layout())
