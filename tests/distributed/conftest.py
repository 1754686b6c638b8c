"""What the tests of whole runs start from, made once for each of their files."""

from __future__ import annotations

from pathlib import Path

import pytest
from stage_runs import losses, run, write_inputs

from megatron_apriel.errors import ExitCode


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a text corpus and one with images."""
    return write_inputs(tmp_path_factory.mktemp("training"))


@pytest.fixture(scope="module")
def reference(root: Path) -> list[float]:
    """Losses of the undisturbed run in one process."""
    assert run(root, "reference") == [ExitCode.OK]
    values = losses(root, "reference")
    assert len(values) == 6
    assert len(set(values)) == 6
    return values
