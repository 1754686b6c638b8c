"""What the tests of whole runs start from, made once for each of their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stage_runs import ARCHITECTURE, losses, run

from megatron_apriel.errors import ExitCode
from megatron_apriel.testing.checkpoints import write_hf_checkpoint
from megatron_apriel.testing.corpora import random_pixels, write_corpus


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a text corpus and one with images."""
    root = tmp_path_factory.mktemp("training")
    write_hf_checkpoint(root / "model", ARCHITECTURE)
    generator = np.random.default_rng(0)
    write_corpus(root / "text", [int(length) for length in generator.integers(10, 160, 40)])
    documents = [[8, random_pixels(generator, *map(int, generator.integers(9, 32, 2))), 24] for _ in range(24)]
    write_corpus(root / "images", documents, seed=1)
    return root


@pytest.fixture(scope="module")
def reference(root: Path) -> list[float]:
    """Losses of the undisturbed run in one process."""
    assert run(root, "reference") == [ExitCode.OK]
    values = losses(root, "reference")
    assert len(values) == 6
    assert len(set(values)) == 6
    return values
