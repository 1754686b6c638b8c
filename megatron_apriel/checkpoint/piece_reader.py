"""Reads the numbers of a distributed checkpoint, any rectangle of any tensor, without executing a pickle.

Each piece of a tensor is kept in a ``.distcp`` file as torch would save it on its own: a zip archive, not compressed,
with the numbers in one member and a few words about shape and strides in another. So any run of rows can be read by
itself, whatever the size of the piece: memory is bounded by what is asked for, and the few words are read by an
unpickler that knows nothing else. Resuming, conversion and averages all read numbers here.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from megatron_apriel.checkpoint.file_window import Window, read_bytes
from megatron_apriel.checkpoint.metadata import Contents, Extent
from megatron_apriel.errors import CheckpointError
from megatron_apriel.inputs import open_input

_STORAGES = {
    torch.float64: "DoubleStorage",
    torch.float32: "FloatStorage",
    torch.float16: "HalfStorage",
    torch.bfloat16: "BFloat16Storage",
    torch.int64: "LongStorage",
    torch.uint8: "ByteStorage",
}
"""Of every dtype that this project writes, how torch calls memory full of it."""

_MOST_OPEN = 32
"""Files of one checkpoint that are kept open."""
_READ_BYTES = 64 << 20
"""Most that is read at once."""
_LOCAL_HEADER = b"PK\3\4"
"""What a member of a zip archive begins with."""
_MOST_WORDS = 64 << 10
"""Bytes of the member that describes a tensor; torch writes some 150."""


class _Rows(NamedTuple):
    """A piece as rows and columns of its tensor; a vector has one column."""

    row: int
    column: int
    rows: int
    columns: int
    extent: Extent


class _Sorted:
    """The pieces of one tensor by their first row; finds those that a run of rows touches without trying all."""

    def __init__(self, pieces: list[_Rows]) -> None:
        self._pieces = sorted(pieces)
        self._firsts = [piece.row for piece in self._pieces]
        # Nothing before the first piece whose running maximum is beyond a row can reach it.
        self._reach = list(accumulate((piece.row + piece.rows for piece in self._pieces), max))

    def touching(self, top: int, bottom: int) -> list[_Rows]:
        candidates = self._pieces[bisect_right(self._reach, top) : bisect_left(self._firsts, bottom)]
        return [piece for piece in candidates if piece.row + piece.rows > top]


class PieceReader:
    """Numbers of a distributed checkpoint. Not for several threads at a time.

    Args:
        directory: of the checkpoint.
        contents: what its directory says, from :func:`~megatron_apriel.checkpoint.metadata.read_metadata`.

    Attributes:
        bytes_read: so far.
    """

    def __init__(self, directory: Path, contents: Contents) -> None:
        self._directory, self._contents = directory, contents
        self._pieces: dict[str, _Sorted] = {}
        self._starts: dict[Extent, int] = {}
        self._files: dict[str, BinaryIO] = {}
        self.bytes_read = 0

    def fill(self, target: Tensor, key: str, offsets: tuple[int, ...]) -> int:
        """Copy the rectangle of tensor ``key`` that begins at ``offsets`` into ``target``; returns how many numbers.

        Args:
            target: [rows, columns], or [rows] of a vector; on any device. Its dtype may be another than the stored one.
            key: of a tensor that is there.
            offsets: of the target's first number in the whole tensor, one or two.

        Raises:
            CheckpointError: what lies at a piece's place is not the piece.
        """
        filled = 0
        matrix = target if target.dim() == 2 else target[:, None]
        top, left = (*offsets, 0)[:2]
        bottom, right = top + matrix.shape[0], left + matrix.shape[1]
        for piece in self._of(key).touching(top, bottom):
            low, high = max(top, piece.row), min(bottom, piece.row + piece.rows)
            begin, end = max(left, piece.column), min(right, piece.column + piece.columns)
            step = max(1, _READ_BYTES // (piece.columns * self._contents.tensors[key].dtype.itemsize or 1))
            for row in range(low, high if begin < end else low, step):
                stop = min(row + step, high)
                part = self._rows(piece, key, row - piece.row, stop - piece.row)
                part = part[:, begin - piece.column : end - piece.column]
                matrix[row - top : stop - top, begin - left : end - left] = part
                filled += part.numel()
        return filled

    def read_object(self, key: str, most: int) -> bytes:
        """The bytes of an entry that is no tensor. Raises CheckpointError for more than ``most`` of them."""
        place = self._contents.objects[key]
        if place.length > most:
            raise CheckpointError(
                f"{self._directory}: {key} in {place.file} has {place.length:,} bytes, more than {most:,}.",
                "This project writes nothing of that size there.",
            )
        return bytes(read_bytes(self._open(place.file), place.offset, place.length))

    def close(self) -> None:
        """Close the files."""
        while self._files:
            self._files.popitem()[1].close()

    def _of(self, key: str) -> _Sorted:
        if key not in self._pieces:
            pieces = self._contents.tensors[key].pieces
            self._pieces[key] = _Sorted(
                [
                    _Rows(row, column, rows, columns, piece.extent)
                    for piece in pieces
                    for row, column in [(*piece.offsets, 0)[:2]]
                    for rows, columns in [(*piece.sizes, 1)[:2]]
                ]
            )
        return self._pieces[key]

    def _rows(self, piece: _Rows, key: str, start: int, stop: int) -> Tensor:
        tensor = self._contents.tensors[key]
        file = self._open(piece.extent.file)
        if piece.extent not in self._starts:
            shape = (piece.rows, piece.columns)[: len(tensor.shape)]
            self._starts[piece.extent] = _first_number(file, piece.extent, shape, tensor.dtype)
        row_bytes = piece.columns * tensor.dtype.itemsize
        try:
            data = read_bytes(file, self._starts[piece.extent] + start * row_bytes, (stop - start) * row_bytes)
        except OSError as error:
            raise CheckpointError(f"{file.name} could not be read: {error.strerror}.") from None
        self.bytes_read += len(data)
        return torch.frombuffer(data, dtype=tensor.dtype).view(stop - start, piece.columns)

    def _open(self, name: str) -> BinaryIO:
        # The newest last: a checkpoint may have more files than a process may have open.
        try:
            self._files[name] = file = self._files.pop(name, None) or open_input(self._directory / name)
        except OSError as error:
            raise CheckpointError(
                f"{self._directory / name} could not be read: {error.strerror}.",
                "It was there when the checkpoint was opened. A run removes what it does not keep (checkpoint.keep).",
                "Take another checkpoint of the run.",
            ) from None
        if len(self._files) > _MOST_OPEN:
            self._files.pop(next(iter(self._files))).close()
        return file


class _ShapeUnpickler(pickle.Unpickler):
    """Reads how a saved tensor lies in its storage; makes no tensor."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _described
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _STORAGES.values():
            return name
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, description: Any) -> Any:
        return description


def _described(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> tuple[Any, ...]:
    return storage, offset, size, stride


def _first_number(file: BinaryIO, place: Extent, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Where in the file the numbers of a piece begin; they follow each other row by row."""
    try:
        with zipfile.ZipFile(io.BufferedReader(Window(file, place.offset, place.length))) as archive:
            members = {member.filename.partition("/")[2]: member for member in archive.infolist()}
            about, data = members["data.pkl"], members["data/0"]
            if about.compress_type != zipfile.ZIP_STORED or about.file_size > _MOST_WORDS:
                raise ValueError(f"its description has {about.file_size} bytes")
            described = _ShapeUnpickler(io.BytesIO(archive.read(about))).load()
            order = members["byteorder"]
            if order.compress_type != zipfile.ZIP_STORED or order.file_size > 6 or archive.read(order) != b"little":
                raise ValueError("its numbers are not little-endian")
        (_, storage, key, _, _), offset, size, stride = described
        if type(offset) is not int or offset < 0:
            raise ValueError(f"it begins at number {offset!r}")
    except Exception as error:  # whatever damaged bytes happen to raise
        raise CheckpointError(f"{file.name}: no tensor at byte {place.offset}: {error}.") from None
    header = os.pread(file.fileno(), 30, place.offset + max(data.header_offset, 0))
    begin = data.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    strides = (shape[1], 1) if len(shape) == 2 else (1,)
    needed = (offset + torch.Size(shape).numel()) * dtype.itemsize
    whole = data.compress_type == zipfile.ZIP_STORED and begin + needed <= place.length and data.file_size >= needed
    whole = whole and data.header_offset >= 0 and header[:4] == _LOCAL_HEADER
    as_described = (storage, size, key) == (_STORAGES.get(dtype), shape, "0") and _same_rows(stride, strides, shape)
    if not whole or not as_described:
        raise CheckpointError(
            f"{file.name}: the tensor at byte {place.offset} has shape {size!r:.60} and strides {stride!r:.60} in a "
            f"{storage!r:.60} of {data.file_size} bytes, not {list(shape)} row by row in {dtype}.",
            "It was not written by this project's training or conversion, or it is damaged.",
        )
    return place.offset + begin + offset * dtype.itemsize


def _same_rows(found: Any, expected: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Whether strides mean the same order of numbers. Of a dimension of 1 they say nothing."""
    if not isinstance(found, tuple) or len(found) != len(expected):
        return False
    return all(one == other or length == 1 for one, other, length in zip(found, expected, shape, strict=True))
