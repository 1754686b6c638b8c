"""Reads the weights of a run's distributed checkpoint without a GPU, a process group or a model.

Each piece of a tensor is kept in a ``.distcp`` file as torch would save it on its own: a zip archive, not compressed,
with the numbers in one member and a few words about shape and strides in another. So any run of rows can be read
by itself, whatever the size of the piece: memory is bounded by what is asked for, and no pickle is executed; the few
words are read by an unpickler that knows nothing else.

The optimizer's state and the random states lie in the same files under keys of their own and are not looked at.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy
import torch
from torch import Tensor

from megatron_apriel.architecture import Architecture
from megatron_apriel.checkpoint.forms import architecture_of, sidecar_directory
from megatron_apriel.checkpoint.metadata import read_metadata, tensors_in
from megatron_apriel.checkpoint.names import Form, parameters, weights
from megatron_apriel.checkpoint.run_file import read_run_file
from megatron_apriel.checkpoint.sources import DTYPES, SAFETENSORS_NAMES, read_bytes
from megatron_apriel.checkpoint.verify import verify
from megatron_apriel.checkpoint.window import Window
from megatron_apriel.errors import CheckpointError, listed
from megatron_apriel.surgery.tensor_files import TensorSpec

NOT_WEIGHTS = ("optimizer.", "random.", "common_state")
"""Beginnings of the keys of everything in a checkpoint that is not a weight."""

_STORAGES = {
    torch.float64: "DoubleStorage",
    torch.float32: "FloatStorage",
    torch.float16: "HalfStorage",
    torch.bfloat16: "BFloat16Storage",
}


@dataclass(frozen=True)
class _Piece:
    """A rectangle of a parameter and where it is kept."""

    row: int
    column: int
    rows: int
    columns: int
    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class _Run:
    """Rows ``start`` to ``stop`` of a weight are rows ``row``... of parameter ``key``."""

    start: int
    stop: int
    key: str
    row: int


_MOST_OPEN = 32
"""Files of one checkpoint that are kept open."""


class DistributedWeights:
    """A run's distributed checkpoint as a :class:`~megatron_apriel.checkpoint.sources.WeightSource`."""

    def __init__(self, path: Path, architecture: Architecture) -> None:
        self._path = path
        self._metadata = metadata = read_metadata(path)
        stored = tensors_in(metadata)
        _check_keys(path, architecture, stored)
        expected = parameters(architecture)
        self._pieces: dict[str, list[_Piece]] = defaultdict(list)
        for index, place in metadata.storage_data.items():
            if index.fqn in expected:
                chunk = stored[index.fqn].chunks[index.index or 0]
                offsets, sizes = (*(index.offset or chunk.offsets), 0), (*chunk.sizes, 1)
                where = (place.relative_path, place.offset, place.length)
                self._pieces[index.fqn].append(_Piece(offsets[0], offsets[1], sizes[0], sizes[1], *where))
        self._key_dtypes = {key: stored[key].properties.dtype for key in expected}
        self._runs: dict[str, list[_Run]] = defaultdict(list)
        for key, parameter in expected.items():
            for piece, row in parameter.pieces_between(0, parameter.shape[0]):
                self._runs[piece.weight].append(_Run(piece.start, piece.stop, key, row))
        self.table = weights(architecture)
        self.dtypes = {name: self._key_dtypes[runs[0].key] for name, runs in self._runs.items()}
        self.skipped: tuple[str, ...] = ()
        self.description = f"distributed checkpoint, {len({piece.file for piece in self._all_pieces()})} files"
        self.bytes_read = 0
        self._layouts: dict[_Piece, tuple[int, int]] = {}
        self._descriptors: dict[str, BinaryIO] = {}

    def verify(self, share: int = 0, shares: int = 1) -> None:
        verify(self._path, self._metadata, share, shares, self._pieces.keys())

    def read(self, name: str, start: int, stop: int, columns: tuple[int, int] | None = None) -> Tensor:
        weight = self.table[name]
        first, last = columns or (0, weight.matrix[1])
        result = torch.empty(stop - start, last - first, dtype=self.dtypes[name])
        filled = 0
        for run in self._runs[name]:
            low, high = max(start, run.start), min(stop, run.stop)
            if low < high:
                target = result[low - start : high - start]
                filled += self._fill(target, run.key, run.row + low - run.start, first)
        if filled != result.numel():
            raise CheckpointError(f"{self._path}: {name} is not whole: {result.numel() - filled} numbers are nowhere.")
        return result[:, 0] if len(weight.shape) == 1 else result

    def _fill(self, target: Tensor, key: str, top: int, left: int) -> int:
        """Copy the rectangle at row ``top`` and column ``left`` of a parameter into ``target``; numbers copied."""
        filled = 0
        bottom, right = top + target.shape[0], left + target.shape[1]
        for piece in self._pieces[key]:
            low, high = max(top, piece.row), min(bottom, piece.row + piece.rows)
            begin, end = max(left, piece.column), min(right, piece.column + piece.columns)
            if low < high and begin < end:
                rows = self._rows(piece, low - piece.row, high - piece.row, target.dtype)
                part = rows[:, begin - piece.column : end - piece.column]
                target[low - top : high - top, begin - left : end - left] = part
                filled += part.numel()
        return filled

    def _rows(self, piece: _Piece, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        # The newest last: a checkpoint may have more files than a process may have open.
        file = self._descriptors.pop(piece.file, None) or (self._path / piece.file).open("rb")
        self._descriptors[piece.file] = file
        if len(self._descriptors) > _MOST_OPEN:
            self._descriptors.pop(next(iter(self._descriptors))).close()
        if piece not in self._layouts:
            self._layouts[piece] = _locate(file, piece, dtype)
        begin, row_bytes = self._layouts[piece]
        data = read_bytes(file, begin + start * row_bytes, (stop - start) * row_bytes)
        self.bytes_read += len(data)
        return torch.frombuffer(data, dtype=dtype).view(stop - start, piece.columns)

    def _all_pieces(self) -> Iterator[_Piece]:
        for pieces in self._pieces.values():
            yield from pieces


class DistributedCheckpointSource:
    """A run's distributed checkpoint as tensors of Hugging Face's names and shapes, in NumPy's arrays.

    Implements ``TensorSource`` of :mod:`megatron_apriel.surgery.average_inputs`. Not for several threads at a time.

    Args:
        path: a directory ``OUTPUT/checkpoints/step_00000500``; its files are verified by size, its weights by checksum.

    Attributes:
        sidecars: directory with config, tokenizer and processor files.

    Raises:
        CheckpointError: damaged, incomplete or of another model than its config says.
    """

    def __init__(self, path: str | Path) -> None:
        read_run_file(Path(path))
        self.sidecars = sidecar_directory(path)
        architecture = architecture_of(path)
        form = Form.TEXT_ONLY if architecture.tower is None else Form.LEGACY
        self._weights = DistributedWeights(Path(path), architecture)
        self._weights.verify()
        self._names = {weight.stored_as(form): name for name, weight in self._weights.table.items()}
        self.tensors: Mapping[str, TensorSpec] = {
            stored: TensorSpec(stored, SAFETENSORS_NAMES[self._weights.dtypes[name]], self._weights.table[name].shape)
            for stored, name in self._names.items()
        }

    def read(self, name: str, start_row: int, stop_row: int) -> numpy.ndarray:
        """Rows ``start_row`` to ``stop_row`` of a tensor as a flat array; bfloat16 as its bits in uint16."""
        rows = self._weights.read(self._names[name], start_row, stop_row).reshape(-1)
        array: numpy.ndarray = (rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows).numpy()
        return array


def _check_keys(path: Path, architecture: Architecture, stored: dict[str, Any]) -> None:
    expected = parameters(architecture)
    found = {key for key in stored if not key.startswith(NOT_WEIGHTS)}
    missing, surplus = [key for key in expected if key not in found], sorted(found - expected.keys())
    if missing or surplus:
        raise CheckpointError(
            f"{path}: its tensors are not those of the architecture: {len(missing)} missing ({listed(missing)}), "
            f"{len(surplus)} left over ({listed(surplus)}).",
            "The checkpoint is of another model, or its hf/config.json was changed.",
        )
    for key, parameter in expected.items():
        if tuple(stored[key].size) != parameter.shape:
            raise CheckpointError(
                f"{path}: {key} has shape {list(stored[key].size)}, the architecture says {list(parameter.shape)}."
            )
        if stored[key].properties.dtype not in DTYPES.values():
            raise CheckpointError(
                f"{path}: {key} is stored as {stored[key].properties.dtype}, not a float of 16+ bits."
            )


class _ShapeUnpickler(pickle.Unpickler):
    """Reads how a saved tensor lies in its storage; makes no tensor."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *rest: (storage, offset, tuple(size), tuple(stride))
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name.endswith("Storage"):
            return name
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, description: Any) -> Any:
        return description


def _locate(file: BinaryIO, piece: _Piece, dtype: torch.dtype) -> tuple[int, int]:
    """Offset of a piece's first number in its file, and bytes per row."""
    try:
        with zipfile.ZipFile(io.BufferedReader(Window(file, piece.offset, piece.length))) as archive:
            members = {member.filename.partition("/")[2]: member for member in archive.infolist()}
            about, data = members["data.pkl"], members["data/0"]
            (_, storage, key, _, _), offset, size, stride = _ShapeUnpickler(io.BytesIO(archive.read(about))).load()
    except Exception as error:  # whatever damaged bytes happen to raise
        raise CheckpointError(f"{file.name}: no tensor at byte {piece.offset}: {error}.") from None
    header = os.pread(file.fileno(), 30, piece.offset + data.header_offset)
    begin = data.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    shape = (piece.rows, piece.columns)[: len(size)]
    strides = (piece.columns, 1)[: len(size)]
    bytes_needed = (offset + piece.rows * piece.columns) * dtype.itemsize
    whole = data.compress_type == zipfile.ZIP_STORED and begin + bytes_needed <= piece.length
    described = (storage, size, stride, key)
    if described != (_STORAGES[dtype], shape, strides, "0") or not whole or data.file_size < bytes_needed:
        raise CheckpointError(
            f"{file.name}: the tensor at byte {piece.offset} has shape {list(size)} and strides {list(stride)} in a "
            f"{storage} of {data.file_size} bytes, not {list(shape)} row by row in {dtype}.",
            "It was not written by this project's training or conversion, or it is damaged.",
        )
    return piece.offset + begin + offset * dtype.itemsize, piece.columns * dtype.itemsize
