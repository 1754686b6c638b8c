"""Runs the body of a test on a rank of its own.

Process groups start threads that a later fork would miss; so no test of this room makes one in pytest's own process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron_apriel.parallel import groups
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing.ranks import run_ranks


def alone(body: Callable[[], Any]) -> Any:
    """Run ``body`` at once in a fork with the process groups of a single rank, and return what it returns."""

    def on_rank(rank: int, world_size: int) -> Any:
        with groups.initialized(Layout(1)):
            return body()

    return run_ranks(1, on_rank)[0]
