"""Rows of .csv and .tsv files as records: a text for every column that has one; what is empty is absent.

A quoted value may go on over many lines, so a row is bounded as a record is, and a quotation mark that nothing closes
is an error of the file, not its last row.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator

from megatron_apriel.data.raw.read_limits import LimitExceeded, ReadLimits
from megatron_apriel.quantities import counted

_BYTE_ORDER_MARK = "\ufeff"


class BrokenTable(ValueError):
    """The text is no table; the message says what is wrong."""


def table_rows(
    stream: io.BufferedReader, separator: str, limits: ReadLimits
) -> Iterator[tuple[int, bytes | None, str]]:
    """Number from 1, record as JSON and problem of each row.

    Raises:
        BrokenTable: no line of names, or a row whose end cannot be found.
        LimitExceeded: a row of more bytes than a record may have.
    """
    csv.field_size_limit(min(limits.record_bytes, 2**31 - 1))
    bounded = _Lines(stream, limits.record_bytes)
    reader = csv.reader(bounded, delimiter=separator, strict=True)
    try:
        names = next(reader, [])
        if any(names):
            names = [name or f"Unnamed: {number}" for number, name in enumerate(names)]  # as pandas and datasets do
        if not names or len(set(names)) != len(names) or not all(names):
            raise BrokenTable(f"its first line does not name the columns, each once: {names[:20]}")
        for number, values in enumerate(_rows(reader, bounded), 1):
            if len(values) != len(names):
                have = f"{counted(len(values), 'value')}, and the table {counted(len(names), 'column')}"
                yield number, None, f"the row has {have}"
                continue
            record = {name: value for name, value in zip(names, values, strict=True) if value}
            yield number, json.dumps(record).encode(), ""
    except csv.Error as error:
        if "field larger" in str(error):
            raise LimitExceeded(f"a value has more than {limits.record_bytes:,} characters", "--max-record") from None
        raise BrokenTable(str(error)) from None


def _rows(reader: Iterator[list[str]], lines: _Lines) -> Iterator[list[str]]:
    for values in reader:
        lines.row = 0
        if values:  # not a blank line
            yield values


class _Lines:
    """Lines of a stream as text, those of one row held to the limit together."""

    def __init__(self, stream: io.BufferedReader, most: int) -> None:
        self._stream, self._most = stream, most
        self._first = True
        self.row = 0

    def __iter__(self) -> Iterator[str]:
        while line := self._stream.readline(self._most + 1):
            self.row += len(line)
            if self.row > self._most:
                raise LimitExceeded(f"a row has more than {self._most:,} bytes", "--max-record")
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise BrokenTable(f"it is not valid UTF-8: {error}") from None
            yield text.removeprefix(_BYTE_ORDER_MARK) if self._first else text
            self._first = False
