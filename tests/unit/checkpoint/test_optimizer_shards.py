"""Slices of flattened shards as boxes of whole parameters, against the shards cut by torch."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from megatron_apriel.checkpoint import optimizer_shards
from megatron_apriel.checkpoint.optimizer_shards import Boxes, boxes_of_slice
from megatron_apriel.checkpoint.parameter_shards import Place
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.megatron_parameters import Parameter, Split, parameters

TABLE = parameters(Architecture.from_preset("tiny"))
OF_EACH_KIND = {
    (parameter.split, len(parameter.shape)): parameter for parameter in TABLE.values()
}  # fmt: skip


def shard_by_torch(whole: Tensor, split: Split, rank: int, size: int) -> Tensor:
    if split is Split.REPLICATED:
        return whole
    if split is Split.HALVES:
        return torch.cat([half.chunk(size)[rank] for half in whole.chunk(2)])
    return whole.chunk(size, 0 if split is Split.ROWS else 1)[rank]


class Flat:
    """Numbers of a plain tensor."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def read(self, start: int, stop: int) -> Tensor:
        return self.numbers[start:stop]

    def write(self, start: int, numbers: Tensor) -> None:
        self.numbers[start : start + len(numbers)] = numbers


def filled(boxes: Boxes) -> Tensor:
    """The whole with this rank's numbers at their places, and -1 elsewhere."""
    whole = torch.full(boxes.shape, -1)
    for box in boxes.boxes:
        place = tuple(slice(begin, begin + length) for begin, length in zip(box.offsets, box.sizes, strict=True))
        assert (whole[place] == -1).all(), "boxes overlap"
        whole[place] = box.read()
    return whole


def test_there_is_one_of_each_kind() -> None:
    assert {split for split, _ in OF_EACH_KIND} == set(Split)
    assert {dimensions for _, dimensions in OF_EACH_KIND} == {1, 2}


@pytest.mark.parametrize("kind", OF_EACH_KIND, ids=str)
@pytest.mark.parametrize("size", [1, 2])
def test_every_number_is_where_it_belongs(kind: tuple[Split, int], size: int) -> None:
    parameter, draw = OF_EACH_KIND[kind], random.Random(1)
    whole = torch.arange(torch.Size(parameter.shape).numel()).view(parameter.shape)
    for rank in range(size):
        place = Place(tensor=rank, tensor_size=size)
        flat = shard_by_torch(whole, parameter.split, rank, size).flatten()
        ends = [(0, len(flat)), (0, 1), (len(flat) - 1, len(flat))]
        ends += [tuple(sorted(draw.sample(range(len(flat) + 1), 2))) for _ in range(200)]  # type: ignore[misc]
        for start, stop in ends:
            boxes = boxes_of_slice(parameter, place, start, Flat(flat[start:stop]))
            # All numbers of the slice, each at its own place; a row's end, rows on both sides of the seam, a beginning.
            found = filled(boxes)
            assert torch.equal(found[found >= 0].sort().values, flat[start:stop].sort().values)
            assert torch.equal(found[found >= 0], whole[found >= 0])
            assert len(boxes.boxes) <= 4
            assert boxes.size() == torch.Size(parameter.shape)


@pytest.mark.parametrize("cuts", [[], [1], [7, 8, 300], [64, 128]])
def test_neighbouring_slices_fill_the_whole(cuts: list[int]) -> None:
    parameter = OF_EACH_KIND[Split.HALVES, 2]
    whole = torch.arange(torch.Size(parameter.shape).numel()).view(parameter.shape)
    found = torch.zeros(parameter.shape, dtype=torch.int64)
    for rank in range(2):
        flat = shard_by_torch(whole, parameter.split, rank, 2).flatten()
        for start, stop in zip([0, *cuts], [*cuts, len(flat)], strict=True):
            part = filled(boxes_of_slice(parameter, Place(rank, 2), start, Flat(flat[start:stop])))
            found += part + 1
    assert torch.equal(found, whole + 1)


def test_boxes_write_where_they_read() -> None:
    parameter = OF_EACH_KIND[Split.ROWS, 2]
    flat = torch.arange(torch.Size(parameter.shape).numel(), dtype=torch.float32)
    expected = flat[5:] + 0.5
    for box in boxes_of_slice(parameter, Place(), 5, Flat(flat[5:])).boxes:
        box.write(box.read() + 0.5)
    assert torch.equal(flat[5:], expected) and torch.equal(flat[:5], torch.arange(5.0))


@pytest.mark.parametrize("most", [1, 100, 1000])
def test_no_box_is_larger_than_what_may_be_in_memory(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer_shards, "MOST_NUMBERS", most)
    parameter = OF_EACH_KIND[Split.HALVES, 2]
    whole = torch.arange(torch.Size(parameter.shape).numel()).view(parameter.shape)
    boxes = boxes_of_slice(parameter, Place(), 0, Flat(whole.flatten()))
    assert torch.equal(filled(boxes), whole)
    assert max(box.read().numel() for box in boxes.boxes) <= max(most, parameter.shape[1])


def test_who_writes_what_all_have() -> None:
    replicated: Parameter = OF_EACH_KIND[Split.REPLICATED, 1]
    numbers = torch.zeros(replicated.shape)
    writers = [bool(boxes_of_slice(replicated, Place(rank, 2), 0, Flat(numbers)).written) for rank in range(2)]
    assert writers == [True, False]
    silent = boxes_of_slice(replicated, Place(1, 2), 0, Flat(numbers))
    assert silent.__create_write_items__("key", silent) == []
    assert len(silent.__create_chunk_list__()) == 1
