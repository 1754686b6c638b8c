"""The tools as functions, and a checkpoint by transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from surgery_files import SMALL

from megatron_apriel.errors import run_command
from megatron_apriel.testing.scripts import load_script


def _tool(name: str) -> Callable[..., int]:
    module = load_script(f"tools/{name}.py")

    def run(*arguments: object) -> int:
        return run_command(lambda: module.main([str(argument) for argument in arguments]))

    return run


@pytest.fixture(scope="session")
def upscale_layers() -> Callable[..., int]:
    """``tools/upscale_layers.py`` as a function of its arguments, returning its exit code."""
    return _tool("upscale_layers")


@pytest.fixture(scope="session")
def average_checkpoints() -> Callable[..., int]:
    """``tools/average_checkpoints.py`` as a function of its arguments, returning its exit code."""
    return _tool("average_checkpoints")


@pytest.fixture(scope="session")
def llava_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same random LLaVA model in float32 by transformers: legacy and v5 names, one file and several."""
    from megatron_apriel.testing.checkpoints import write_hf_checkpoint

    folder = tmp_path_factory.mktemp("llava")
    legacy = write_hf_checkpoint(folder / "legacy", SMALL, max_shard_size="60KB")
    return {"legacy": legacy, "v5": write_hf_checkpoint(folder / "v5", SMALL, names="v5")}
