"""Memory of pieces: another's as long as anybody looks at it, used again afterwards."""

from __future__ import annotations

import ctypes
import gc
import mmap
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from megatron_apriel.surgery.reused_memory import ReusedMemory


def address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def test_what_is_in_use_is_not_given_again() -> None:
    memory = ReusedMemory()
    pieces = [memory(100) for _ in range(5)]
    for number, piece in enumerate(pieces):
        piece[:] = bytes([number]) * 100
    assert [bytes(piece) for piece in pieces] == [bytes([number]) * 100 for number in range(5)]


def test_it_is_used_again_when_the_last_view_has_ended() -> None:
    memory = ReusedMemory()
    piece = memory(100)
    place, part = address(piece), np.frombuffer(piece[10:20], np.uint8)
    del piece
    other = memory(100)
    assert address(other) != place, "a part of it is still looked at"
    del part
    assert address(memory(50)) == place


def test_a_larger_piece_gets_memory_of_its_size() -> None:
    memory = ReusedMemory()
    piece = memory(10)
    del piece
    assert len(memory(1000)) == 1000
    assert len(memory(10)) == 10


def test_another_thread_may_end_the_last_view() -> None:
    memory = ReusedMemory()
    pieces = [memory(10)]
    place = address(pieces[0])
    thread = threading.Thread(target=pieces.clear)
    thread.start()
    thread.join()
    assert address(memory(10)) == place


def test_it_is_given_back_without_the_collector_of_garbage() -> None:
    gc.disable()
    try:
        memory = ReusedMemory()
        one, other = memory(1 << 20), memory(1 << 20)
        places = [address(one), address(other)]
        assert len(set(places)) == 2 and all(map(is_mapped, places))
        del one
        del memory
        assert is_mapped(places[1]), "it is still looked at"
        del other
        assert not any(map(is_mapped, places))
    finally:
        gc.enable()


def test_the_collector_of_garbage_may_end_the_last_view(monkeypatch: pytest.MonkeyPatch) -> None:
    problems: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", problems.append)
    circle: list[object] = [ReusedMemory()(10)]
    circle.append(circle)
    del circle
    gc.collect()
    assert problems == []


def is_mapped(place: int) -> bool:
    """Whether the process has memory there; to read the kernel's list would take memory, perhaps that very place."""
    page = place - place % mmap.PAGESIZE
    return ctypes.CDLL(None).mincore(ctypes.c_void_p(page), ctypes.c_size_t(1), ctypes.create_string_buffer(1)) == 0


def test_a_kernel_without_large_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 9999)  # advice that no kernel knows
    assert len(ReusedMemory()(100)) == 100


def test_its_pages_are_private_and_may_be_large() -> None:
    piece = ReusedMemory()(4 << 20)
    place, flags = address(piece), ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first:
            start, stop = (int(bound, 16) for bound in first.split("-"))
            inside, private = start <= place < stop, line.split()[1].endswith("p")
        elif inside and first == "VmFlags:":
            flags = line
            break
    assert private
    assert " hg" in flags
