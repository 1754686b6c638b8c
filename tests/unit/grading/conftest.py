"""What the tests of verdicts share."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable

import pytest

LETTERS = 40_000
CheckLinear = Callable[[Callable[[str], object], str], None]


@pytest.fixture
def check_linear() -> CheckLinear:
    """Fails where ten times the text takes more than 15 times as long; what is quadratic takes 100 times as long.

    A busy machine takes caches and clock from what is measured, now from the short text and now from the long one. So
    both are tried in turn, until the best of each are in proportion.
    """

    def check(find: Callable[[str], object], piece: str) -> None:
        texts = [(piece * (letters // len(piece) + 1))[:letters] for letters in (LETTERS, 10 * LETTERS)]
        best = [math.inf, math.inf]
        for tries in range(1, 31):
            for place, text in enumerate(texts):
                gc.disable()  # as timeit does: how long it takes depends on all else that the process holds
                begun = time.thread_time()
                find(text)
                best[place] = min(best[place], time.thread_time() - begun)
                gc.enable()
            # What a clock adds weighs more in short times.
            ratio = (best[1] + 1e-3) / (best[0] + 1e-3)
            if tries >= 3 and (ratio <= 15 or ratio > 60):
                break
        assert ratio <= 15, f"{best[0]:.4f} s for {LETTERS} letters, {best[1]:.4f} s for ten times as many"

    return check
