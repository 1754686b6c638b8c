"""Where stages begin and what they write, by their files and settings.

They are read in a process of its own: what a file takes from the environment is concealed afterwards in all that a
process prints, and what is printed here are commands, to be used as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from megatron_apriel.config.load import load_stage


def places(stages: Sequence[tuple[str, Sequence[str]]]) -> list[tuple[Path, Path]]:
    """``init_from`` and ``output`` of stages, given by name and settings.

    Raises:
        ConfigError: a file with its settings cannot be read.
    """
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        return list(pool.map(_places_of, stages))


def _places_of(stage: tuple[str, Sequence[str]]) -> tuple[Path, Path]:
    name, settings = stage
    config = load_stage(f"examples/{name}.yaml", settings)
    return config.init_from, config.output
