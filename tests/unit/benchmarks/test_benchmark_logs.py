"""The folder for what a benchmark's processes print: gone behind a benchmark, unless something failed."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

from benchmarks.logs import log_folder


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_nothing_is_left_where_nothing_failed(temporary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with log_folder() as logs:
        assert logs.folder.parent == temporary
        (logs.folder / "rank").mkdir()
        (logs.folder / "rank" / "0.log").write_text("step 1")
    assert list(temporary.iterdir()) == [] and capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_what_failed_can_be_read(
    temporary: Path, capsys: pytest.CaptureFixture[str], error: type[BaseException] | None
) -> None:
    with suppress(ValueError, KeyboardInterrupt), log_folder() as logs:
        (logs.folder / "0.log").write_text("no memory")
        logs.wanted = error is None
        if error is not None:
            raise error
    (left,) = temporary.iterdir()
    assert (left / "0.log").read_text() == "no memory" and capsys.readouterr().err == f"logs in {left}\n"
