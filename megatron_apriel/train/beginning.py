"""Where a stage stands before it starts: what it begins or resumes from, on which layout, after how many steps."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_apriel.checkpoint.store import CheckpointStore, newest_checkpoint
from megatron_apriel.checkpoint.weights import open_weights
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.data.loading.stage_data import StageData
from megatron_apriel.errors import CheckpointError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.kinds import architecture_of, sidecar_directory
from megatron_apriel.formats.run_directory import RunDirectory
from megatron_apriel.formats.run_record import RunState, read_run_file, run_state
from megatron_apriel.model.options import ModelOptions, check_options
from megatron_apriel.outputs import check_destination
from megatron_apriel.parallel.checks import check_layout
from megatron_apriel.parallel.layout import Layout, started_ranks
from megatron_apriel.train.changes import Resumption, resumption


@dataclass(frozen=True)
class Beginning:
    """Where a stage stands before it starts: its model, layout, and the checkpoint that it resumes from, if any.

    ``state`` is the run's own in that checkpoint, as :func:`megatron_apriel.train.loop.train` saved it; ``resumed``
    what it continues with.
    """

    architecture: Architecture
    layout: Layout
    newest: Path | None
    state: RunState | None
    resumed: Resumption | None
    finished_steps: int

    def ended(self, config: StageConfig) -> bool:
        """Whether all steps are done, and the run was not made so short only now."""
        new = self.resumed.new if self.resumed is not None else None
        return self.finished_steps == config.steps and not (new is not None and "tokens" in new.settings)


def beginning_of(config: StageConfig, store: CheckpointStore, change: bool) -> Beginning:
    """Checked against the configuration. Raises the project's errors.

    Args:
        config: the stage.
        store: of the run's checkpoints.
        change: whether what may change within a run may differ from the newest of them.
    """
    check_options(ModelOptions.from_stage(config))
    # Checked as the first thing that is made below the output, with or without an export.
    check_destination(RunDirectory(config.output).final, overwrite=True)
    newest = store.latest()
    if newest is None:
        architecture = architecture_of(config.init_from)
        # The weights must be those of the config before memory is taken for a model of its shapes.
        open_weights(config.init_from, architecture)
        return Beginning(architecture, check_layout(config, architecture, _ranks()), None, None, None, 0)
    record = read_run_file(newest)
    state = run_state(newest, record)
    resumed = resumption(config, newest, record.step, state, change)
    _check_position(config, newest, record.step, state.sequences)
    architecture = architecture_of(newest)
    layout = check_layout(config, architecture, _ranks())
    return Beginning(architecture, layout, newest, state, resumed, record.step)


def with_tokens(config: StageConfig) -> StageConfig:
    """The stage with its ``epochs`` counted: once, when it begins. A run that has as many epochs keeps its tokens."""
    if config.epochs is None:
        return config
    newest = newest_checkpoint(RunDirectory(config.output).checkpoints)
    if newest is not None:
        saved = run_state(newest, read_run_file(newest)).config
        if saved.tokens is not None and saved.epochs == config.epochs:
            return config.lasting(saved.tokens)
    begun = newest or config.init_from
    return StageData.open(config, architecture_of(begun), sidecar_directory(begun)).config


def _check_position(config: StageConfig, newest: Path, step: int, sequences: int) -> None:
    """Steps and sequences say the same, and neither lies behind the run's end."""
    if step > config.steps or sequences != step * config.sequences_per_step:
        raise CheckpointError(
            f"{newest} is of step {step} after {sequences} sequences; the run has {config.steps} steps of "
            f"{config.sequences_per_step} sequences.",
            "Its run.json was changed.",
            f"Remove or rename {newest} to resume from the checkpoint before it.",
        )


def _ranks() -> int:
    return started_ranks(os.environ, "WORLD_SIZE", "SLURM_NTASKS")


def check_same_everywhere(newest: Path | None) -> None:
    """Refuse to start where hosts see different checkpoints; collective."""
    everywhere: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, newest.name if newest is not None else "none")
    other = next((rank for rank, name in enumerate(everywhere) if name != everywhere[0]), None)
    if other is not None:
        raise CheckpointError(
            f"the newest checkpoint is {everywhere[0]} for rank 0 and {everywhere[other]} for rank {other}.",
            "Ranks that resume from different steps would train different models.",
            "The output directory must lie on a file system that all hosts share.",
        )
