"""This project's trainer, as a stage has it, without a stage's files."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence

import torch

from benchmarks.cases import Case
from benchmarks.stages import stage_config
from benchmarks.subjects.megatron_memory import megatron_memory
from megatron_apriel.batch import Batch
from megatron_apriel.config.machine_sections import RecomputeSection
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.train.optimizer import apply_gradients, gradient_norm
from megatron_apriel.train.trainer import Trainer

UPDATES = 3
"""Of which the median counts."""


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

    def update_seconds(self, with_norm: bool = False) -> float:
        """Duration of an update from the last step's gradients, scaled so that it changes next to nothing.

        Args:
            with_norm: with what else a step does once for every parameter: gradients set to zero, and their norm.
        """
        optimizer, durations = self.trainer.optimizer, []
        factor = torch.full((), 1e-9, dtype=torch.float64, device=groups.current_device())
        optimizer.prepare_grads()
        for _ in range(UPDATES):
            _wait()
            begun = time.perf_counter()
            if with_norm:
                for chunk in self.trainer.wrapped:
                    chunk.zero_grad_buffer()
                gradient_norm(optimizer)
            apply_gradients(optimizer, factor)
            _wait()
            durations.append(time.perf_counter() - begun)
        return statistics.median(durations)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


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
