"""Rows of the files that benchmarks are published as: JSONL, Parquet, CSV, in the folder that a person gives."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from megatron_apriel.data.raw.files.compressed import READ_ERRORS, decompressed
from megatron_apriel.data.raw.files.table_values import json_columns, row_as_json
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS, LimitExceeded
from megatron_apriel.errors import DataError, brief
from megatron_apriel.inputs import TooLargeError, read_input

MOST_BYTES = 4 * 2**30
"""Of one file; AI2D with its pictures has half a gigabyte."""
_ENDINGS = (".jsonl", ".jsonl.gz", ".parquet", ".csv")


class Kind(StrEnum):
    """What a field of a row must hold."""

    ANY = "a value"
    TEXT = "a text"
    NAME = "a text or number"
    LIST = "a list with something in it"

    def fits(self, value: Any) -> bool:
        """Whether a value is of this kind."""
        match self:
            case Kind.ANY:
                return value is not None
            case Kind.TEXT:
                return isinstance(value, str) and bool(value.strip())
            case Kind.NAME:
                return Kind.TEXT.fits(value) or (isinstance(value, int | float) and not isinstance(value, bool))
            case Kind.LIST:
                return isinstance(value, list) and bool(value)


def data_files(folder: Path, name: str, wanted: str, *elsewhere: Path) -> list[Path]:
    """The files of a benchmark: in the folder of its name, or the first that is there of other places.

    Args:
        folder: that a person gave for all data.
        name: of the benchmark.
        wanted: what they are, for the message.
        elsewhere: files that a package brings.

    Raises:
        DataError: there are none.
    """
    own = folder / name
    found = [path for path in sorted(own.rglob("*")) if path.name.endswith(_ENDINGS)] if own.is_dir() else []
    found = found or [path for path in elsewhere if path.is_file()][:1]
    if not found:
        raise DataError(
            f"there are no data of {name} in {own}.", f"They are {wanted}.", "docs/evaluation.md says how to get them."
        )
    return found


def rows_of(files: Sequence[Path], fields: Mapping[str, Kind]) -> list[dict[str, Any]]:
    """All rows of files. Raises DataError if one cannot be read, or lacks a field or what it must hold."""
    rows: list[dict[str, Any]] = []
    for path in files:
        try:
            found = _rows(path)
        except (*READ_ERRORS, ValueError, csv.Error, BadRecord, LimitExceeded) as error:
            raise DataError(f"{path} cannot be read: {brief(error, 200)}.") from None
        for number, row in enumerate(found, 1):
            for field, kind in fields.items():
                if field not in row:
                    raise DataError(f"row {number} of {path} has no {field!r}; it has {', '.join(map(str, row))}.")
                if not kind.fits(row[field]):
                    raise DataError(f"row {number} of {path}: {field!r} is {brief(row[field])}, and not {kind.value}.")
        rows += found
    return rows


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.name.endswith(".parquet"):
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(path)
        texts = json_columns(table.schema)
        return [row_as_json(row, table.schema, DEFAULT_LIMITS, texts) for row in table.to_pylist()]
    text = (_unpacked(path) if path.suffix == ".gz" else read_input(path, MOST_BYTES)).decode("utf-8")
    if path.name.endswith(".csv"):
        csv.field_size_limit(2**31 - 1)
        return list(csv.DictReader(io.StringIO(text, newline="")))
    rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    if not all(isinstance(row, Mapping) for row in rows):
        raise ValueError("a line is no object")
    return rows


def _unpacked(path: Path) -> bytes:
    with decompressed(path, DEFAULT_LIMITS) as file:
        data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise TooLargeError(path, len(data), MOST_BYTES)
    return data
