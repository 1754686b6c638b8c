"""Record batches of a directory that ``datasets.Dataset.save_to_disk`` wrote: Arrow streams, listed in a state.json.

``datasets`` itself believes what the streams say of lengths and offsets, which is right for files of one's own. Here a
batch is checked before any of its values is looked at, a packed one is refused (nobody writes them, and what it unpacks
to is not known before), and the files are those of the directory and nothing else. They are mapped into memory, not
read, so that a batch of any number of rows costs no more than the rows in use.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from megatron_apriel.data.raw.files.compressed import open_raw
from megatron_apriel.data.raw.read_limits import ReadLimits
from megatron_apriel.inputs import read_input

STATE_FILE, INFO_FILE, SPLITS_FILE = "state.json", "dataset_info.json", "dataset_dict.json"

_RECORD_BATCH_COMPRESSION = 3
_MESSAGE_HEADER = 2
"""Numbers of fields in Arrow's Message.fbs."""


class DamagedDataset(ValueError):
    """A directory that does not hold together; the message says why."""


def record_batches(directory: Path, limits: ReadLimits) -> Iterator[Any]:
    """The record batches of a saved data set, checked, in order.

    Raises:
        LimitExceeded: a file is little but holes.
        DamagedDataset: its list of files or a file is damaged.
        pyarrow.ArrowException, OSError: as Arrow finds it.
    """
    _json(directory / INFO_FILE)
    for name in _file_names(directory / STATE_FILE):
        with open_raw(directory / name, limits) as file:
            try:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError as error:  # an empty file
                raise DamagedDataset(f"{name}: {error}") from None
            yield from _stream_batches(mapped, name)


def split_names(directory: Path) -> list[str]:
    """Names of the splits of a saved ``DatasetDict``. Raises DamagedDataset or OSError."""
    return _names(_json(directory / SPLITS_FILE).get("splits"), SPLITS_FILE)


def _file_names(state: Path) -> list[str]:
    said = _json(state)
    if said.get("_indices_data_files") or said.get("_indices_files"):
        raise DamagedDataset(
            f"{STATE_FILE} names a file of indices, by which an early version of datasets chose and ordered rows: load "
            "and save it again"
        )
    files = said.get("_data_files")
    files = files if isinstance(files, list) else [None]
    return _names([file.get("filename") if isinstance(file, dict) else None for file in files], STATE_FILE)


def _json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_input(file))
    except (ValueError, RecursionError) as error:
        raise DamagedDataset(f"{file.name} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise DamagedDataset(f"{file.name} is no JSON object")
    return value


def _names(names: Any, file: str) -> list[str]:
    """The list, if it is one of names of files or directories beside ``file``."""
    plain = isinstance(names, list) and all(
        isinstance(name, str) and name not in ("", ".", "..") and PurePath(name).name == name for name in names
    )
    if not plain:
        raise DamagedDataset(f"{file} does not list names of files or directories beside it")
    return list(names)


def _stream_batches(mapped: mmap.mmap, name: str) -> Iterator[Any]:
    import pyarrow
    import pyarrow.ipc

    reader = pyarrow.ipc.MessageReader.open_stream(pyarrow.BufferReader(pyarrow.py_buffer(mapped)))
    schema = None
    for message in reader:
        if message.type == "schema" and schema is None:
            schema = pyarrow.ipc.read_schema(message)
        elif message.type == "record batch" and schema is not None:
            if _is_packed(message.metadata.to_pybytes()):
                raise DamagedDataset(f"{name} holds a packed record batch, which save_to_disk does not write")
            batch = pyarrow.ipc.read_record_batch(message, schema)
            _check(batch)
            yield batch
        else:
            raise DamagedDataset(f"{name} holds a message that save_to_disk does not write: {message.type}")


def _check(batch: Any) -> None:
    """Raise ArrowInvalid for lengths, offsets and indices that lead out of the batch.

    Texts are taken for bytes here: one that is not UTF-8 is its row's problem.
    """
    import pyarrow

    batch.validate()
    schema = pyarrow.schema([field.with_type(_as_bytes(field.type)) for field in batch.schema])
    batch.cast(schema).validate(full=True)


def _as_bytes(kind: Any) -> Any:
    import pyarrow

    types = pyarrow.types
    if types.is_string(kind):
        return pyarrow.binary()
    if types.is_large_string(kind):
        return pyarrow.large_binary()
    if types.is_struct(kind):
        return pyarrow.struct([field.with_type(_as_bytes(field.type)) for field in kind])
    if types.is_list(kind):
        return pyarrow.list_(kind.value_field.with_type(_as_bytes(kind.value_type)))
    if types.is_large_list(kind):
        return pyarrow.large_list(kind.value_field.with_type(_as_bytes(kind.value_type)))
    return kind


def _is_packed(message: bytes) -> bool:
    """Whether the body of a record batch's message is compressed; it is a flatbuffer that Arrow has checked."""
    try:
        header = _field(message, struct.unpack_from("<I", message)[0], _MESSAGE_HEADER)
        batch = header + struct.unpack_from("<I", message, header)[0]
        return bool(_field(message, batch, _RECORD_BATCH_COMPRESSION))
    except struct.error as error:
        raise DamagedDataset(f"a message cannot be read: {error}") from None


def _field(buffer: bytes, table: int, number: int) -> int:
    """Where a field of a flatbuffer's table stands; 0 if it is absent."""
    fields = table - struct.unpack_from("<i", buffer, table)[0]
    (size,) = struct.unpack_from("<H", buffer, fields)
    place = 4 + 2 * number
    (offset,) = struct.unpack_from("<H", buffer, fields + place) if place + 2 <= size else (0,)
    return table + offset if offset else 0
