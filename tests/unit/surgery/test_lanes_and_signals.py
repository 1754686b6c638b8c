"""Lanes, when a signal comes: at every place where Python may run its handler, and once more while it is being dealt
with."""

from __future__ import annotations

import dis
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

import pytest

from megatron_apriel.surgery import lanes
from megatron_apriel.surgery.lanes import Crew, Lane

PIECE = memoryview(bytes(4))
HANDLERS_RUN_AFTER = {"RESUME", "CALL", "CALL_FUNCTION_EX", "JUMP_BACKWARD"}
"""Instructions after which CPython looks whether a signal came."""


@functools.cache
def instructions(code: CodeType) -> dict[int, str]:
    return {instruction.offset: instruction.opname for instruction in dis.get_instructions(code)}


class Signals:
    """Raises KeyboardInterrupt in this thread at certain of the places where a signal's handler could do so."""

    def __init__(self, places: set[int]) -> None:
        self._places, self.passed = places, 0
        self._last: dict[FrameType, int] = {}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Signals | None:
        callers = {each.f_code.co_filename for each in (frame, frame.f_back) if each}
        if lanes.__file__ not in callers or frame.f_code.co_qualname.startswith("Thread."):
            return None  # Python's own threads are not ours to try
        frame.f_trace_opcodes = True
        if event == "opcode":
            before = self._last.get(frame)
            self._last[frame] = frame.f_lasti
            if before is not None and instructions(frame.f_code).get(before) in HANDLERS_RUN_AFTER:
                self.passed += 1
                if self.passed in self._places:
                    raise KeyboardInterrupt
        return self

    def during(self, block: Callable[[], None]) -> None:
        sys._getframe().f_trace_opcodes = True
        sys.settrace(self)
        try:
            block()
        finally:
            sys.settrace(None)


def work_in_two_lanes(helped: bool) -> None:
    with Crew("test", helped=helped) as crew, Lane(crew) as one, Lane(crew) as two:
        for _ in range(2):
            one.put(lambda piece: time.sleep(0.0005), PIECE)
            two.put(lambda piece: None, PIECE)


def ends(places: set[int], helped: bool) -> bool:
    """Whether signals at these places end the crew with their error; False where it ended before the first."""
    result: list[BaseException] = []
    signals = Signals(places)

    def body() -> None:
        try:
            signals.during(lambda: work_in_two_lanes(helped))
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=body, daemon=True)  # so that the test ends even if the crew does not
    thread.start()
    thread.join(120)
    assert not thread.is_alive(), f"it waits for ever after a signal at {places}"
    if signals.passed < min(places):
        return False
    assert [type(error) for error in result] == [KeyboardInterrupt], places
    return True


@pytest.fixture(autouse=True)
def little_room(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(lanes, "ROOM_BYTES", 4)
    before = sys.gettrace()
    yield
    sys.settrace(before)


@pytest.mark.parametrize("helped", [False, True])
def test_a_signal_may_come_anywhere(helped: bool) -> None:
    before, place = threading.active_count(), 1
    while ends({place}, helped):
        deadline = time.monotonic() + 120  # one that had not begun ends a moment later
        while threading.active_count() > before:
            assert time.monotonic() < deadline, f"a thread is left over after a signal at {place}"
        place += 1
    assert place > 50


@pytest.mark.parametrize("distance", [1, 2, 3, 5, 8])
def test_another_may_come_while_the_first_is_dealt_with(distance: int) -> None:
    place = 1
    while ends({place, place + distance}, helped=True):
        place += 1


def test_a_second_signal_does_not_let_a_thread_go_on_alone() -> None:
    begun, end, ended = threading.Event(), threading.Event(), threading.Event()

    def work(piece: memoryview) -> None:
        begun.set()
        end.wait(120)
        ended.set()

    def stop() -> None:
        """Send the second signal once the crew's end waits for the work."""
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        end.set()

    stopped = threading.Thread(target=stop)
    with pytest.raises(KeyboardInterrupt), Crew("test") as crew, Lane(crew) as lane:
        lane.put(work, PIECE)
        begun.wait(120)
        stopped.start()
        raise KeyboardInterrupt
    assert ended.is_set()
    stopped.join()


def test_a_system_that_starts_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(OSError, match="starts no more threads"), Crew("test") as crew, Lane(crew):
        raise AssertionError("it went on")
