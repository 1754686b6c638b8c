"""A part of a file: as a file, since every piece of a tensor in a checkpoint is an archive of its own, or as bytes."""

from __future__ import annotations

import io
import os
from typing import IO, Any, BinaryIO

from megatron_apriel.errors import CheckpointError


class Window(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, file: BinaryIO, offset: int, length: int) -> None:
        self._file, self._offset, self._length, self._at = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = os.pread(self._file.fileno(), min(len(buffer), max(self._length - self._at, 0)), self._offset + self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def read_bytes(file: IO[bytes], offset: int, size: int) -> bytearray:
    """``size`` bytes from ``offset``. Raises CheckpointError if the file ends before."""
    data, done = bytearray(size), 0
    while done < size:  # one call moves at most 2 GiB
        count = os.preadv(file.fileno(), [memoryview(data)[done:]], offset + done)
        if not count:
            raise CheckpointError(f"{file.name} ended while it was read; is something replacing it?")
        done += count
    return data
