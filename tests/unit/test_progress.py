"""Progress in lines, for logs, and on a terminal."""

from __future__ import annotations

import io
import sys

import pytest

from megatron_apriel import progress as module
from megatron_apriel.progress import progress


def test_quiet_when_quick(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("preparing", 3, "record") as step:
        step(3)
    assert capsys.readouterr().err == ""


def test_lines_with_rate_and_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 4.0, 11.0, 100.0, 100.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress("copying", 4_000_000, "byte") as step:
        step(500_000)
        step(600_000)
    first, last = capsys.readouterr().err.splitlines()
    assert first == "copying: 1.1 MB of 4.0 MB, 100.0 kB/s, 0:29 left"
    assert last == "copying: 1.1 MB of 4.0 MB, 11.0 kB/s, done in 1:40"


def test_one_of_something_is_not_many(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 20.0, 40.0, 40.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress("asking", 1, "question") as step:
        step()
    first, last = capsys.readouterr().err.splitlines()
    assert first == "asking: 1 question of 1 question, 0.1 questions/s, 0:00 left"
    assert last.startswith("asking: 1 question of 1 question, 0.0 questions/s, done")


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LINES", 0.0)
    with progress("preparing", 3) as step:
        step(1)
    assert capsys.readouterr().err == ""


def test_bar_on_a_terminal_and_lines_inside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LINES", 0.0)
    with progress("outer", 10, "record") as outer, progress("inner", None, "file") as inner:
        outer(10)
        inner(2)
    shown = terminal.getvalue()
    assert "outer" in shown
    assert "10 records of 10 records" in shown
    assert "inner: 2 files" in shown
    assert module._shown == []
