"""A model's parameters on this rank, compared with the table of names, and as shards of a distributed checkpoint.

Megatron's modules can describe their own shards, but then the keys and the layout of a checkpoint depend on how the
layers happen to be built (local or Transformer Engine, stacked or not, replicated or not). Here they follow from
:mod:`megatron_apriel.formats.megatron_parameters` alone, so that a checkpoint can be read by whoever knows
that table, without a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from torch import Tensor, nn

from megatron_apriel.errors import CheckpointError, listed
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.megatron_parameters import Parameter, Split, parameter_key, parameters
from megatron_apriel.parallel.agreement import of_all_ranks

type Shard = Any
"""``ShardedTensor``, or ``ShardedTensorFactory`` where one tensor is kept as several."""


@dataclass(frozen=True)
class Place:
    """Where this rank stands: what it holds of a divided parameter, and which copy of it.

    Attributes:
        tensor, tensor_size: tensor-parallel rank and ranks.
        copy: number of this rank among those that hold the same shard (data- and context-parallel).
    """

    tensor: int = 0
    tensor_size: int = 1
    copy: int = 0

    @classmethod
    def current(cls) -> Place:
        """From Megatron's process groups; a process without any stands alone."""
        if not parallel_state.model_parallel_is_initialized():
            return cls()
        return cls(
            tensor=parallel_state.get_tensor_model_parallel_rank(),
            tensor_size=parallel_state.get_tensor_model_parallel_world_size(),
            copy=parallel_state.get_data_parallel_rank(with_context_parallel=True),
        )


def owned_parameters(
    chunks: Sequence[nn.Module], architecture: Architecture, place: Place
) -> Iterator[tuple[Parameter, nn.Parameter]]:
    """Every parameter of this rank's model chunks with its entry in the table.

    Raises:
        CheckpointError: the model has a parameter that the table does not know, twice the same, or of another shape.
    """
    table, seen = parameters(architecture), set()
    for chunk in chunks:
        first_layer = first_layer_of(chunk)
        for name, tensor in chunk.named_parameters():
            key = parameter_key(name, first_layer)
            if key not in table or key in seen:
                raise CheckpointError(
                    f"the model's parameter {name} ({key}) is {'there twice' if key in seen else 'not in the table'}.",
                    "Model and architecture do not agree.",
                )
            seen.add(key)
            expected = table[key].shard_shape(place.tensor_size)
            if tuple(tensor.shape) != expected:
                raise CheckpointError(
                    f"the model's parameter {name} has shape {list(tensor.shape)}, not {list(expected)}.",
                    f"That is one of {place.tensor_size} tensor-parallel ranks' share of {list(table[key].shape)}.",
                )
            yield table[key], tensor


def check_all_owned(keys: set[str], architecture: Architecture) -> None:
    """Raise CheckpointError if some parameter of the architecture is on no rank; collective over all ranks."""
    everywhere = {key for of_rank in of_all_ranks(sorted(keys)) for key in of_rank}
    if absent := [key for key in parameters(architecture) if key not in everywhere]:
        raise CheckpointError(
            f"no rank's model has {listed(absent)} ({len(absent)} parameters in all).",
            "Model and architecture do not agree.",
        )


def first_layer_of(chunk: nn.Module) -> int:
    """Global number, from 0, of the first decoder layer in a model chunk."""
    layers: Any = chunk.decoder_layers
    return int(layers.start)


def shard_of(parameter: Parameter, tensor: Tensor, place: Place) -> Shard:
    """``tensor``, this rank's part of ``parameter``, with the place that it has in the whole.

    The part is the parameter itself, not a copy: the optimizer finds its state's shape and place by identity.
    """
    if parameter.split is Split.HALVES:
        return ShardedTensorFactory(
            parameter.key, tensor, _halves(place), merge_fn=_joined, replica_id=(0, 0, place.copy)
        )
    if parameter.split is Split.REPLICATED:
        return ShardedTensor.from_rank_offsets(parameter.key, tensor, replica_id=(0, place.tensor, place.copy))
    axis = 0 if parameter.split is Split.ROWS else 1
    offset = (axis, place.tensor, place.tensor_size)
    return ShardedTensor.from_rank_offsets(parameter.key, tensor, offset, replica_id=(0, 0, place.copy))


def _halves(place: Place) -> Any:
    """Splits [my rows of the upper half; my rows of the lower half] into two shards of one tensor."""

    def build(key: str, tensor: Tensor, replica_id: Any, flattened_range: slice | None) -> list[ShardedTensor]:
        upper, lower = torch.chunk(tensor, 2, dim=0)
        return [
            ShardedTensor.from_rank_offsets(
                key, half, (0, number * place.tensor_size + place.tensor, 2 * place.tensor_size), replica_id=replica_id
            )
            for number, half in enumerate((upper, lower))
        ]

    return build


def _joined(halves: list[Tensor]) -> Tensor:
    """The two halves as one tensor; without a copy where they still lie next to each other in memory."""
    upper, lower = halves
    adjacent = upper.data_ptr() + upper.numel() * upper.element_size() == lower.data_ptr()
    if adjacent and upper.is_contiguous() and lower.is_contiguous():
        return upper.as_strided((2 * upper.shape[0], *upper.shape[1:]), upper.stride(), upper.storage_offset())
    return torch.cat(halves)
