"""The directory of a distributed checkpoint (``.metadata``), read without trusting it.

torch keeps in ``.metadata`` which tensors there are, in which pieces, and where in which file each piece lies. The file
is a Python pickle, and a pickle may call any function when it is read. Checkpoints are passed from hand to hand, so
none of torch's classes is made here: every object of the pickle becomes a :class:`_Record`, which does nothing, and the
records are then read into three plain types and compared with each other and with the files. Everything that reads a
checkpoint (resuming, conversion, averaging, a stage's start) works from these types, and the pickle is read only here.
"""

from __future__ import annotations

import io
import pickle
import stat
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import torch

from megatron_apriel.errors import CheckpointError
from megatron_apriel.formats.run_directory import METADATA_FILE
from megatron_apriel.formats.run_record import SHARD_SUFFIX
from megatron_apriel.inputs import read_input
from megatron_apriel.quantities import counted

_MOST_BYTES = 256 * 2**20
"""Of the file. 48 layers on 640 GPUs take some 10 MiB."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes ``offset`` to ``offset + length`` of a file of the checkpoint."""

    file: str
    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class Piece:
    """A rectangle of a tensor and where it lies.

    Attributes:
        offsets, sizes: of the rectangle, an entry per dimension.
        extent: of its archive.
    """

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    extent: Extent


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a checkpoint: one or two dimensions, and pieces that cover it without overlapping."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class Contents:
    """What lies in a checkpoint.

    Attributes:
        tensors: by key.
        objects: places of entries that are bytes and no tensor, by key.
    """

    tensors: Mapping[str, StoredTensor]
    objects: Mapping[str, Extent]


def read_metadata(directory: Path) -> Contents:
    """Read and check ``.metadata`` of a distributed checkpoint.

    Raises:
        CheckpointError: absent, damaged, asking for more than plain data, contradicting itself, or pointing outside of
            the directory or past the end of a file.
    """
    file = directory / METADATA_FILE
    try:
        metadata = _Unpickler(io.BytesIO(read_input(file, _MOST_BYTES))).load()
    except FileNotFoundError:
        raise CheckpointError(
            f"{file} does not exist.", "Without it nothing says what is where in the files.", _ANOTHER
        ) from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.", fix=_ANOTHER) from None
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to ask for
        raise CheckpointError(
            f"{file} cannot be read: {error}.", "It must hold plain data, written by torch.distributed.checkpoint."
        ) from None
    try:
        contents = _contents(metadata)
        _check_places(directory, contents)
    except _Unsound as problem:
        raise CheckpointError(
            f"{file}: {problem}.", "It is no directory that this project writes, or it is damaged.", _ANOTHER
        ) from None
    return contents


_ANOTHER = "Take another checkpoint of the run."


class _Record:
    """Stands for an object of one of torch's classes: what it was made from, and its state."""

    def __new__(cls, *arguments: Any) -> _Record:
        record = super().__new__(cls)
        record.arguments = arguments
        return record

    arguments: tuple[Any, ...]
    state: Any = None

    def __setstate__(self, state: Any) -> None:
        # The one way in which a pickle changes an object; on the class itself it fails, as it lacks an argument.
        self.state = state


_RECORDS = {
    (module, name): type(name, (_Record,), {})
    for module, names in {
        "torch.distributed.checkpoint.metadata": (
            "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
            "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
        ),
        "torch.distributed.checkpoint.filesystem": ("_StorageInfo",),
        "torch.serialization": ("_get_layout",),
        "torch": ("Size",),
        "pathlib": ("PosixPath", "PurePosixPath"),
        "pathlib._local": ("PosixPath", "PurePosixPath"),
    }.items()
    for name in names
}  # fmt: skip


class _Unpickler(pickle.Unpickler):
    """Knows records and dtypes, and nothing that does anything."""

    def find_class(self, module: str, name: str) -> Any:
        if record := _RECORDS.get((module, name)):
            return record
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


class _Unsound(ValueError):
    """What is wrong with the contents of ``.metadata``, as the end of a sentence without its full stop."""


def _contents(metadata: Any) -> Contents:
    described, stored = _state(metadata, "Metadata", "state_dict_metadata", "storage_data")
    if not isinstance(described, dict) or not isinstance(stored, dict):
        raise _Unsound(f"tensors and places are {_shown(described)} and {_shown(stored)}")
    places: dict[str, dict[Any, Extent]] = {}
    for index, info in stored.items():
        (key,) = _state(index, "MetadataIndex", "fqn")
        offset = index.state.get("offset")  # absent where there is none
        of_key = places.setdefault(_text(key, "a key"), {})
        corner = None if offset is None else _numbers(offset, f"an offset of {key}")
        if corner in of_key:
            raise _Unsound(f"{key} at {corner} has two places")
        of_key[corner] = _place(info, key)
    tensors, objects = {}, {}
    for key, entry in described.items():
        of_key = places.pop(_text(key, "a key"), {})
        if _is(entry, "BytesStorageMetadata"):
            if of_key.keys() != {None}:
                raise _Unsound(f"{key} is no tensor and has {len(of_key)} places")
            objects[key] = of_key[None]
        else:
            tensors[key] = _tensor(key, entry, of_key)
    if places:
        raise _Unsound(f"{next(iter(places))} has a place and is not described")
    return Contents(tensors, objects)


def _tensor(key: str, entry: Any, places: dict[Any, Extent]) -> StoredTensor:
    properties, size, chunks = _state(entry, "TensorStorageMetadata", "properties", "size", "chunks")
    shape = _numbers(size, f"the shape of {key}")
    values = properties.state if _is(properties, "TensorProperties") else None
    dtype = values[0] if isinstance(values, tuple) and values else None
    if not isinstance(dtype, torch.dtype):
        raise _Unsound(f"{key} has no dtype")
    if len(shape) not in (1, 2) or not isinstance(chunks, list):
        raise _Unsound(f"{key} has {len(shape)} dimensions, and tensors of 1 or 2 in pieces are written")
    if len(chunks) != len(places):
        raise _Unsound(f"{key} has {counted(len(chunks), 'piece')} and {len(places)} places")
    pieces = []
    for chunk in chunks:
        corner, extent = _state(chunk, "ChunkStorageMetadata", "offsets", "sizes")
        offsets, sizes = (_numbers(value, f"a piece of {key}") for value in (corner, extent))
        place = places.get(offsets, places.get(None) if len(chunks) == 1 else None)
        if place is None or not len(offsets) == len(sizes) == len(shape):
            raise _Unsound(f"the piece of {key} at {list(offsets)} has no place")
        if any(begin + length > whole for begin, length, whole in zip(offsets, sizes, shape, strict=True)):
            raise _Unsound(f"the piece of {key} at {list(offsets)} reaches beyond its shape {list(shape)}")
        if prod(sizes) * dtype.itemsize > place.length:
            found = f"{prod(sizes)} numbers in {place.length} bytes of {place.file}"
            raise _Unsound(f"the piece of {key} at {list(offsets)} has {found}")
        pieces.append(Piece(offsets, sizes, place))
    _check_covered(key, shape, pieces)
    return StoredTensor(shape, dtype, tuple(pieces))


def _check_covered(key: str, shape: tuple[int, ...], pieces: list[Piece]) -> None:
    """All numbers of a tensor lie in exactly one of the pieces, which are inside of its shape."""
    if sum(prod(piece.sizes) for piece in pieces) != prod(shape):
        raise _Unsound(f"the pieces of {key} do not make up its shape {list(shape)}")
    # A line sweeps over the rows. Those of its columns that are taken are intervals in order, so that a new one has to
    # be compared with its neighbours only. Rectangles end before others begin in the same row.
    ends, begins = [], []
    for piece in pieces:
        (top, *left), (rows, *columns) = piece.offsets, piece.sizes
        if prod(piece.sizes):
            interval = (left[0], left[0] + columns[0]) if left else (0, 1)
            begins.append((top, 1, interval))
            ends.append((top + rows, 0, interval))
    taken: list[tuple[int, int]] = []
    for row, is_begin, interval in sorted([*ends, *begins]):
        at = bisect_left(taken, interval)
        if not is_begin:
            del taken[at]
            continue
        neighbours = [*taken[max(at - 1, 0) : at], interval, *taken[at : at + 1]]
        if any(one[1] > other[0] for one, other in pairwise(neighbours)):
            raise _Unsound(f"two pieces of {key} overlap in row {row}")
        insort(taken, interval)


def _place(info: Any, key: str) -> Extent:
    file, offset, length = _state(info, "_StorageInfo", "relative_path", "offset", "length")
    if info.state.get("transform_descriptors"):
        raise _Unsound(f"{key} is compressed, which is not supported")
    name = _text(file, f"the file of {key}")
    if Path(name).name != name or not name.endswith(SHARD_SUFFIX):
        raise _Unsound(f"it points to {name!r} for {key}, which is not a file in it (*{SHARD_SUFFIX})")
    return Extent(name, _number(offset, f"the offset of {key}"), _number(length, f"the length of {key}"))


def _check_places(directory: Path, contents: Contents) -> None:
    """Places lie inside of regular files, and no two share a byte, so that reading all of them is reading once."""
    by_file: dict[str, list[tuple[int, int, str]]] = {}
    for key, place in _all_places(contents):
        by_file.setdefault(place.file, []).append((place.offset, place.end, key))
    for name, places in by_file.items():
        path = directory / name
        try:
            found = path.stat()
        except OSError as error:
            raise CheckpointError(
                f"{path} is missing; {places[0][2]} lies in it.", f"The system says: {error.strerror}.", _ANOTHER
            ) from None
        if not stat.S_ISREG(found.st_mode):
            raise _Unsound(f"{name} is no regular file; {places[0][2]} should lie in it")
        ordered = sorted(places)
        for offset, end, key in ordered:
            if end > found.st_size:
                raise CheckpointError(
                    f"{path} has {found.st_size} bytes; {key} should lie at {offset} to {end}.",
                    "The file was cut off.",
                    _ANOTHER,
                )
        for (_, end, one), (offset, _, other) in pairwise(ordered):
            if end > offset:
                raise _Unsound(f"{one} and {other} share bytes of {name}")


def _all_places(contents: Contents) -> Iterable[tuple[str, Extent]]:
    yield from contents.objects.items()
    for key, tensor in contents.tensors.items():
        yield from ((key, piece.extent) for piece in tensor.pieces)


def _is(value: Any, name: str) -> bool:
    return isinstance(value, _Record) and type(value).__name__ == name


def _state(value: Any, name: str, *fields: str) -> tuple[Any, ...]:
    """Fields of a record of class ``name``."""
    if not _is(value, name) or not isinstance(value.state, dict):
        raise _Unsound(f"{_shown(value)} stands where a {name} belongs")
    if absent := [field for field in fields if field not in value.state]:
        raise _Unsound(f"a {name} has no {' and no '.join(absent)}")
    return tuple(value.state[field] for field in fields)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise _Unsound(f"{what} is {_shown(value)}, no text")
    return value


def _number(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise _Unsound(f"{what} is {_shown(value)}, no number from 0 on")
    return value


def _numbers(value: Any, what: str) -> tuple[int, ...]:
    if not _is(value, "Size") or len(value.arguments) != 1 or not isinstance(value.arguments[0], tuple):
        raise _Unsound(f"{what} is {_shown(value)}, no sizes")
    return tuple(_number(number, what) for number in value.arguments[0])


def _shown(value: Any) -> str:
    """A value for a message; a number of a million digits by its length."""
    if type(value) is int and abs(value) >= 2**64:
        return f"an integer of {value.bit_length()} bits"
    return repr(value)[:80] if isinstance(value, int | float | str | None) else f"a {type(value).__name__}"
