"""What the tests of whole runs begin with."""

from __future__ import annotations

from pathlib import Path

import pytest
from whole_runs import write_inputs


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a checkpoint and two corpora."""
    root = tmp_path_factory.mktemp("training")
    write_inputs(root)
    return root
