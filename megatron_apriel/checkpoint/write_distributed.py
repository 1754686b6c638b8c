"""Writes weights as a distributed checkpoint without a process group or a model, a piece at a time.

The writer asks for each tensor only when it is about to write it. So the whole plan can be made from shapes alone, and
a piece is put together from the given rows when its turn comes: memory is bounded by the size of a piece.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed import checkpoint
from torch.distributed.checkpoint import CheckpointException, DefaultSavePlanner, SavePlan
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from megatron_apriel.checkpoint.accepted_entries import COMMON_STATE, empty_common_state
from megatron_apriel.checkpoint.background_save import FileWriter, first_failure
from megatron_apriel.checkpoint.tensor_bytes import cast
from megatron_apriel.checkpoint.weights import Weights
from megatron_apriel.errors import CheckpointError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.megatron_parameters import Parameter, parameters
from megatron_apriel.progress import Step

PIECE_BYTES = 64 << 20
"""Largest piece of a parameter that is kept by itself; a few times as much is in memory at once."""


def write_distributed(
    directory: Path, weights: Weights, architecture: Architecture, dtype: torch.dtype | None, step: Step
) -> None:
    """Write the weights into ``directory`` in Megatron's ``torch_dist`` format.

    Args:
        directory: exists.
        weights: all weights of the architecture.
        architecture: of the model.
        dtype: to cast to; None keeps the stored dtype.
        step: called with the number of bytes written.

    Raises:
        CheckpointError: weights that make up one parameter are stored in different dtypes and none is asked for.
    """
    planner = _FromWeights(weights, architecture, dtype, step)
    writer = FileWriter(directory, sync_files=False)
    try:
        checkpoint.save({}, storage_writer=writer, planner=planner, no_dist=True)
    except CheckpointException as error:
        raise first_failure(error) from None


class _FromWeights(DefaultSavePlanner):
    """A plan of pieces that are read when they are written."""

    def __init__(self, weights: Weights, architecture: Architecture, dtype: torch.dtype | None, step: Step) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._weights, self._step = weights, step
        self._parameters = parameters(architecture)
        self._dtypes = {key: dtype or _one_dtype(entry, weights) for key, entry in self._parameters.items()}

    def create_local_plan(self) -> SavePlan:
        pieces = [piece for parameter in self._parameters.values() for piece in self._pieces(parameter)]
        common = WriteItem(index=MetadataIndex(COMMON_STATE), type=WriteItemType.BYTE_IO)
        self.plan = SavePlan([*pieces, common])
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        if write_item.type == WriteItemType.BYTE_IO:
            return empty_common_state()
        data: Any = write_item.tensor_data
        start, rows = data.chunk.offsets[0], data.chunk.sizes[0]
        key = write_item.index.fqn
        tensor = cast(read_rows(self._weights, self._parameters[key], start, start + rows), self._dtypes[key], key)
        self._step(tensor.numel() * tensor.element_size())
        return tensor

    def _pieces(self, parameter: Parameter) -> Iterator[WriteItem]:
        dtype = self._dtypes[parameter.key]
        row_bytes = dtype.itemsize * (parameter.shape[1] if len(parameter.shape) > 1 else 1)
        rows, shape = max(1, PIECE_BYTES // row_bytes), parameter.shape
        for number, start in enumerate(range(0, shape[0], rows)):
            offsets = torch.Size((start, *(0 for _ in shape[1:])))
            sizes = torch.Size((min(rows, shape[0] - start), *shape[1:]))
            yield WriteItem(
                index=MetadataIndex(parameter.key, offsets, number),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=ChunkStorageMetadata(offsets=offsets, sizes=sizes),
                    properties=TensorProperties(dtype=dtype),
                    size=torch.Size(shape),
                ),
            )


def read_rows(weights: Weights, parameter: Parameter, start: int, stop: int) -> Tensor:
    """Rows ``start`` to ``stop`` of a whole Megatron parameter."""
    parts = [weights.read(piece.weight, piece.start, piece.stop) for piece, _ in parameter.pieces_between(start, stop)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _one_dtype(parameter: Parameter, weights: Weights) -> torch.dtype:
    dtypes = {weights.dtypes[piece.weight] for piece in parameter.pieces}
    if len(dtypes) > 1:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise CheckpointError(
            f"the weights that make up {parameter.key} are stored in different dtypes: {names}.",
            "Megatron keeps them as one tensor.",
            "Convert with --dtype.",
        )
    return dtypes.pop()
