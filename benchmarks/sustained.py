"""Time and energy of something that runs again and again on a GPU, once its clocks have settled under the load.

A short burst runs at a clock that the GPU cannot keep: training a dense model draws all the power it is allowed, and
what counts is what is left of the clock then.
"""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Sustained:
    """What one call takes.

    Attributes:
        ms: milliseconds.
        joule: energy of the whole GPU; None where it does not say.
    """

    ms: float
    joule: float | None

    @property
    def watt(self) -> float | None:
        """Mean power; None where the GPU does not say its energy."""
        return None if self.joule is None else 1e3 * self.joule / self.ms


def sustained(run: Callable[[], object], seconds: float) -> Sustained:
    """Time and energy of one call of ``run``, measured for about ``seconds`` after a quarter as long unmeasured."""
    for _ in range(3):
        run()
    calls = max(round(seconds / max(_elapsed(run, 3) / 3, 1e-6)), 3)
    _elapsed(run, max(calls // 4, 1))
    before = _energy()
    spent = _elapsed(run, calls)
    after = _energy()
    joule = None if before is None or after is None else (after - before) / calls
    return Sustained(1e3 * spent / calls, joule)


def _elapsed(run: Callable[[], object], calls: int) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(calls):
        run()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def _energy() -> float | None:
    """Joules that the GPU has taken since its driver was loaded."""
    counter = _counter()
    return None if counter is None else counter() / 1e3


@functools.cache
def _counter() -> Callable[[], float] | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        identity = f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"
        device = pynvml.nvmlDeviceGetHandleByUUID(identity)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(device)
    except Exception as error:  # pynvml has an exception for every answer of the driver
        print(f"energy is not measured: {type(error).__name__}: {error}", file=sys.stderr)
        return None
    return functools.partial(pynvml.nvmlDeviceGetTotalEnergyConsumption, device)
