"""Lines of plain, gzip and zstd files: bounded in memory, and never taking a truncated file for a short one."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_apriel.data.raw_chunks import MAX_RECORD_BYTES

READ_ERRORS = (EOFError, zlib.error, OSError)  # gzip.BadGzipFile is an OSError
"""What reading raises where a file is damaged."""

_MOST_WINDOW = 2**31
"""Of zstd's window in bytes: the most that ``zstd --long`` writes, as large dumps are; unasked, the library refuses."""


def bounded_lines(stream: io.BufferedIOBase) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines from 1; None for one beyond MAX_RECORD_BYTES, which is skipped without being held."""
    number = 0
    while line := stream.readline(MAX_RECORD_BYTES + 1):
        number += 1
        if len(line) <= MAX_RECORD_BYTES:
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(MAX_RECORD_BYTES)
        yield number, None


def decompressed(path: Path) -> io.BufferedIOBase:
    """Open a file for reading its bytes, decompressed if its name ends in .gz or .zst.

    Reading raises one of ``READ_ERRORS`` where the file is damaged or ends too early.
    """
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.name.lower().endswith(".zst"):
        return io.BufferedReader(_ZstdStream(path), buffer_size=2**20)
    return path.open("rb")


class _ZstdStream(io.RawIOBase):
    """Decompressed bytes of a .zst file of any number of frames; raises EOFError where the last one is cut short.

    ``zstandard``'s own stream reader takes a truncated file for a short one.
    """

    def __init__(self, path: Path) -> None:
        import zstandard

        self._decompressor = zstandard.ZstdDecompressor(max_window_size=_MOST_WINDOW)
        self._failure = zstandard.ZstdError
        self._file = path.open("rb")
        self._frame: Any = None
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            compressed = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
            if self._frame is not None and self._frame.eof:
                self._frame = None
            compressed = compressed or self._file.read(2**16)
            if not compressed:
                if self._frame is not None:
                    raise EOFError("the compressed stream ends in the middle of a frame")
                return 0
            self._frame = self._frame or self._decompressor.decompressobj()
            try:
                self._ready = self._frame.decompress(compressed)
            except self._failure as error:
                raise EOFError(f"damaged zstd data: {error}") from None
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
