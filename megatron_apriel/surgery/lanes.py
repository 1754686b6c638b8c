"""Reading, hashing and writing at the same time.

Every byte of a checkpoint that is copied or computed is also hashed, often twice (the file that is read and the
result's), and written. Done one after the other, each piece waits for all of it, on one core. But none of this work
needs the interpreter while it runs. So each kind gets a *lane*: the thread that has the bytes puts each piece into the
lanes that need it and takes the next one, and threads of a *crew* work on each lane's pieces in their order.

Threads that want more cores than there are get in each other's way: the system keeps two on one core while another
core idles for half a piece, again and again. So a crew that hashes has one thread less than there are cores, which
works in the fullest of its lanes; and the thread that puts pieces, where it would have to wait for room in a lane,
works in another one meanwhile. Writing mostly waits, and has a crew of its own.

What a lane promises:

* **Little memory.** It holds ``ROOM_BYTES`` at most: ``put`` waits for room. A larger piece is waited for until the
  work on it is done. Lanes that are given the same pieces share them.
* **Errors come out.** The first one is raised, unchanged, in the thread that puts pieces: by the next ``put`` or
  ``drain``, or at the end of the block. What was still waiting is dropped.
* **No thread is left over.** However the block of a crew ends, its threads have ended before anything after it runs.
  Ctrl-C and SIGTERM end a wait for room like any other wait.

An error that a signal raises may come between any two instructions of the main thread. It must not leave a lock taken,
or the threads would wait for that for ever. ``with`` gives back a plain lock for sure; ``threading.Condition`` is
written in Python, and a signal finds places in it where its lock stays taken. So whoever waits here waits outside of
the lock, for a bell of its own.

A piece must not be changed once it has been put. One thread puts pieces into the lanes of a crew.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from types import TracebackType
from typing import Self

ROOM_BYTES = 8 << 20
"""What may wait in a lane: enough to bridge a slow moment of another, and little beside the program itself."""


class Crew:
    """Threads that work in lanes: one for each lane, but no more than ``most``. Use as a context manager.

    Args:
        name: of the threads.
        most: how many there are at most.
        helped: whether whoever waits for one of the lanes works in them meanwhile.
    """

    def __init__(self, name: str, most: int = 1, *, helped: bool = False) -> None:
        self._name, self._most, self._helped = name, most, helped
        self._lanes: list[Lane] = []
        self._threads: list[_Worker] = []
        self._bells: list[SimpleQueue[None]] = []
        self._ended = False
        self.lock = threading.Lock()

    def add(self, lane: Lane) -> None:
        """Work in one more lane."""
        with self.lock:
            self._lanes.append(lane)
        if len(self._threads) < min(len(self._lanes), self._most):
            self._threads.append(_Worker(self._run, self._name))
            self._threads[-1].start()

    def remove(self, lane: Lane) -> None:
        """Leave a lane, whatever still waits in it."""
        with self.lock:
            self._lanes.remove(lane)

    def wait_for(self, lane: Lane, done: Callable[[], bool]) -> None:
        """Return when ``done()``, which what happens in ``lane`` may change. Raises what failed."""
        while True:
            with self.lock:
                lane.raise_failure()
                if done():
                    return
                other = self._taken() if self._helped else None
                bell = self._new_bell()
            if other is None:
                bell.get()
            else:
                other.work()
                other.raise_failure()  # among others what a signal raised here

    def ring(self) -> None:
        """Wake all who wait, since something changed; by whoever has the lock."""
        for bell in self._bells:  # twice does no harm, where a signal kept the list from being cleared
            bell.put(None)
        self._bells.clear()

    def _new_bell(self) -> SimpleQueue[None]:
        bell: SimpleQueue[None] = SimpleQueue()
        self._bells.append(bell)
        return bell

    def _taken(self) -> Lane | None:
        """A lane where something waits and nobody works; the caller is to do it."""
        ready = [lane for lane in self._lanes if lane.waits]
        if not ready:
            return None
        fullest = max(ready, key=lambda lane: lane.held)
        fullest.taken = True
        return fullest

    def _run(self) -> None:
        while True:
            with self.lock:
                if self._ended:
                    return
                lane, bell = self._taken(), self._new_bell()
            if lane is None:
                bell.get()
            else:
                lane.work()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signalled: BaseException | None = None
        while True:
            try:
                self._end()
                break
            except (KeyboardInterrupt, SystemExit) as again:  # one more signal leaves no thread behind either
                signalled = again
        if signalled is not None:
            raise signalled

    def _end(self) -> None:
        with self.lock:
            self._ended = True
            self.ring()
        for thread in self._threads:
            thread.wait()


class _Worker(threading.Thread):
    """A thread whose end can be waited for again where a signal ended the wait: ``join`` would take it for ended."""

    def __init__(self, work: Callable[[], None], name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._work = work
        self._works = threading.Lock()

    def start(self) -> None:
        try:
            super().start()
        except RuntimeError as error:
            reason = "the system starts no more threads (ulimit -u, or the job's limit of processes)"
            raise OSError(errno.EAGAIN, reason) from error

    def run(self) -> None:
        with self._works:
            self._work()

    def wait(self) -> None:
        """Until it has ended, once the crew has. One that has not begun finds that, and does nothing."""
        with self._works:
            pass
        if self.is_alive():
            self.join()


def hashing_crew() -> Crew:
    """A crew for work that keeps cores busy, as many as there are."""
    return Crew("hashing", max(1, len(os.sched_getaffinity(0)) - 1), helped=True)


class Lane:
    """Pieces that a crew works on, one after the other. Use as a context manager, within the crew's.

    Attributes:
        held: bytes that wait or are being worked on.
        taken: whether somebody works on the first piece.
    """

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._waiting: deque[tuple[Callable[[memoryview], object], memoryview]] = deque()
        self._failure: BaseException | None = None
        self.held = 0
        self.taken = False

    @property
    def waits(self) -> bool:
        """Whether there is a piece on which nobody works, and none before it."""
        return bool(self._waiting) and not self.taken

    def put(self, work: Callable[[memoryview], object], piece: memoryview) -> None:
        """Have ``work(piece)`` done after all that was put before. Raises what failed earlier."""
        size = piece.nbytes
        self._crew.wait_for(self, lambda: not self.held or self.held + size <= ROOM_BYTES)
        with self._crew.lock:
            self.raise_failure()  # or this piece would be worked on after that
            self._waiting.append((work, piece))
            self.held += size
            self._crew.ring()
        if size > ROOM_BYTES:
            self.drain()

    def drain(self) -> None:
        """Wait until all that was put is done. Raises what failed."""
        self._crew.wait_for(self, lambda: not self.held)

    def raise_failure(self) -> None:
        """Raise the error of an earlier piece, if there was one."""
        if self._failure is not None:
            raise self._failure

    def work(self) -> None:
        """Do what was put first; the lane was taken for that."""
        work, piece = self._waiting.popleft()
        size = piece.nbytes
        try:
            work(piece)
        except BaseException as error:
            with self._crew.lock:
                self._failure = error
                self._waiting.clear()
        del work, piece  # whoever waits for room may want the memory too
        with self._crew.lock:
            self.taken = False
            self.held -= size
            self._crew.ring()

    def __enter__(self) -> Self:
        self._crew.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.drain()
        finally:
            self._crew.remove(self)
