"""Whether a checkpoint of a run fits on the file system that it goes to: known at the start, not at the first save.

Only what is sure: the least that a checkpoint takes, so that nothing is refused that could be saved. Whole checkpoints
are written beside those that they replace, so what these take is no room for them. What a save that was cut off left
is: the next one removes it first.
"""

from __future__ import annotations

from pathlib import Path

from megatron_apriel.config.schema import StageConfig
from megatron_apriel.errors import OutputError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.run_directory import RunDirectory, partials_in
from megatron_apriel.outputs import free_space
from megatron_apriel.planning.choosing_moments import with_moments
from megatron_apriel.planning.memory import bytes_to_save


def least_checkpoint_bytes(config: StageConfig, architecture: Architecture) -> int:
    """Bytes that a checkpoint of the run takes at least: all weights, and the states of those that train.

    Of moments in 8 bits some are saved in bfloat16, and no more is counted of the others.
    """
    if config.optimizer.moments != "float32":
        config = with_moments(config, "bfloat16")
    return int(bytes_to_save(config, architecture))


def lacking_room(config: StageConfig, architecture: Architecture) -> str:
    """A sentence where the file system of the output has too little room for a checkpoint; empty where it may fit."""
    needed = least_checkpoint_bytes(config, architecture)
    place, free = free_space(config.output)
    if free >= needed or free + _of_broken_saves(config.output) >= needed:
        return ""
    return f"a checkpoint of this run takes at least {needed:,} bytes, and {place} has {free:,} bytes free."


def _of_broken_saves(output: Path) -> int:
    partials = partials_in(RunDirectory(output).checkpoints)
    return sum(file.stat().st_size for each in partials for file in each.rglob("*") if file.is_file())


def check_room(config: StageConfig, architecture: Architecture) -> None:
    """Raise OutputError where the file system of the output has too little room for a checkpoint."""
    if lacking := lacking_room(config, architecture):
        raise OutputError(
            lacking,
            "Training would end at its first save, and all steps before it would be lost.",
            "Free some space, or give an output on another file system.",
        )
