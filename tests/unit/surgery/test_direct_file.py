"""A file written in blocks: the bytes that were given, past the page cache where the file system knows how."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_apriel.surgery import direct_file as module
from megatron_apriel.surgery.direct_file import direct_file

BLOCK = 8192
"""Small, so that a few blocks are soon full; a multiple of what disks and memory count in."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr("megatron_apriel.surgery.lanes.ROOM_BYTES", 3 * BLOCK)


def write(file: Path, data: bytes, largest: int) -> None:
    """Give the bytes in pieces of many sizes, all in the same memory."""
    sizes, memory, position = random.Random(largest), bytearray(largest), 0
    with direct_file(file, len(data)) as result:
        while position < len(data):
            part = data[position : position + sizes.randint(1, largest)]
            memory[: len(part)] = part
            position += len(result.write(memoryview(memory)[: len(part)]))


@pytest.mark.parametrize("size", [1, 4096, BLOCK - 1, BLOCK, BLOCK + 1, 20 * BLOCK, 20 * BLOCK + 4097])
@pytest.mark.parametrize("largest", [100, 3 * BLOCK])
def test_the_file_holds_what_was_given(tmp_path: Path, size: int, largest: int) -> None:
    data = random.Random(size).randbytes(size)
    write(tmp_path / "file", data, largest)
    assert (tmp_path / "file").read_bytes() == data


def test_no_block_is_filled_again_before_it_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = module._write

    def slow(stream: io.FileIO, piece: memoryview) -> None:
        time.sleep(0.005)
        whole(stream, piece)

    monkeypatch.setattr(module, "_write", slow)
    data = random.Random(0).randbytes(30 * BLOCK)
    write(tmp_path / "file", data, BLOCK)
    assert (tmp_path / "file").read_bytes() == data


def test_what_is_put_into_the_room_is_not_copied(tmp_path: Path) -> None:
    data, position, sizes = random.Random(0).randbytes(9 * BLOCK + 100), 0, random.Random(1)
    with direct_file(tmp_path / "file", len(data)) as result:
        while position < len(data):
            room = result.room(min(sizes.randint(1, 2 * BLOCK), len(data) - position))
            assert 0 < len(room) <= BLOCK
            room[:] = data[position : position + len(room)]
            taken = result.write(room)
            assert len(taken) == len(room) and np.shares_memory(np.frombuffer(room, "u1"), np.frombuffer(taken, "u1"))
            position += len(room)
    assert (tmp_path / "file").read_bytes() == data


def test_what_was_taken_stays_as_long_as_it_is_looked_at(tmp_path: Path) -> None:
    data = random.Random(0).randbytes(30 * BLOCK)
    with direct_file(tmp_path / "file", len(data)) as result:
        kept = [result.write(memoryview(data)[place : place + BLOCK]) for place in range(0, len(data), BLOCK)]
        assert b"".join(kept) == data


def test_whole_blocks_pass_by_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, seen = module._write, []

    def watched(stream: io.FileIO, piece: memoryview) -> None:
        seen.append((len(piece), bool(fcntl.fcntl(stream, fcntl.F_GETFL) & os.O_DIRECT)))
        whole(stream, piece)

    monkeypatch.setattr(module, "_write", watched)
    with (tmp_path / "other").open("xb", buffering=0) as stream:
        possible = module._set_direct(stream, True)
    write(tmp_path / "file", bytes(5 * BLOCK + 10), BLOCK)
    assert seen == [(BLOCK, possible)] * 5 + [(10, False)]


def test_a_file_system_that_knows_no_direct_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control = fcntl.fcntl

    def refusing(stream: Any, command: int, flags: int = 0) -> int:
        if command == fcntl.F_SETFL and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return control(stream, command, flags)

    monkeypatch.setattr(module.fcntl, "fcntl", refusing)
    data = random.Random(0).randbytes(10 * BLOCK + 7)
    write(tmp_path / "file", data, BLOCK)
    assert (tmp_path / "file").read_bytes() == data


class Refusing(io.FileIO):
    """A file that takes the flag, and nothing that is written with it."""

    def write(self, piece: Any) -> int:
        if fcntl.fcntl(self, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return super().write(piece[: len(piece) // 2 + 1])


def test_a_file_system_that_refuses_when_it_writes(tmp_path: Path) -> None:
    data = random.Random(0).randbytes(BLOCK)
    with Refusing(tmp_path / "file", "x") as stream:
        module._set_direct(stream, True)
        module._write(stream, memoryview(data))
    assert (tmp_path / "file").read_bytes() == data
    with (tmp_path / "file").open("rb", buffering=0) as stream, pytest.raises(OSError):
        module._write(stream, memoryview(data))  # what is wrong otherwise is said


def test_a_file_that_exists_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(FileExistsError), direct_file(tmp_path / "file", 5):
        pass
    assert (tmp_path / "file").read_bytes() == b"mine"
