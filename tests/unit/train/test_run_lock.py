"""A run's lock on its output directory: held by one, and never waited for or written over, whatever stands there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from megatron_apriel.errors import OutputError, TransientError
from megatron_apriel.train import run as run_module


@pytest.fixture(autouse=True)
def rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module.dist, "get_rank", lambda: 0)


def test_a_second_run_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    with (
        run_module._locked(tmp_path / "out"),
        pytest.raises(
            TransientError, match=rf"another run is writing to .*out: .*\.lock is locked by process {os.getpid()}"
        ),
    ):
        run_module._locked(tmp_path / "out")
    with run_module._locked(tmp_path / "out"):
        pass


@pytest.mark.timeout(120)
def test_a_pipe_or_link_in_place_of_the_lock_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(OutputError, match=r"cannot be locked: .*it is a pipe"):
        run_module._locked(tmp_path)
    (tmp_path / ".lock").unlink()
    (tmp_path / "somebodys").write_text("text")
    (tmp_path / ".lock").symlink_to("somebodys")
    with pytest.raises(OutputError, match=r"cannot be locked: .*it is a link"):
        run_module._locked(tmp_path)
    assert (tmp_path / "somebodys").read_text() == "text"


def test_other_ranks_lock_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module.dist, "get_rank", lambda: 1)
    with run_module._locked(tmp_path / "out"):
        assert not (tmp_path / "out").exists()
