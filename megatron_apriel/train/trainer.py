"""A stage's model, data-parallel wrapper and optimizer on this rank, put together, and the step on them.

This is the only place where they are put together. The command line trains through it, benchmarks measure it, and the
tests run every layout of the table on it, so that what is proved and measured is the step that users run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer

from megatron_apriel.batch import Batch
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.model.apriel import AprielModel
from megatron_apriel.model.builder import build_model
from megatron_apriel.model.freeze import apply_freezing
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.train.objectives.next_token import NextToken
from megatron_apriel.train.objectives.objective import Objective
from megatron_apriel.train.optimizer import build_optimizer, set_learning_rate, wrap_data_parallel
from megatron_apriel.train.state_placement import place_inputs, place_states
from megatron_apriel.train.step import evaluate, train_step
from megatron_apriel.train.step_result import Shared, StepResult


class Trainer:
    """One rank's part of a stage in training. Process groups must exist (``parallel.groups.initialized``).

    Args:
        architecture: of the model.
        config: of the stage.
        layout: where this rank stands.
        initialise: gives the new model its weights, before the optimizer takes its copies of them; the initial ones
            stay where it does nothing.
        objective: what is minimised; the next token's cross entropy where None.

    Attributes:
        chunks: this rank's bare model chunks.
        wrapped: the same, with sums of gradients that are shared over data-parallel ranks.
        optimizer: Megatron's distributed optimizer.
        inputs: what enters recomputed layers, where it waits on the host.
        shared: the caller's numbers that travel with a step's; may be replaced between steps.

    Raises:
        ConfigError: what the stage asks for cannot run here, or the host has less memory than it needs.
    """

    chunks: list[AprielModel]
    wrapped: list[DistributedDataParallel]
    optimizer: MegatronOptimizer

    def __init__(
        self,
        architecture: Architecture,
        config: StageConfig,
        layout: Layout,
        initialise: Callable[[list[AprielModel]], Any] | None = None,
        objective: Objective | None = None,
    ) -> None:
        self.architecture, self.config, self.layout = architecture, config, layout
        self.objective: Objective = objective or NextToken()
        self.shared = Shared()
        self.chunks = build_model(architecture, config, layout)
        if initialise is not None:
            initialise(self.chunks)
        apply_freezing(self.chunks, config.train)
        self.wrapped = wrap_data_parallel(self.chunks, config)
        self.optimizer = build_optimizer(self.wrapped, config)
        self.inputs = place_inputs(self.chunks, config, architecture, layout)
        beside = self.inputs.host_bytes if self.inputs is not None else 0
        place_states(self.optimizer, config, architecture, layout, beside)

    @property
    def micro_batches(self) -> int:
        """Of this rank, in a step."""
        return self.config.sequences_per_step // self.layout.data

    def step(self, batches: Iterable[Batch], rate: float, micro_batches: int | None = None) -> StepResult:
        """Train one step; collective.

        Args:
            batches: this rank's micro-batches of the step, on its device.
            rate: learning rate, to which the components' factors apply.
            micro_batches: how many there are; the configuration's number where None.
        """
        set_learning_rate(self.optimizer, rate, self.config.optimizer)
        return train_step(
            self.wrapped,
            self.optimizer,
            self.objective,
            batches,
            self.shared,
            micro_batches=micro_batches or self.micro_batches,
            sequence_length=self.config.sequence_length,
            sources=len(self.config.mixture),
            clip=self.config.optimizer.clip,
        )

    def evaluate(
        self,
        batches: Iterable[Batch],
        micro_batches: int,
        sources: int = 1,
        objective: Objective | None = None,
        sequence_length: int | None = None,
    ) -> StepResult:
        """An objective on ``micro_batches`` batches of each rank, which come from ``sources`` sources; collective.

        Objective and length of the sequences are those of training where they are None.
        """
        return evaluate(
            self.wrapped,
            objective or self.objective,
            batches,
            micro_batches=micro_batches,
            sequence_length=sequence_length or self.config.sequence_length,
            sources=sources,
        )

    @contextlib.contextmanager
    def gathered_parameters(self) -> Iterator[None]:
        """Within it, the chunks hold the newest parameters: their gathering may still be under way otherwise."""
        overlap = self.config.parallel.overlap
        if overlap:
            for chunk in self.wrapped:
                chunk.disable_forward_pre_hook(param_sync=True)
        yield
        if overlap:
            for chunk in self.wrapped:
                chunk.enable_forward_pre_hook()
