"""Work shared out over processes, its results in order and only a little ahead of what is taken."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from megatron_apriel.errors import DataError
from megatron_apriel.worker_process import obey_parent

_AHEAD = 4


class Workers[Shared]:
    """Processes that hold one shared object; with one worker everything happens in this process.

    They are forked when the block begins, before anything here starts threads, so that the shared object is neither
    copied nor sent.
    """

    def __init__(self, shared: Shared, number: int) -> None:
        self.shared, self.number = shared, number
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers[Shared]:
        if self.number > 1:
            context = multiprocessing.get_context("fork")
            self.pool = ProcessPoolExecutor(self.number, context, initializer=_begin, initargs=(self.shared,))
            self.pool.submit(os.getpid).result()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)

    def in_order[Work, Result](
        self, function: Callable[[Shared, Work], Result], tasks: Iterable[Work]
    ) -> Iterator[Result]:
        """``function(shared, task)`` of every task, in their order; memory is bounded by a few tasks per worker."""
        if self.pool is None:
            for task in tasks:
                yield function(self.shared, task)
            return
        under_way: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                under_way.append(self.pool.submit(_run, function, task))
                if len(under_way) >= self.number * _AHEAD:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        except BrokenProcessPool:
            raise DataError(
                f"one of {self.number} worker processes ended without an answer.",
                "The system ends processes when memory runs out.",
                "Use fewer --workers, or a smaller --max-side.",
            ) from None


_shared: Any = None
"""The worker's own object; set once in each worker process."""


def _begin(shared: Any) -> None:
    global _shared
    _shared = shared
    obey_parent()


def _run[Work, Result](function: Callable[[Any, Work], Result], task: Work) -> Result:
    return function(_shared, task)
