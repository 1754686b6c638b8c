"""Work done ahead in a background thread, handed over in order through a short queue."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator

_POLL_S = 0.1


class Prefetcher[Item, Result]:
    """Iterates over ``function(item)`` for every item, computed ahead in one thread.

    What the function raises is raised here, at the place of the item; nothing follows it. Close it, or leave the
    thread to end with the process.

    Attributes:
        wait_seconds: how long the consumer has waited for results in all.
    """

    def __init__(self, function: Callable[[Item], Result], items: Iterable[Item], depth: int) -> None:
        """``depth`` results at most wait in the queue. The thread starts with the first result asked for."""
        self.wait_seconds = 0.0
        self._function, self._items = function, items
        # Entries are (result, None), (None, what was raised), or (None, None) at the end.
        self._queue: queue.Queue[tuple[Result | None, BaseException | None]] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._finished = False
        self._thread = threading.Thread(target=self._work, name="data-prefetch", daemon=True)

    def __iter__(self) -> Iterator[Result]:
        return self

    def __next__(self) -> Result:
        if self._finished or self._stopped.is_set():
            raise StopIteration
        if self._thread.ident is None:
            self._thread.start()
        started = time.perf_counter()
        result, error = self._queue.get()
        self.wait_seconds += time.perf_counter() - started
        if error is not None or result is None:
            self._finished = True
            raise error if error is not None else StopIteration
        return result

    def close(self) -> None:
        """Stop the thread and wait for it; results not yet taken are dropped."""
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _work(self) -> None:
        try:
            for item in self._items:
                if not self._put((self._function(item), None)):
                    return
            self._put((None, None))
        except BaseException as error:  # handed to the consumer, whatever it is
            self._put((None, error))

    def _put(self, entry: tuple[Result | None, BaseException | None]) -> bool:
        """Whether the entry was taken into the queue before the consumer closed it."""
        while not self._stopped.is_set():
            try:
                self._queue.put(entry, timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False
