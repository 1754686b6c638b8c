"""A large file, written straight to disk.

What is written as usual is copied into the system's page cache first, and sent to disk from there by another thread of
the system: on a machine with few cores that takes as long as hashing half of it. A result has to be on disk before it
gets its name, and is larger than what the cache can keep for whoever reads it next. So its bytes are gathered in
blocks, and each block goes to disk from where it lies (``O_DIRECT``), while the next one is being filled.

The disk takes whole blocks only. The rest at the end goes through the cache, and so does everything where the file
system knows no other way. Either way the file is on disk for sure only when it is flushed (``outputs.py``).
"""

from __future__ import annotations

import errno
import fcntl
import io
import itertools
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_apriel.outputs import reserve
from megatron_apriel.surgery.lanes import ROOM_BYTES, Lane

BLOCK_BYTES = 4 << 20
"""Written at once. A multiple of every disk's own block, and large enough to keep a fast disk busy."""


@contextmanager
def direct_file(file: Path, size: int) -> Iterator[Callable[[memoryview], None]]:
    """Write a new file from its beginning to its end.

    Args:
        file: must not exist.
        size: bytes that will be written; room for them is reserved.

    Yields:
        A function that takes the next bytes, which may change afterwards. What goes wrong with the disk is raised by
        one of its later calls, or at the end of the block.

    Raises:
        OSError: the file exists, or the disk is full.
    """
    # The file is the outermost: it must not be closed before its lane has stopped.
    with file.open("xb", buffering=0) as stream, Lane("writing") as writing:
        reserve(stream.fileno(), size)
        _set_direct(stream, True)
        # A lane never holds more than its room, so that the block after those was written.
        blocks = itertools.cycle([memoryview(mmap.mmap(-1, BLOCK_BYTES)) for _ in range(ROOM_BYTES // BLOCK_BYTES + 1)])
        block, filled = next(blocks), 0

        def write(piece: memoryview) -> None:
            nonlocal block, filled
            while len(piece):
                part = piece[: BLOCK_BYTES - filled]
                block[filled : filled + len(part)] = part
                piece, filled = piece[len(part) :], filled + len(part)
                if filled == BLOCK_BYTES:
                    writing.put(lambda whole: _write(stream, whole), block)
                    block, filled = next(blocks), 0

        yield write
        writing.drain()
        _set_direct(stream, False)
        _write(stream, block[:filled])


def _write(stream: io.FileIO, piece: memoryview) -> None:
    while len(piece):  # a single write may take less
        try:
            piece = piece[stream.write(piece) :]
        except OSError as error:
            if error.errno != errno.EINVAL or not _set_direct(stream, False):
                raise


def _set_direct(stream: io.FileIO, wanted: bool) -> bool:
    """Have what is written pass by the page cache, or not; whether that changed anything."""
    direct = getattr(os, "O_DIRECT", 0)
    before = fcntl.fcntl(stream, fcntl.F_GETFL)
    after = before | direct if wanted else before & ~direct
    try:
        fcntl.fcntl(stream, fcntl.F_SETFL, after)
    except OSError:  # the file system knows no such way
        return False
    return after != before
