"""What all tests share: a tool that runs in pytest's own process is not charged with what that process holds."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def memory_of_a_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Averaging divides the memory that it may take by what the process holds already: gigabytes, after many tests."""
    monkeypatch.setattr("megatron_apriel.surgery.average._resident_bytes", lambda: 200 << 20)
