"""What the tests of verdicts share."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import pytest

LETTERS = 40_000


@pytest.fixture
def times_of() -> Callable[..., tuple[float, float]]:
    """Gives the CPU seconds of a function for a text, and for one ten times as long; the best of three."""

    def measure(find: Callable[[str], object], piece: str) -> tuple[float, float]:
        seconds = []
        for letters in (LETTERS, 10 * LETTERS):
            text = (piece * (letters // len(piece) + 1))[:letters]
            taken = []
            gc.disable()  # as timeit does: how long it takes depends on all else that the process holds
            for _ in range(3):
                begun = time.process_time()
                find(text)
                taken.append(time.process_time() - begun)
            gc.enable()
            # What a clock and a busy machine add weighs more in short times.
            seconds.append(min(taken) + 1e-3)
        return seconds[0], seconds[1]

    return measure
