"""Lanes: in order, in little memory, no error lost, no thread too many and none left over."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from megatron_apriel.surgery import lanes
from megatron_apriel.surgery.lanes import Crew, Lane

PIECE = memoryview(bytes(4))


@pytest.fixture(autouse=True)
def no_thread_is_left_over() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert not set(threading.enumerate()) - before


def test_order_is_kept_and_the_end_waits_for_all() -> None:
    done: list[bytes] = []
    with Crew("test") as crew, Lane(crew) as lane:
        for number in range(200):
            lane.put(lambda piece: done.append(bytes(piece)), memoryview(bytes([number])))
    assert done == [bytes([number]) for number in range(200)]


def test_no_more_waits_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "ROOM_BYTES", 10)
    begun, end = threading.Semaphore(0), threading.Semaphore(0)
    put = 0

    def work(piece: memoryview) -> None:
        begun.release()
        end.acquire()

    def give() -> None:
        nonlocal put
        for _ in range(20):
            lane.put(work, PIECE)
            put += 1

    with Crew("test") as crew, Lane(crew) as lane:
        giver = threading.Thread(target=give)
        giver.start()
        try:
            for done in range(20):
                begun.acquire()
                giver.join(0.01)  # time in which it could put too much
                assert put <= done + 2
                end.release()
        finally:
            end.release(20)
            giver.join()


def test_a_piece_larger_than_the_room_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "ROOM_BYTES", 3)
    done = []

    def work(piece: memoryview) -> None:
        threading.Event().wait(0.05)
        done.append(piece)

    with Crew("test") as crew, Lane(crew) as lane:
        lane.put(work, PIECE)
        assert done == [PIECE]


def fail(piece: memoryview) -> None:
    raise failure


failure = OSError(28, "No space left on device")


def test_an_error_is_raised_by_the_next_put() -> None:
    done: list[memoryview] = []
    with pytest.raises(OSError, match="No space left") as caught, Crew("test") as crew, Lane(crew) as lane:
        lane.put(fail, PIECE)
        while True:
            lane.put(done.append, PIECE)
    assert caught.value is failure
    assert done == [], "work went on after an error"


def test_an_error_is_raised_where_room_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "ROOM_BYTES", 4)
    ready = threading.Event()

    def fail_later(piece: memoryview) -> None:
        ready.wait()
        fail(piece)

    later = threading.Timer(0.05, ready.set)
    with pytest.raises(OSError, match="No space left"), Crew("test") as crew, Lane(crew) as lane:
        lane.put(fail_later, PIECE)
        later.start()
        lane.put(fail_later, PIECE)
    later.join()


def test_an_error_is_raised_at_the_end() -> None:
    with pytest.raises(OSError, match="No space left"), Crew("test") as crew, Lane(crew) as lane:
        lane.put(fail, PIECE)


def test_what_waits_is_dropped_when_the_block_fails() -> None:
    begun, end, done = threading.Event(), threading.Event(), list[memoryview]()

    def work(piece: memoryview) -> None:
        begun.set()
        end.wait()

    class Ending(Crew):
        def __exit__(self, *error: Any) -> None:
            end.set()  # the lane was left before
            time.sleep(0.05)  # in which what waits could be worked on
            super().__exit__(*error)

    with pytest.raises(ValueError, match="the block's own"), Ending("test") as crew, Lane(crew) as lane:
        lane.put(work, PIECE)
        lane.put(done.append, PIECE)
        begun.wait()
        raise ValueError("the block's own")
    assert done == []


def test_one_error_ends_the_other_lanes() -> None:
    with pytest.raises(OSError, match="No space left"), Crew("test", 2) as crew, Lane(crew) as one, Lane(crew) as two:
        while True:
            one.put(fail, PIECE)
            two.put(lambda piece: None, PIECE)


def test_a_signal_ends_the_wait_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "ROOM_BYTES", 4)
    seen = threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not seen.is_set():
            seen.set()
            raise KeyboardInterrupt

    def work(piece: memoryview) -> None:
        for _ in range(600):  # one that comes just before the wait begins does not end it
            os.kill(os.getpid(), signal.SIGINT)
            if seen.wait(0.05):
                return
        raise AssertionError("the thread that puts pieces did not notice")

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt), Crew("test") as crew, Lane(crew) as lane:
            while True:
                lane.put(work, PIECE)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_crew_has_no_more_threads_than_it_may() -> None:
    before, seen = set(threading.enumerate()), set()

    def work(piece: memoryview) -> None:
        seen.add(threading.current_thread())

    with Crew("test", 2) as crew, Lane(crew) as one, Lane(crew) as two, Lane(crew) as three:
        for _ in range(50):
            for lane in (one, two, three):
                lane.put(work, PIECE)
        assert len(set(threading.enumerate()) - before) == 2
    assert 1 <= len(seen) <= 2
    assert threading.current_thread() not in seen, "one that is not to be helped was helped"


class Busy:
    """A lane whose only thread works on a piece until another lane's work says that it may end."""

    def __init__(self, crew: Crew, lane: Lane) -> None:
        self.may_end = threading.Event()
        begun = threading.Event()

        def work(piece: memoryview) -> None:
            begun.set()
            assert self.may_end.wait(120), "nobody else worked"

        lane.put(work, PIECE)
        assert begun.wait(120)


@pytest.mark.parametrize("waiting", ["for room", "for the end"])
def test_whoever_waits_works_in_another_lane(waiting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "ROOM_BYTES", 4)
    workers = []
    with Crew("test", helped=True) as crew, Lane(crew) as one, Lane(crew) as two:
        busy = Busy(crew, one)

        def work(piece: memoryview) -> None:
            workers.append(threading.current_thread())
            busy.may_end.set()

        two.put(work, PIECE)
        if waiting == "for room":
            one.put(lambda piece: None, PIECE)
        else:
            one.drain()
    assert workers == [threading.current_thread()]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_error_in_what_it_works_on_meanwhile_comes_out(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, Crew("test", helped=True) as crew, Lane(crew) as one, Lane(crew) as two:
        busy = Busy(crew, one)

        def work(piece: memoryview) -> None:
            busy.may_end.set()
            raise error

        two.put(work, PIECE)
        one.drain()
        raise AssertionError("it went on after an error")
    assert caught.value is error


def test_order_is_kept_in_every_lane_of_a_helped_crew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "ROOM_BYTES", 6)
    done: list[list[int]] = [[], [], []]

    def work(piece: memoryview) -> None:
        place, number = piece
        time.sleep(0.001 * (number % 3 == 0))  # the next ones would be done earlier
        done[place].append(number)

    with Crew("test", 2, helped=True) as crew, Lane(crew) as one, Lane(crew) as two, Lane(crew) as three:
        for number in range(60):
            for place, lane in enumerate((one, two, three)):
                lane.put(work, memoryview(bytes([place, number])))
    assert done == [list(range(60))] * 3


@pytest.mark.parametrize("begun", [False, True])
def test_a_signal_may_come_while_a_thread_begins(begun: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if begun:
            start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), Crew("test") as crew, Lane(crew):
        raise AssertionError("it went on")
