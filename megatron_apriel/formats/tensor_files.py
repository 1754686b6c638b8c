"""Safetensors by byte ranges: what is in a checkpoint directory.

A safetensors file is eight bytes (the header's length, little-endian), a JSON header (per tensor: dtype, shape, first
and last byte within the data that follow) and the tensors' bytes, row-major, without gaps. So a tensor, or some of its
rows, is a byte range of a file: it can be copied, hashed or compared without being understood, in memory that does not
depend on its size. A model is one such file, or several with an index (``*.safetensors.index.json``) that says which
tensor is in which file. The Hugging Face form calls them ``model*.safetensors``, Mistral's form
``consolidated*.safetensors``.

Everything a header or an index says is checked before it is believed: a truncated download or a leftover shard ends
in a CheckpointError with the file and the numbers, never in wrong weights.

Source of the format: https://github.com/huggingface/safetensors (README, "Format"). May import only the ground.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn

from megatron_apriel.errors import CheckpointError, brief, listed, printable, shown
from megatron_apriel.formats.json_files import MOST_BYTES, parse_json, read_json
from megatron_apriel.formats.other_tensors import refuse_foreign
from megatron_apriel.formats.other_tools import refuse_adapter, refuse_leftovers
from megatron_apriel.inputs import open_input, what_was_meant

DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes per element of the dtypes that are read here. The format's sub-byte dtypes are not among them."""

FLOATS = ("F64", "F32", "F16", "BF16")
"""Dtypes of weights that can be trained, averaged and repeated; others hold whole or quantised numbers."""

PIECE_BYTES = 1 << 20
"""Largest piece that is read at once for copying, hashing or comparing: it stays in a core's cache meanwhile."""

MOST_HEADER_BYTES = MOST_BYTES
"""Of a header. The reference implementation allows 100 MB, of which a reader's memory would be several GiB; a tensor
takes about a hundred bytes of it."""
_PICKLE = b"PK\x03\x04"
"""How a file of ``torch.save`` begins, which is a zip archive with a pickle in it."""
_MOST_DIMENSIONS = 32
_MOST = 2**63 - 1  # of a dimension or an offset

Base = Literal["model", "consolidated"]
"""How weight files begin: ``model`` in the Hugging Face form, ``consolidated`` in Mistral's."""

_FORMS: dict[Base, str] = {"model": "the Hugging Face form", "consolidated": "Mistral's form"}


@dataclass(frozen=True)
class TensorSpec:
    """Name, safetensors dtype (``BF16``) and shape of a tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.elements * DTYPE_BYTES[self.dtype]

    @property
    def rows(self) -> int:
        """Length of the first dimension; a scalar is one row."""
        return self.shape[0] if self.shape else 1


@dataclass(frozen=True)
class TensorEntry(TensorSpec):
    """A tensor in a file: ``size`` bytes from ``offset``, counted from the file's beginning.

    Whoever reads them opens the file anew. So ``state``, its size and when it was last written to, is that of the file
    whose header was read: another's bytes are never taken for the tensor's.
    """

    file: Path
    offset: int
    state: tuple[int, int] = field(compare=False, repr=False)

    def pieces(
        self,
        start_row: int = 0,
        stop_row: int | None = None,
        limit: int = PIECE_BYTES,
        memory: Callable[[int], memoryview] = lambda size: memoryview(bytearray(size)),
    ) -> Iterator[memoryview]:
        """The bytes of rows ``start_row`` to ``stop_row`` in pieces of ``limit`` bytes; the last may be shorter.

        Each piece lies in what ``memory`` gives for its size. Raises CheckpointError, after the last one at the latest,
        if the file was changed.
        """
        position, left = self._range(start_row, self.rows if stop_row is None else stop_row)
        with self._opened(position) as stream:
            while left:
                piece = memory(min(limit, left))
                self._fill(piece, stream, left)
                yield piece
                left -= len(piece)

    def read_into(self, buffer: memoryview, start_row: int, stop_row: int) -> None:
        """Fill ``buffer``, which has their size, with rows. Raises CheckpointError if the file was changed."""
        position, size = self._range(start_row, stop_row)
        with self._opened(position) as stream:
            self._fill(buffer, stream, size)

    def preceding(self) -> bytearray:
        """All bytes of the file before the tensor: its header. Raises CheckpointError if the file was changed."""
        data = bytearray(self.offset)
        with self._opened(0) as stream:
            self._fill(memoryview(data), stream, self.offset)
        return data

    @contextmanager
    def _opened(self, position: int) -> Iterator[BinaryIO]:
        """The file, to be read from ``position``; raises CheckpointError if it is another by the end of the block."""
        with open_input(self.file, buffering=0) as stream:
            stream.seek(position)
            yield stream
            self._check_unchanged(os.fstat(stream.fileno()))

    def check_unchanged(self) -> None:
        """Raise CheckpointError if the file is not the one whose header was read: for those who read it elsewhere."""
        self._check_unchanged(self.file.stat())

    def _check_unchanged(self, status: os.stat_result) -> None:
        if _state(status) != self.state:
            raise CheckpointError(
                f"{self.file} was changed while {self.name} was read.",
                "Its header was read before that: what was read may be of another model.",
                "Start again when nothing writes to it.",
            )

    def _range(self, start_row: int, stop_row: int) -> tuple[int, int]:
        """Position in the file and size of some rows."""
        row_bytes = self.size // self.rows if self.rows else 0
        return self.offset + start_row * row_bytes, (stop_row - start_row) * row_bytes

    def _fill(self, buffer: memoryview, stream: BinaryIO, left: int) -> None:
        """Read on until ``buffer`` is full, of ``left`` bytes that are still to come."""
        filled = 0
        while filled < len(buffer):  # a single read may give less, above all from a network
            count = os.readv(stream.fileno(), [buffer[filled:]])
            if not count:
                raise CheckpointError(
                    f"{self.file} ended {left - filled:,} bytes before the end of {self.name}.",
                    "It was complete when its header was read: something changed it meanwhile.",
                )
            filled += count


def read_header(file: Path) -> dict[str, TensorEntry]:
    """Read and check the header of one safetensors file; entries are in the order of their bytes.

    Raises:
        CheckpointError: if the file is missing, truncated, longer than its header says, or its header is not JSON of
            the format, names a tensor twice, has an unknown dtype, or gives ranges that overlap, leave gaps or do not
            fit dtype and shape.
    """
    try:
        with open_input(file) as stream:
            file_size, _ = state = _state(os.fstat(stream.fileno()))
            prefix = stream.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if length < 0 or 8 + length > file_size or length > MOST_HEADER_BYTES:
                if prefix.startswith(_PICKLE):
                    raise CheckpointError(
                        f"{printable(file)} is no safetensors file: it begins as torch.save writes.",
                        "torch's distributed checkpoint makes such files where a number is saved beside the tensors.",
                        "Save the tensors alone. If it has a wrong name only, have transformers write it anew.",
                    )
                _refuse(file, f"its header would be {max(length, 0):,} bytes long, in a file of {file_size:,} bytes")
            raw = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{printable(file)} cannot be read: {error.strerror}.") from None
    fields = _parse(raw, file)
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse(file, "its __metadata__ is not a table of strings")
    data_start = 8 + length
    entries = [_entry(file, state, data_start, name, value) for name, value in fields.items()]
    entries.sort(key=lambda entry: (entry.offset, entry.size))
    position = data_start
    for entry in entries:
        if entry.offset != position:
            relation = "overlaps the tensor before it" if entry.offset < position else "leaves a gap before it"
            _refuse(file, f"{brief(entry.name)} begins at byte {entry.offset:,} instead of {position:,}: it {relation}")
        position += entry.size
    if position != file_size:
        problem = "truncated" if position > file_size else "followed by something else"
        _refuse(file, f"its header describes {position:,} bytes and it has {file_size:,}: it is {problem}")
    return {entry.name: entry for entry in entries}


def _state(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


def _refuse(file: Path, problem: str) -> NoReturn:
    raise CheckpointError(
        f"{printable(file)} is damaged: {problem}.",
        fix="Download or export it again; compare its size and hash with the original's.",
    )


def _parse(raw: bytes, file: Path) -> dict[str, Any]:
    try:
        value = parse_json(raw)
    except ValueError as error:
        _refuse(file, f"its JSON cannot be read: {error}")
    if not isinstance(value, dict):
        _refuse(file, f"its JSON is a {type(value).__name__}, not an object")
    return value


def _entry(file: Path, state: tuple[int, int], data_start: int, name: str, value: Any) -> TensorEntry:
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        _refuse(file, f"{brief(name)} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        _refuse(file, f"{brief(name)} has dtype {shown(dtype)}, which is none of {', '.join(DTYPE_BYTES)}")
    for what, numbers in (("shape", shape), ("data_offsets", offsets)):
        if not isinstance(numbers, list) or not all(type(number) is int and 0 <= number <= _MOST for number in numbers):
            _refuse(file, f"{brief(name)} has {what} {shown(numbers)}, which is no list of numbers of 64 bits")
    if len(shape) > _MOST_DIMENSIONS:
        _refuse(file, f"{brief(name)} has {len(shape):,} dimensions, more than {_MOST_DIMENSIONS}")
    if len(offsets) != 2:
        _refuse(file, f"{brief(name)} has data_offsets {shown(offsets)}, which is no pair")
    begin, end = offsets
    entry = TensorEntry(name, dtype, tuple(shape), file, data_start + begin, state)
    if end - begin != entry.size:
        _refuse(
            file, f"{brief(name)} ({dtype} {shape}) takes {entry.size:,} bytes and was given bytes {begin:,} to {end:,}"
        )
    return entry


@dataclass(frozen=True)
class TensorDirectory:
    """All tensors of a checkpoint directory.

    Attributes:
        path: the directory.
        base: ``model`` (Hugging Face) or ``consolidated`` (Mistral).
        files: weight files, in the order of their names.
        entries: by name; in the order of files and of bytes within them.
    """

    path: Path
    base: Base
    files: tuple[Path, ...]
    entries: dict[str, TensorEntry]

    @classmethod
    def open(cls, path: str | Path, base: Base | None = None) -> TensorDirectory:
        """Read and check all headers.

        Args:
            path: directory with ``model.safetensors``, or an index and its files; or the same with ``consolidated``.
            base: which of the two to read; by default the Hugging Face form where both are present.

        Raises:
            CheckpointError: naming what is missing, left over or damaged, or the tool whose tensors are no plain model.
        """
        found = cls._find(Path(path), base)
        refuse_foreign({name: entry.shape for name, entry in found.entries.items()}, found.path)
        return found

    @classmethod
    def _find(cls, directory: Path, base: Base | None) -> TensorDirectory:
        if directory.is_file():
            refuse_leftovers(directory)
        if not directory.is_dir():
            raise CheckpointError(
                f"{directory} is not a directory." if directory.exists() else f"{directory} does not exist.",
                what_was_meant(directory, "model"),
                "Give a directory with safetensors files.",
            )
        refuse_adapter(directory)
        bases: tuple[Base, ...] = ("model", "consolidated") if base is None else (base,)
        for candidate in bases:
            present = _weight_files(directory, candidate)
            dangling = [file for file in present if file.is_symlink() and not file.exists()]
            if dangling:
                raise CheckpointError(
                    f"{dangling[0]} is a link to {dangling[0].readlink()}, which does not exist.",
                    "In a download cache it points to the downloaded file: the download is not complete.",
                    "Finish the download, or copy the directory with its links followed (cp -rL).",
                )
            index = directory / f"{candidate}.safetensors.index.json"
            if index.is_file():
                return cls._from_index(directory, candidate, index, present)
            single = directory / f"{candidate}.safetensors"
            if single.is_file() and present == [single]:
                return cls(directory, candidate, (single,), read_header(single))
            if present:
                raise CheckpointError(
                    f"{directory} has {listed(file.name for file in present)} and no {index.name}.",
                    "Without it, nothing says which files belong together.",
                )
        refuse_leftovers(directory)
        raise CheckpointError(
            f"{directory} has no {' or '.join(f'{name}.safetensors' for name in bases)}.",
            fix=f"Give a directory in {' or '.join(_FORMS[name] for name in bases)}; "
            "tools/convert_checkpoint.py makes one from the other.",
        )

    @classmethod
    def _from_index(cls, directory: Path, base: Base, index: Path, present: list[Path]) -> TensorDirectory:
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            _refuse(index, "it has no weight_map")
        for name, file_name in weight_map.items():
            if not isinstance(file_name, str) or Path(file_name).name != file_name or file_name in ("", ".."):
                _refuse(index, f"{brief(name)} lies in {shown(file_name)}, which is no file name")
        named = sorted(set(weight_map.values()))
        # Looked up in the list of the directory, since a name may be one that no file can have.
        there = {file.name for file in directory.iterdir()}
        missing = [name for name in named if name not in there]
        if missing:
            raise CheckpointError(f"{index} names {listed(missing)}, which {directory} does not have.")
        files = tuple(directory / name for name in named)
        left_over = [file.name for file in present if file not in files]
        if left_over:
            raise CheckpointError(
                f"{directory} has {listed(left_over)}, which {index.name} does not name.",
                "It may be left over from another export; loaders differ in which of the two they believe.",
                "Remove what does not belong to the model.",
            )
        entries: dict[str, TensorEntry] = {}
        for file in files:
            for name, entry in read_header(file).items():
                if weight_map.get(name) != file.name:
                    place = f"places in {weight_map[name]}" if name in weight_map else "does not name"
                    raise CheckpointError(f"{file} has {name}, which {index.name} {place}.")
                entries[name] = entry
        for name, file_name in weight_map.items():
            if name not in entries:
                raise CheckpointError(f"{directory / file_name} lacks {name}, which {index.name} places there.")
        return cls(directory, base, files, entries)

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.size for entry in self.entries.values())


def _weight_files(directory: Path, base: Base) -> list[Path]:
    pattern = re.compile(rf"{base}(-\d+-of-\d+)?\.safetensors")
    return sorted(file for file in directory.iterdir() if pattern.fullmatch(file.name))
