"""A large file, written straight to disk.

What is written as usual is copied into the system's page cache first, and sent to disk from there by another thread of
the system: on a machine with few cores that takes as long as hashing half of it. A result has to be on disk before it
gets its name, and is larger than what the cache can keep for whoever reads it next. So its bytes are gathered in
blocks, and each block goes to disk from where it lies (``O_DIRECT``), while the next one is being filled. Whoever reads
them from a file can read them into the block at once, and they are copied no more.

The disk takes whole blocks only. The rest at the end goes through the cache, and so does everything where the file
system knows no other way. Either way the file is on disk for sure only when it is flushed (``outputs.py``).
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_apriel.outputs import reserve
from megatron_apriel.surgery.lanes import Crew, Lane
from megatron_apriel.surgery.reused_memory import ReusedMemory

BLOCK_BYTES = 4 << 20
"""Written at once. A multiple of every disk's own block, and large enough to keep a fast disk busy."""


class DirectFile:
    """A new file that is written from its beginning to its end. Made by :func:`direct_file`."""

    def __init__(self, stream: io.FileIO, writing: Lane) -> None:
        self._stream, self._writing = stream, writing
        # A block is free again when nobody looks at any part of it: the lane that writes it, and others that hash it.
        self._memory = ReusedMemory()
        self._block, self._filled = self._memory(BLOCK_BYTES), 0

    def room(self, size: int) -> memoryview:
        """Where the next bytes will lie, for whoever can put them there at once; up to ``size``, often fewer."""
        return self._block[self._filled : self._filled + size]

    def write(self, piece: memoryview) -> memoryview:
        """Take the next bytes. What goes wrong with the disk is raised by one of the later calls.

        Args:
            piece: the beginning of what :meth:`room` gave last, or bytes that lie anywhere else.

        Returns:
            As many of them as found room, where they lie now: they stay as long as anybody looks at them.
        """
        view = self._block[self._filled : self._filled + len(piece)]
        if piece.obj is not view.obj:
            view[:] = piece[: len(view)]
        self._filled += len(view)
        if self._filled == BLOCK_BYTES:
            self._writing.put(lambda whole: _write(self._stream, whole), self._block)
            self._block, self._filled = self._memory(BLOCK_BYTES), 0
        return view

    def _end(self) -> None:
        self._writing.drain()
        _set_direct(self._stream, False)
        _write(self._stream, self._block[: self._filled])


@contextmanager
def direct_file(file: Path, size: int) -> Iterator[DirectFile]:
    """Write a new file.

    Args:
        file: must not exist.
        size: bytes that will be written; room for them is reserved.

    Yields:
        What takes the bytes. What goes wrong with the disk is raised by one of its later calls, or at the end of the
        block.

    Raises:
        OSError: the file exists, or the disk is full.
    """
    # The file is the outermost: it must not be closed before the thread that writes it has ended.
    with file.open("xb", buffering=0) as stream, Crew("writing") as crew, Lane(crew) as writing:
        reserve(stream.fileno(), size)
        _set_direct(stream, True)
        result = DirectFile(stream, writing)
        yield result
        result._end()


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
