"""Reading, hashing and writing at the same time.

Every byte of a checkpoint that is copied or computed is also hashed, often twice (the file that is read and the
result's), and written. Done one after the other, each piece waits for all of it, on one core. But none of this work
needs the interpreter while it runs, so each kind gets a thread of its own, a *lane*. The thread that has the bytes puts
each piece into the lanes that need it and takes the next one; a lane works on its pieces in their order.

What a lane promises:

* **Little memory.** It holds ``ROOM_BYTES`` at most: ``put`` waits for room. A larger piece is waited for until the
  work on it is done. Lanes that are given the same pieces share them.
* **Errors come out.** The first one is raised, unchanged, in the thread that puts pieces: by the next ``put`` or
  ``drain``, or at the end of the block. What was still waiting is dropped.
* **No thread is left over.** However the block ends, the lane has stopped before anything after it runs. Ctrl-C and
  SIGTERM end a wait for room like any other wait.

A piece must not be changed once it has been put.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

ROOM_BYTES = 8 << 20
"""What may wait in a lane: enough to bridge a slow moment of another, and little beside the program itself."""


class Lane:
    """A thread that works on pieces, one after the other. Use as a context manager."""

    def __init__(self, name: str) -> None:
        self._waiting: deque[tuple[Callable[[memoryview], object], memoryview]] = deque()
        self._held = 0  # bytes that wait or are being worked on
        self._ended = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def put(self, work: Callable[[memoryview], object], piece: memoryview) -> None:
        """Have ``work(piece)`` done after all that was put before. Raises what failed earlier."""
        size = piece.nbytes
        with self._changed:
            self._changed.wait_for(lambda: self._failure or not self._held or self._held + size <= ROOM_BYTES)
            self._raise_failure()
            self._waiting.append((work, piece))
            self._held += size
            self._changed.notify_all()
        if size > ROOM_BYTES:
            self.drain()

    def drain(self) -> None:
        """Wait until all that was put is done. Raises what failed."""
        with self._changed:
            self._changed.wait_for(lambda: self._failure or not self._held)
            self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ended)
                if self._ended:
                    return
                work, piece = self._waiting.popleft()
            size = piece.nbytes
            try:
                work(piece)
            except BaseException as error:
                with self._changed:
                    self._failure = error
                    self._waiting.clear()
                    self._changed.notify_all()
                return
            del work, piece  # whoever waits for room may want the memory too
            with self._changed:
                self._held -= size
                self._changed.notify_all()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.drain()
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()
            self._thread.join()
