"""A run that is stopped again and again before it finishes a step is not started for ever."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_apriel.errors import ConfigError
from megatron_apriel.formats.run_directory import RunDirectory
from megatron_apriel.train import run as run_module


@pytest.fixture(autouse=True)
def rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module.dist, "get_rank", lambda: 0)


def stopped(output: Path, begun_at: int, finished: int, reason: str = "SIGTERM") -> None:
    stage = SimpleNamespace(finished_steps=finished)
    run_module._check_progress(stage, RunDirectory(output), begun_at, reason)  # type: ignore[arg-type]


def test_two_starts_without_a_step_are_an_error_and_a_third_begins_anew(tmp_path: Path) -> None:
    stopped(tmp_path, 40, 40, "SIGUSR1")
    with pytest.raises(ConfigError, match=r"two starts in a row .* after step 40: SIGUSR1; SIGTERM"):
        stopped(tmp_path, 40, 40)
    stopped(tmp_path, 40, 40)
    assert (tmp_path / ".stopped-early").read_text() == "step 40: SIGTERM\n"


def test_a_step_between_two_early_stops_is_progress(tmp_path: Path) -> None:
    stopped(tmp_path, 40, 40)
    stopped(tmp_path, 40, 41)
    assert not (tmp_path / ".stopped-early").exists()
    stopped(tmp_path, 41, 41)
    # A start that made steps and then failed leaves the mark, which is of an earlier step.
    stopped(tmp_path, 48, 48)
    with pytest.raises(ConfigError, match="after step 48"):
        stopped(tmp_path, 48, 48)


def test_other_ranks_look_at_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module.dist, "get_rank", lambda: 1)
    for _ in range(3):
        stopped(tmp_path, 0, 0)
    assert not list(tmp_path.iterdir())
