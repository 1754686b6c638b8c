"""Signals that end a program while asyncio's loop runs: all tasks end first, and only then the handler is called.

A handler that raises within the loop leaves tasks behind, each with a traceback. Signals come to the main thread alone:
another one has nothing to listen to and nothing to put back.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

_ENDING = (signal.SIGTERM, signal.SIGHUP)


def run_until_signal(work: Callable[[], Awaitable[None]]) -> None:
    """Run ``work`` in a loop of its own; a signal that ends it early has its handler called behind it."""
    with _handlers_kept() as act:
        act(asyncio.run(_until_signal(work)))


@contextmanager
def _handlers_kept() -> Iterator[Callable[[int | None], None]]:
    """Put the handlers back; yields a function that calls that of the signal that came."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda _: None
        return
    kept: dict[int, Any] = {number: signal.getsignal(number) for number in _ENDING}

    def act(number: int | None) -> None:
        handler = kept.get(number) if number is not None else None
        if callable(handler):
            handler(number, None)

    try:
        yield act
    finally:
        for number, handler in kept.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


async def _until_signal(work: Callable[[], Awaitable[None]]) -> int | None:
    """Work; returns the signal that ended it early, where one came that has a handler."""
    came: list[int] = []
    _listen(came)
    try:
        await work()
    except asyncio.CancelledError:
        if not came:
            raise
    return came[0] if came else None


def _listen(came: list[int]) -> None:
    """Let a signal end the task that calls this; its number is put into ``came``."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None, "called by a task"

    def end(number: int) -> None:
        came.append(number)
        task.cancel()

    if threading.current_thread() is threading.main_thread():
        for number in _ENDING:
            if callable(signal.getsignal(number)):
                loop.add_signal_handler(number, end, number)
