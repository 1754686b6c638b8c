"""A part of a file, read as a file: every piece of a tensor in a distributed checkpoint is an archive of its own."""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO


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
