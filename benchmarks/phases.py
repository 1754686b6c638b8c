"""What a measurement spends its time on: seconds of each phase, said in its log when the phase ends."""

from __future__ import annotations

import time
from collections.abc import Mapping


class Phases:
    """The phases of a process, one behind the other.

    Args:
        begun: when the first one began, by ``time.time``.

    Attributes:
        seconds: of each that has ended, in order.
    """

    def __init__(self, begun: float) -> None:
        self._last = begun
        self.seconds: dict[str, float] = {}

    def end(self, name: str) -> None:
        """What ran until now was this."""
        now = time.time()
        self.seconds[name] = now - self._last
        self._last = now
        print(f"{name}: {self.seconds[name]:.1f} s", flush=True)


def in_words(seconds: Mapping[str, float]) -> str:
    """Of each phase its seconds."""
    return ", ".join(f"{name} {one:.0f} s" for name, one in seconds.items())
