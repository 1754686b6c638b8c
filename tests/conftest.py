"""What all tests share: nothing of how pytest itself was started, or what it holds, reaches what is tested."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def interrupts_are_heard() -> Iterator[None]:
    """A shell starts what runs in its background with SIGINT ignored, and every program that is started from there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def memory_of_a_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Averaging divides the memory that it may take by what the process holds already: gigabytes, after many tests."""
    monkeypatch.setattr("megatron_apriel.surgery.average._resident_bytes", lambda: 200 << 20)
