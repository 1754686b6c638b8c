"""Bytes and lines of plain and packed files: bounded in memory and time, a truncated file never taken for short.

A packed file may give ``ReadLimits.expansion`` times its own bytes, counted while it is read: what would grow without
end is refused where it begins to, whether it is one line, nothing but line ends or an archive's padding.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from megatron_apriel.data.raw.read_limits import LimitExceeded, ReadLimits
from megatron_apriel.inputs import open_input

READ_ERRORS = (EOFError, zlib.error, OSError)  # gzip.BadGzipFile is an OSError
"""What reading raises where a file is damaged."""

PACKINGS = ("", ".gz", ".zst", ".xz", ".bz2")
"""Endings of files of text."""

_GZIP = b"\x1f\x8b"
_BUFFER_BYTES = 2**20
_PIECE_BYTES = 1024
"""Of zstd data, unpacked at once: a block of it has at least 4 bytes and gives at most 128 KiB, so 32 MiB come out."""
_SKIPPED = 2
"""Times the limit of a record after which a line without an end is not followed further."""
_PADDING_BYTES = 2**20
"""Most zeros behind a gzip file's end; tools pad to whole tape records of some 10 KiB."""
_IDLE_BYTES = 16 * 2**20
"""Of zstd data from which nothing comes: frames to be skipped hold indexes of a few bytes for each megabyte."""
_HOLES = 10_000
"""Of a file on its disk, looked at."""
_BLANK = b" \t\n\r\x0b\x0c"


def bounded_lines(stream: io.BufferedReader, most: int) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines from 1 without the blank ones; None for a line of more than ``most`` bytes, which is not held.

    Raises LimitExceeded for a line that has no end long after that.
    """
    number = 0
    while line := stream.readline(_BUFFER_BYTES):
        number += 1
        whole = line if line.endswith(b"\n") else _whole_line(stream, line, most, number)
        if whole is None or len(whole) > most:
            yield number, None
        elif whole.strip(_BLANK):
            yield number, whole
        else:
            # Many blank lines are passed over at once.
            blank = (ahead := stream.peek())[: len(ahead) - len(ahead.lstrip(_BLANK))]
            number += stream.read(len(blank)).count(b"\n")


def _whole_line(stream: io.BufferedReader, beginning: bytes, most: int, number: int) -> bytes | None:
    """The line to its end; None for a longer one, of which nothing is held."""
    line, size, piece = io.BytesIO(), 0, beginning
    while piece:
        size += len(piece)
        if size <= most:
            line.write(piece)
        else:
            line = io.BytesIO()
        if size > _SKIPPED * most:
            raise LimitExceeded(f"line {number} has no end within {size:,} bytes", "--max-record")
        if piece.endswith(b"\n"):
            break
        piece = stream.readline(_BUFFER_BYTES)
    return line.getvalue() if size <= most else None


def decompressed(path: Path, limits: ReadLimits) -> io.BufferedReader:
    """Open a file for reading its bytes, decompressed if its name ends as one of ``PACKINGS``.

    Reading raises one of ``READ_ERRORS`` where the file is damaged or ends too early, and LimitExceeded where it grows
    beyond the limits.
    """
    file = open_raw(path, limits)
    if path.name.lower().endswith(".gz"):
        return _unpacked(file, _gzip_stream(file), limits)
    if path.name.lower().endswith(".zst"):
        return _unpacked(file, _ZstdStream(file, limits.window_bytes), limits)
    if path.name.lower().endswith((".xz", ".bz2")):
        return _unpacked(file, _PartsStream(file, path.name.lower().endswith(".xz"), limits.window_bytes), limits)
    return file


def unzipped(path: Path, limits: ReadLimits) -> io.BufferedReader:
    """Open a file for reading its bytes, gzip taken off whatever its name; errors as of :func:`decompressed`."""
    file = open_raw(path, limits)
    return _unpacked(file, _gzip_stream(file), limits) if file.peek(2).startswith(_GZIP) else file


def open_raw(path: Path, limits: ReadLimits) -> io.BufferedReader:
    """Open a file of raw data for reading its bytes as they are.

    Raises OSError as of :func:`~megatron_apriel.inputs.open_input`, and LimitExceeded for a file that is little but
    holes: they take no space on disk, and time and memory like any other bytes.
    """
    file: Any = open_input(path, _BUFFER_BYTES)
    try:
        limits.check_growth(*_stored_and_whole(file.fileno()), "on its disk it")
    except LimitExceeded:
        file.close()
        raise
    return file  # type: ignore[no-any-return]


def _stored_and_whole(descriptor: int) -> tuple[int, int]:
    """Bytes of a file that are not in holes, of which the first few are looked at, and all of its bytes."""
    size = left = os.fstat(descriptor).st_size
    place = 0
    for _ in range(_HOLES):
        if place >= size or (begin := os.lseek(descriptor, place, os.SEEK_HOLE)) >= size:
            break
        try:
            place = os.lseek(descriptor, begin, os.SEEK_DATA)
        except OSError:  # nothing but the hole
            place = size
        left -= place - begin
    os.lseek(descriptor, 0, os.SEEK_SET)
    return left, size


def _gzip_stream(file: BinaryIO) -> gzip.GzipFile:
    return gzip.GzipFile(fileobj=_LittlePadding(file))  # type: ignore[call-overload,no-any-return]


class _LittlePadding:
    """A gzip file whose zeros behind its end, which ``gzip`` passes over one by one, come to an end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._zeros = file, 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._zeros = self._zeros + 1 if data == b"\0" else 0
        if self._zeros > _PADDING_BYTES:
            raise gzip.BadGzipFile(f"more than {_PADDING_BYTES:,} zeros follow the end")
        return data


def _unpacked(file: BinaryIO, stream: _Stream, limits: ReadLimits) -> io.BufferedReader:
    return io.BufferedReader(_Growing(file, stream, limits), buffer_size=_BUFFER_BYTES)


class _Stream(Protocol):
    def read1(self, size: int, /) -> bytes: ...


class _Growing(io.RawIOBase):
    """What comes out of a packed file, held to the limit on its growth."""

    def __init__(self, file: BinaryIO, stream: _Stream, limits: ReadLimits) -> None:
        self._file, self._stream, self._limits = file, stream, limits
        self._unpacked = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read1(len(buffer))
        self._unpacked += len(data)
        self._limits.check_growth(self._file.tell(), self._unpacked)
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


class _PartsStream:
    """Decompressed bytes of an .xz or .bz2 file of any number of parts; EOFError where it is damaged or cut short."""

    def __init__(self, file: BinaryIO, xz: bool, window: int) -> None:
        self._file, self._xz, self._window, self._idle = file, xz, window, 0
        self._part: Any = None

    def read1(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none at the end."""
        packed = b""
        while True:
            if self._part is not None and self._part.eof:
                packed, self._part = self._part.unused_data, None
            if not packed and (self._part is None or self._part.needs_input):
                packed = self._file.read(_PIECE_BYTES)
                if not packed and self._part is None:
                    return b""
                if not packed:
                    raise EOFError("the compressed stream ends in the middle")
            if self._part is None and self._xz:
                packed = packed.lstrip(b"\0")  # padding between the parts of an .xz file
                if not packed:
                    continue
            self._idle += len(packed)
            if self._idle > _IDLE_BYTES:
                raise EOFError(f"nothing comes out of {self._idle:,} bytes")
            self._part = self._part or self._begin()
            try:
                data: bytes = self._part.decompress(packed, size)
            except (lzma.LZMAError, OSError) as error:
                if "memory" in str(error).lower():
                    raise LimitExceeded(
                        f"it was packed with a dictionary of more than {self._window:,} bytes", "--max-window"
                    ) from None
                raise EOFError(f"damaged data: {error}") from None
            packed = b""
            if data:
                self._idle = 0
                return data

    def _begin(self) -> Any:
        if self._xz:
            return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=self._window)
        return bz2.BZ2Decompressor()


class _ZstdStream:
    """Decompressed bytes of a .zst file of any number of frames; raises EOFError where the last one is cut short.

    ``zstandard``'s own stream reader takes a truncated file for a short one.
    """

    def __init__(self, file: BinaryIO, window: int) -> None:
        import zstandard

        self._decompressor = zstandard.ZstdDecompressor(max_window_size=window)
        self._failure = zstandard.ZstdError
        self._file, self._window, self._idle = file, window, 0
        self._frame: Any = None
        self._ready = memoryview(b"")

    def read1(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none at the end."""
        while not self._ready:
            compressed = self._frame.unused_data if self._frame is not None and self._frame.eof else b""
            if self._frame is not None and self._frame.eof:
                self._frame = None
            compressed = compressed or self._file.read(_PIECE_BYTES)
            self._idle += len(compressed)
            if self._idle > _IDLE_BYTES:
                raise EOFError(f"nothing comes out of {self._idle:,} bytes")
            if not compressed:
                if self._frame is not None:
                    raise EOFError("the compressed stream ends in the middle of a frame")
                return b""
            self._frame = self._frame or self._decompressor.decompressobj()
            try:
                self._ready = memoryview(self._frame.decompress(compressed))
            except self._failure as error:
                if "too much memory" in str(error):
                    raise LimitExceeded(
                        f"it was packed with a window of more than {self._window:,} bytes (zstd --long)",
                        "--max-window",
                    ) from None
                raise EOFError(f"damaged zstd data: {error}") from None
        self._idle = 0
        data, self._ready = bytes(self._ready[:size]), self._ready[size:]
        return data
