"""Tensors of which a rank holds boxes that follow no grid: how they are written and read by torch's checkpoints.

The distributed optimizer cuts its state without regard to shapes: a rank holds numbers ``start`` to ``stop`` of a
parameter's flattened shard. Row by row that is at most the end of one row, a block of whole rows, and the beginning of
another row: boxes, each with a place in the whole parameter. So every rank writes and reads exactly its own part, with
no communication and no buffer of the size of anything else, and any cut can be read into any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from megatron_apriel.checkpoint.parameter_shards import Place
from megatron_apriel.checkpoint.piece_reader import PieceReader
from megatron_apriel.formats.megatron_parameters import Parameter, Split

MOST_NUMBERS = 16 << 20
"""Of a box: as much is in memory at a time, where the optimizer keeps its numbers in another form."""


class Numbers(Protocol):
    """Flat numbers that may lie anywhere and in any form.

    Attributes:
        dtype: in which they are read, float32 or bfloat16, and lie in a checkpoint.
    """

    dtype: torch.dtype

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Tensor:
        """Numbers ``start`` to ``stop``, on any device."""

    def write(self, start: int, numbers: Tensor) -> None:
        """Put ``numbers`` in the place of those from ``start`` on."""


@dataclass(frozen=True)
class Box:
    """A rectangle of a tensor: where it begins, its sizes, and the first of its numbers."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    start: int
    numbers: Numbers

    def read(self) -> Tensor:
        """Its numbers, in their shape."""
        return self.numbers.read(self.start, self.start + prod(self.sizes)).view(self.sizes)

    def write(self, numbers: Tensor) -> None:
        """Replace its numbers."""
        self.numbers.write(self.start, numbers.reshape(-1))

    def chunk(self) -> ChunkStorageMetadata:
        """As torch's checkpoints describe it."""
        return ChunkStorageMetadata(torch.Size(self.offsets), torch.Size(self.sizes))


@dataclass(frozen=True)
class Boxes:
    """What this rank holds of one tensor; read and written by torch's planners through its three dunder methods.

    Attributes:
        shape: of the whole tensor.
        boxes: this rank's.
        written: whether this rank writes them; False where another writes the same.
    """

    shape: tuple[int, ...]
    boxes: tuple[Box, ...]
    written: bool = True

    def size(self) -> torch.Size:
        """As of a tensor."""
        return torch.Size(self.shape)

    def __create_write_items__(self, key: str, _: Any) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(key, torch.Size(box.offsets)),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=box.chunk(),
                    properties=TensorProperties(dtype=box.numbers.dtype),
                    size=self.size(),
                ),
            )
            for box in self.boxes
            if self.written
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [box.chunk() for box in self.boxes]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        return next(box for box in self.boxes if torch.Size(box.offsets) == index.offset).read()


def boxes_of_slice(parameter: Parameter, place: Place, start: int, numbers: Numbers) -> Boxes:
    """Where a run of a parameter's flattened shard lies in the whole parameter.

    Args:
        parameter: its entry in the table of names.
        place: whose shard of it.
        start: number of the shard's elements before the run.
        numbers: the run, flat.
    """
    shard = parameter.shard_shape(place.tensor_size)
    ranges = parameter.row_ranges(place.tensor, place.tensor_size)
    columns = parameter.column_range(place.tensor, place.tensor_size)
    boxes = tuple(
        Box(
            _placed(offsets, ranges, columns[0] if columns else 0),
            sizes,
            begin - start,
            numbers,
        )
        for offsets, sizes, begin in _cut(shard, start, start + len(numbers), ranges[0][1] - ranges[0][0])
    )
    return Boxes(parameter.shape, boxes, parameter.split is not Split.REPLICATED or place.tensor == 0)


def _cut(
    shape: tuple[int, ...], start: int, stop: int, seam: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], int]]:
    """Boxes of elements ``start`` to ``stop`` in row order: offsets, sizes, and the number of the first element.

    No box reaches over row ``seam``: the rows above and below are no neighbours in the whole.
    """
    if len(shape) == 1:
        yield (start,), (stop - start,), start
        return
    _, width = shape
    while start < stop:
        row, column = divmod(start, width)
        rows = min((stop - start) // width, max(MOST_NUMBERS // width, 1)) if column == 0 else 0
        if row < seam:
            rows = min(rows, seam - row)
        # Whole rows as long as there are any; else what is left of this row.
        end = start + rows * width if rows else min(stop, (row + 1) * width)
        yield (row, column), (rows or 1, width if rows else end - start), start
        start = end


def _placed(offsets: tuple[int, ...], ranges: Sequence[tuple[int, int]], first_column: int) -> tuple[int, ...]:
    """Offsets in the whole parameter of a box in a shard that holds these ranges of its rows."""
    row, *column = offsets
    for begin, stop in ranges:
        if row < stop - begin:
            return (begin + row, *(first_column + number for number in column))
        row -= stop - begin
    raise AssertionError(f"row {offsets[0]} is past the shard's end")


def read_boxes(reader: PieceReader, wanted: Mapping[str, Boxes]) -> None:
    """Fill the boxes of every key from a checkpoint, however it was cut when it was written.

    Raises:
        CheckpointError: what lies in the files is not what the directory says.
    """
    for key, boxes in wanted.items():
        for box in boxes.boxes:
            numbers = torch.empty(box.sizes)
            read_whole(reader, numbers, key, box.offsets)
            box.write(numbers)


def read_whole(reader: PieceReader, target: Tensor, key: str, offsets: tuple[int, ...]) -> None:
    """Fill ``target`` with the rectangle of tensor ``key`` that begins at ``offsets``; every number of it is there."""
    filled = reader.fill(target, key, offsets)
    assert filled == target.numel(), f"{key}: {target.numel() - filled} numbers are in no piece"
