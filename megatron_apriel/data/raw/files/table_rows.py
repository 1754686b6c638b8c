"""Rows of Arrow tables as blocks: each row measured before anything of it is copied.

A table can be small where its rows are not: a thousand rows may refer to one text of ten megabytes, and a row to it a
thousand times. What a row takes once it stands alone is therefore counted from lengths and offsets; rows that take too
much are refused one by one, and the others travel to the workers in pieces of a few megabytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_apriel.data.raw.files.blocks import Block, RefusedBlock, TableBlock
from megatron_apriel.data.raw.read_limits import ReadLimits

type Counts = NDArray[np.int64]


class UnreadableColumn(ValueError):
    """A column of a kind that is not read."""


def row_costs(batch: Any) -> tuple[Counts, Counts]:
    """Bytes and values that each row of a record batch takes when it is alone, int64 [rows] each.

    Raises:
        UnreadableColumn: a column of a kind that is not read.
    """
    costs = []
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            costs.append(_costs(column))
        except UnreadableColumn as error:
            raise UnreadableColumn(f"column {name}: {error}; --ignore {name} leaves it out") from None
    sizes, values = zip(*costs, strict=True)
    return sum(sizes), sum(values)  # type: ignore[return-value]


def row_blocks(
    file: str, first: int, batch: Any, costs: tuple[Counts, Counts], limits: ReadLimits, piece_bytes: int
) -> Iterator[Block]:
    """The rows of a record batch in blocks of about ``piece_bytes``.

    A block's table is a copy of its rows with plain types; a slice would take all of its parent's memory along on the
    way to a worker.

    Args:
        file: names the rows' place.
        first: number of the first row in the file.
        batch: record batch of a few dozen rows.
        costs: of its rows, by :func:`row_costs`.
        limits: on a row.
        piece_bytes: of a block, where a single row does not take more.
    """
    import pyarrow

    sizes, values = costs
    table = pyarrow.Table.from_batches([batch])
    start = 0
    while start < batch.num_rows:
        if sizes[start] > limits.record_bytes or values[start] > limits.record_values:
            problem = (
                f"the row has {sizes[start]:,} bytes and {values[start]:,} values; {limits.record_bytes:,} and "
                f"{limits.record_values:,} are allowed, and more with --max-record"
            )
            yield RefusedBlock(f"{file}: row {first + start}", problem)
            start += 1
            continue
        fitting = np.cumsum(sizes[start:]) <= piece_bytes
        fitting &= (sizes[start:] <= limits.record_bytes) & (values[start:] <= limits.record_values)
        stop = start + max(1, len(fitting) if fitting.all() else int(np.argmin(fitting)))
        piece = _with_plain_types(table.slice(start, stop - start)).take(pyarrow.array(range(stop - start)))
        yield TableBlock(file, first + start, piece)
        start = stop


def _costs(array: Any) -> tuple[Counts, Counts]:
    """Bytes and values that each entry of an array takes when it is alone, int64 [entries] each."""
    import pyarrow

    kind, types, ones = array.type, pyarrow.types, np.ones(len(array), dtype=np.int64)
    if isinstance(kind, pyarrow.BaseExtensionType):
        return _costs(array.storage)
    if types.is_dictionary(kind):
        sizes, values = _costs(array.dictionary)
        indices = array.indices.fill_null(len(sizes)).to_numpy(zero_copy_only=False)
        return np.append(sizes, 0)[indices], np.append(values, 1)[indices]
    if types.is_struct(kind):
        fields = [_costs(array.field(number)) for number in range(kind.num_fields)]
        return sum((one for one, _ in fields), 0 * ones), sum((one for _, one in fields), ones)
    if types.is_list(kind) or types.is_large_list(kind):
        return _summed([array.values], array.offsets.to_numpy())
    if types.is_map(kind):
        return _summed([array.keys, array.items], array.offsets.to_numpy())
    if types.is_fixed_size_list(kind):
        offsets = (array.offset + np.arange(len(array) + 1)) * kind.list_size
        return _summed([array.values], offsets)
    return _lengths(array), ones


def _summed(children: list[Any], offsets: Counts) -> tuple[Counts, Counts]:
    """What the children from each offset to the next take together, and the list itself."""
    begin, end = int(offsets[0]), int(offsets[-1])
    sums = [np.zeros(len(offsets) - 1, dtype=np.int64), np.ones(len(offsets) - 1, dtype=np.int64)]
    for child in children:
        for number, counts in enumerate(_costs(child[begin:end])):
            running = np.concatenate([[0], np.cumsum(counts)])
            sums[number] += np.diff(running[offsets - begin])
    return sums[0], sums[1]


def _lengths(array: Any) -> Counts:
    import pyarrow
    import pyarrow.compute

    kind, types = array.type, pyarrow.types
    if types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind):
        lengths = pyarrow.compute.binary_length(array).fill_null(0)
        return lengths.to_numpy(zero_copy_only=False).astype(np.int64)
    if types.is_string_view(kind) or types.is_binary_view(kind):
        views = np.frombuffer(array.buffers()[1], dtype=np.int32).reshape(-1, 4)
        return views[array.offset : array.offset + len(array), 0].astype(np.int64)
    if types.is_null(kind):
        return np.zeros(len(array), dtype=np.int64)
    try:
        return np.full(len(array), -(-kind.bit_width // 8), dtype=np.int64)
    except ValueError:
        raise UnreadableColumn(f"it has the type {kind}, which is not read") from None


def _with_plain_types(table: Any) -> Any:
    import pyarrow

    fields = [field.with_type(_plain(field.type)) for field in table.schema]
    schema = pyarrow.schema(fields, metadata=table.schema.metadata)
    return table if schema.equals(table.schema) else table.cast(schema)


def _plain(kind: Any) -> Any:
    """The Arrow type without dictionaries and views.

    Rows with a dictionary take all of it along, and rows of the newer views of strings cannot be picked out (Arrow 26).
    """
    import pyarrow

    types = pyarrow.types
    if types.is_dictionary(kind):
        return _plain(kind.value_type)
    if types.is_string_view(kind):
        return pyarrow.large_string()
    if types.is_binary_view(kind):
        return pyarrow.large_binary()
    if types.is_struct(kind):
        return pyarrow.struct([field.with_type(_plain(field.type)) for field in kind])
    if types.is_list(kind) or types.is_large_list(kind):
        value = kind.value_field.with_type(_plain(kind.value_type))
        return kind if value == kind.value_field else pyarrow.large_list(value)
    return kind
