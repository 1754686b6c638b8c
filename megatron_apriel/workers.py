"""Work shared out over forked processes: its results in order, only a little ahead of what is taken.

A worker leaves signals to its parent, and ends with it.
"""

from __future__ import annotations

import copy
import ctypes
import multiprocessing
import os
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.reduction import ForkingPickler
from typing import Any

from megatron_apriel.errors import DataError

_AHEAD = 4
"""Tasks of each worker that are under way at most."""
_SIGNAL_AT_PARENTS_DEATH = 1  # PR_SET_PDEATHSIG of prctl(2)


class Workers[Shared]:
    """Processes that hold one shared object; with one worker everything happens in this process.

    They are forked when the block begins, before anything here starts threads, so that the shared object is neither
    copied nor sent, and no worker spends seconds on imports.

    Args:
        shared: the object.
        number: of workers.
        less_memory: what to do where a worker needed too much of it.
    """

    def __init__(self, shared: Shared, number: int, less_memory: str) -> None:
        self.shared, self.number, self.less_memory = shared, number, less_memory
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers[Shared]:
        if self.number > 1:
            context = multiprocessing.get_context("fork")
            self.pool = ProcessPoolExecutor(
                self.number, context, initializer=_begin, initargs=(self.shared, os.getpid())
            )
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
                self.less_memory,
            ) from None


_shared: Any = None
"""The worker's own object; set once in each worker process."""


def _begin(shared: Any, parent: int) -> None:
    global _shared
    _shared = shared
    # Ctrl-C reaches the whole process group: the parent ends the work. Handlers inherited from it mean nothing here.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # A parent that is killed tells nobody; without this its workers would wait for work for ever.
    end_with_parent(parent, signal.SIGKILL)
    # A tokenizer's own threads would not be more cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def end_with_parent(parent: int, number: int) -> None:
    """Have the kernel send this process a signal when its parent dies; where it cannot, nothing happens.

    The signal has its default effect from now on. A handler of the parent's would note it, and what it noted would be
    lost where this process becomes another program.

    Args:
        parent: the process that started this one: it may have died before this.
        number: of the signal.
    """
    with suppress(OSError, AttributeError):  # Linux only
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        ctypes.CDLL(None).prctl(_SIGNAL_AT_PARENTS_DEATH, number)
        if os.getppid() != parent:
            os.kill(os.getpid(), number)


def _run[Work, Result](function: Callable[[Any, Work], Result], task: Work) -> Result:
    try:
        return function(_shared, task)
    except Exception as error:
        if _can_be_sent(error):
            raise
        raise RuntimeError("".join(traceback.format_exception(error))) from None


def _can_be_sent(error: Exception) -> bool:
    """Whether the parent can read it. One that it cannot would look like a worker that has died."""
    try:
        return isinstance(copy.copy(error), type(error)) and bool(ForkingPickler.dumps(error))
    except Exception:
        return False
