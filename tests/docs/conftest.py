"""One shortened quickstart for all tests of this directory, run by its own command."""

from __future__ import annotations

from pathlib import Path

import pytest
from documents import ROOT, run_quickstart


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory like the project's root after ``make quickstart``."""
    root = tmp_path_factory.mktemp("workplace")
    for name in ("tools", "examples"):
        (root / name).symlink_to(ROOT / name)
    result = run_quickstart(root / "runs" / "quickstart")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]
    (root / "quickstart.log").write_text(result.stdout, encoding="utf-8")
    return root
