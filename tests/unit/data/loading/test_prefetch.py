"""Work done ahead in a background thread: bounded, in order, timed, and failing where the consumer stands."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from megatron_apriel.data.loading.prefetch import Prefetcher
from megatron_apriel.errors import DataError


def threads() -> int:
    return sum(thread.name == "data-prefetch" for thread in threading.enumerate())


def test_prefetching_is_bounded_ordered_and_timed(monkeypatch):
    done: list[int] = []
    waited_for = threading.Event()

    def work(number: int) -> int:
        waited_for.wait()
        done.append(number)
        return number * number

    def waiting() -> Any:
        threading.Timer(0.05, waited_for.set).start()
        return get()

    batches = Prefetcher(work, range(100), depth=3)
    get = batches._queue.get
    monkeypatch.setattr(batches._queue, "get", waiting)
    assert next(batches) == 0 and batches.wait_seconds >= 0.05
    time.sleep(0.2)  # in which it could do too much
    assert len(done) <= 1 + 3 + 1  # taken, waiting in the queue, and one in hand
    assert [next(batches) for _ in range(5)] == [1, 4, 9, 16, 25]
    batches.close()
    assert threads() == 0


@pytest.mark.parametrize("error", [DataError("bad", "why", "fix"), ValueError("unexpected"), KeyboardInterrupt()])
def test_what_goes_wrong_ahead_is_raised_at_its_place(error):
    def work(number: int) -> int:
        if number == 2:
            raise error
        return number

    batches = Prefetcher(work, range(5), depth=5)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(type(error)) as caught:
        next(batches)
    assert caught.value is error
    assert list(batches) == []
