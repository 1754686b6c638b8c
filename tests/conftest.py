"""What all tests share: nothing of how pytest itself was started, or what it holds, reaches what is tested."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def signals_are_heard() -> Iterator[None]:
    """What is ignored stays so in every program that is started: SIGINT in a shell's background, SIGHUP by nohup."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    if before[signal.SIGINT] == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if before[signal.SIGHUP] == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(autouse=True, scope="session")
def no_terminal_is_described() -> Iterator[None]:
    """Readline tells every program that is started how wide it takes the terminal for, pytest's own workers too.

    Python does not see what readline sets in its own process, so that it is taken away from the system's list as well.
    """
    before = {name: os.environ.pop(name, None) for name in ("COLUMNS", "LINES")}
    for name in before:
        os.unsetenv(name)
    yield
    os.environ |= {name: value for name, value in before.items() if value is not None}


@pytest.fixture(autouse=True)
def memory_of_a_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Averaging divides the memory that it may take by what the process holds already: gigabytes, after many tests."""
    monkeypatch.setattr("megatron_apriel.surgery.average._resident_bytes", lambda: 200 << 20)
