"""A run's state, to and from a distributed checkpoint: weights, optimizer, random states.

Everything large is tensors, cut into shards that say where they lie in the whole, so that any layout can read what any
other wrote. The optimizer's state is kept per parameter and in the parameter's shape, although each rank holds it as
slices of flat buffers (:mod:`optimizer_shards`): nothing is gathered. Everything small (step counts, learning rates)
is plain JSON. Nothing is pickled.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import param_group_identifier_keys
from torch import Tensor, nn

from megatron_apriel.checkpoint.accepted_entries import (
    OPTIMIZER,
    OPTIMIZER_STATES,
    RANDOM,
    check_common_state,
    check_contents,
)
from megatron_apriel.checkpoint.background_save import ShardWriting
from megatron_apriel.checkpoint.metadata import Contents, read_metadata
from megatron_apriel.checkpoint.optimizer_shards import Boxes, boxes_of_slice, read_boxes
from megatron_apriel.checkpoint.parameter_shards import Place, Shard, owned_parameters, shard_of
from megatron_apriel.checkpoint.piece_reader import PieceReader
from megatron_apriel.checkpoint.random_state import random_states, restore_random_states
from megatron_apriel.checkpoint.shard_io import divide_writing, read_shards
from megatron_apriel.checkpoint.verify import verify_together
from megatron_apriel.errors import CheckpointError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.megatron_parameters import Parameter
from megatron_apriel.formats.run_record import RunRecord
from megatron_apriel.parallel.agreement import alike, of_all_ranks

Owned = list[tuple[Parameter, nn.Parameter]]


def unwrapped(chunks: Iterable[nn.Module]) -> list[nn.Module]:
    """The bare models inside data-parallel and precision wrappers."""
    bare = []
    for chunk in chunks:
        while isinstance(inner := getattr(chunk, "module", None), nn.Module):
            chunk = inner
        bare.append(chunk)
    return bare


def architecture_of_model(chunks: Sequence[nn.Module]) -> Architecture:
    """The architecture that the bare chunks were built from."""
    architecture: Any = chunks[0].architecture
    return architecture


def current_layout() -> dict[str, int]:
    """Sizes of the process groups, for the record and to know whether random states are of the same layout."""
    if not parallel_state.model_parallel_is_initialized():
        return {"world_size": 1, "tensor": 1, "pipeline": 1, "virtual": 1, "context": 1}
    return {
        "world_size": dist.get_world_size(),
        "tensor": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline": parallel_state.get_pipeline_model_parallel_world_size(),
        "virtual": parallel_state.get_virtual_pipeline_model_parallel_world_size() or 1,
        "context": parallel_state.get_context_parallel_world_size(),
    }


@torch.no_grad()
def divide_state(
    directory: Path, chunks: Sequence[nn.Module], optimizer: MegatronOptimizer | None
) -> tuple[ShardWriting, dict[str, Any]]:
    """Divide the writing of the state into ``directory`` over the ranks; collective.

    Args:
        directory: exists and is empty.
        chunks: bare models.
        optimizer: None to save weights only.

    Returns:
        This rank's part, of which nothing is copied yet; and what is not tensors, plain and the same on all ranks, for
        :func:`load_state`.
    """
    owned, shards = _sharded(chunks)
    state: dict[str, Any] = {"model": shards, "random": _sharded_random_states()}
    boxes: dict[str, Boxes] = {}
    groups: list[dict[str, Any]] | None = None
    if optimizer is not None:
        groups = []
        for part in distributed_parts(optimizer):
            boxes |= _optimizer_boxes(part, owned)
            groups += [_plain_group(group) for group in part.state_dict()["optimizer"]["param_groups"]]
        groups = _first_not_empty(groups)
    return divide_writing(state, boxes, directory), {"layout": current_layout(), "optimizer_groups": groups}


def bytes_of_copy(chunks: Sequence[nn.Module], optimizer: MegatronOptimizer) -> int:
    """Host memory that a save in the background takes on this rank; collective. Nothing is copied or written.

    Arguments as of :func:`divide_state`.
    """
    with tempfile.TemporaryDirectory() as nothing:
        writing, _ = divide_state(Path(nothing), chunks, optimizer)
    return writing.host_bytes(pinned=torch.cuda.is_available())


@torch.no_grad()
def load_state(
    directory: Path,
    chunks: Sequence[nn.Module],
    optimizer: MegatronOptimizer | None,
    record: RunRecord,
    peaks: Mapping[float, float] | None = None,
) -> bool:
    """Read this rank's part of the state from ``directory``, written by any layout; collective.

    Args:
        directory: of a complete checkpoint.
        chunks: bare models, filled in place.
        optimizer: None to read weights only, and then the random states stay as they are, too.
        record: its ``run.json``.
        peaks: highest learning rates of the optimizer's groups as saved, to those of now, where they were changed.

    Returns:
        Whether random states were restored: only onto the layout that they were saved from.

    Raises:
        CheckpointError: the checkpoint is of another model, or its optimizer trained other parameters.
    """
    owned, shards = _sharded(chunks)
    architecture = architecture_of_model(chunks)
    contents, reader = alike(lambda: _opened(directory, architecture))
    with contextlib.closing(reader):
        verify_together(directory, contents)
        state: dict[str, Any] = {"model": shards}
        parts: list[DistributedOptimizer] = []
        groups: list[dict[str, Any]] = []
        same_layout = False
        if optimizer is not None:
            groups = alike(lambda: _saved_groups(directory, contents, owned, record, peaks or {}))
            parts = distributed_parts(optimizer)
            random = _sharded_random_states()
            same_layout = record.layout is not None and record.layout.model_dump() == current_layout()
            same_layout = same_layout and all(shard.key in contents.tensors for shard in random.values())
            if same_layout:
                alike(lambda: _check_random(directory, contents, random))
                state["random"] = random
        loaded = read_shards(state, reader, directory)
        for parameter, tensor in owned:
            value = loaded["model"][parameter.key]
            if value.data_ptr() != tensor.data_ptr():
                tensor.copy_(value)
        alike(lambda: _give_groups(parts, groups))
        boxes: dict[str, Boxes] = {}
        for part in parts:
            boxes |= _optimizer_boxes(part, owned)
        alike(lambda: read_boxes(reader, boxes))
        for part in parts:
            _share_weights(part)
    if same_layout:
        states = {name: state[0] for name, state in loaded["random"].items()}
        alike(lambda: restore_random_states(states))
    return same_layout


def _opened(directory: Path, architecture: Architecture) -> tuple[Contents, PieceReader]:
    contents = read_metadata(directory)
    check_contents(directory, contents, architecture)
    reader = PieceReader(directory, contents)
    check_common_state(directory, reader)
    return contents, reader


def _sharded(chunks: Sequence[nn.Module]) -> tuple[Owned, dict[str, Shard]]:
    place = Place.current()
    owned = list(owned_parameters(chunks, architecture_of_model(chunks), place))
    return owned, {parameter.key: shard_of(parameter, tensor, place) for parameter, tensor in owned}


def _sharded_random_states() -> dict[str, ShardedTensor]:
    place = (0, dist.get_rank(), dist.get_world_size())
    return {
        name: ShardedTensor.from_rank_offsets(f"{RANDOM}{name}", state[None], place)
        for name, state in random_states().items()
    }


def distributed_parts(optimizer: MegatronOptimizer) -> list[DistributedOptimizer]:
    """The distributed optimizers with something to do on this rank: none where everything here is frozen."""
    parts = getattr(optimizer, "chained_optimizers", [optimizer])
    parts = [part for part in parts if not getattr(part, "is_stub_optimizer", False)]
    if others := {type(part).__name__ for part in parts if not isinstance(part, DistributedOptimizer)}:
        raise TypeError(f"states are of Megatron's DistributedOptimizer, not of {', '.join(others)}")
    return parts


def _share_weights(part: DistributedOptimizer) -> None:
    """Give every rank the weights that follow from the masters; collective over data-parallel ranks.

    A checkpoint may hold weights that were rounded from its masters in another way.
    """
    for chunk in part.model_chunks:
        chunk.start_param_sync(force_sync=True)


def _plain_group(group: dict[str, Any]) -> dict[str, Any]:
    plain = {key: value.item() if isinstance(value, Tensor) else value for key, value in group.items()}
    for key, value in plain.items():
        if not isinstance(value, bool | int | float | str | list | tuple | None):
            raise TypeError(f"the optimizer group's {key}={value!r} cannot be written as JSON")
    return plain


def _first_not_empty(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Megatron gives all ranks the same groups, but a rank on which everything is frozen has no optimizer at all."""
    return next((each for each in of_all_ranks(groups) if each), [])


def _optimizer_boxes(part: DistributedOptimizer, owned: Owned) -> dict[str, Boxes]:
    """What this rank's optimizer holds, by key: masters and moments; nothing is copied before it is asked for."""
    place, entries = Place.current(), {id(tensor): parameter for parameter, tensor in owned}
    boxes = {}
    buckets = (bucket for ranges in part.gbuf_ranges for of_dtype in ranges.values() for bucket in of_dtype)
    for model_parameter, ranges in (item for bucket in buckets for item in bucket["param_map"].items()):
        parameter, start = entries[id(model_parameter)], ranges["param"].start
        group, number = part.model_param_group_index_map[model_parameter]
        for name, numbers in part.optimizer.numbers(part.optimizer.param_groups[group]["params"][number]).items():
            boxes[f"{OPTIMIZER}{name}.{parameter.key}"] = boxes_of_slice(parameter, place, start, numbers)
    return boxes


def _give_groups(parts: Sequence[DistributedOptimizer], groups: list[dict[str, Any]]) -> None:
    """Set the saved step count and rates. Megatron's own way would make a second set of states."""
    groups = [{k: tuple(v) if isinstance(v, list) else v for k, v in group.items()} for group in groups]
    saved = {_identity(group): group for group in groups}
    for group in (group for part in parts for group in part.optimizer.param_groups):
        found = saved.get(_identity(group))
        if found is None:
            raise CheckpointError(
                f"the checkpoint's optimizer has no parameter group like {_identity(group)}.",
                "Groups are identified by peak learning rate and weight decay: the run's factors were changed.",
                "Resume with the settings that the run was begun with, or give the checkpoint as init_from of a new"
                " stage.",
            )
        group |= found


def _identity(group: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(group.get(key) for key in param_group_identifier_keys)


def _saved_groups(
    directory: Path, contents: Contents, owned: Owned, record: RunRecord, peaks: Mapping[float, float]
) -> list[dict[str, Any]]:
    """The optimizer's groups as saved, where it trained what is trained now and all of its state is there."""
    another_stage = "To begin another stage from its weights, give the checkpoint as init_from."
    if record.optimizer_groups is None:
        raise CheckpointError(f"{directory} holds weights and no optimizer state.", fix=another_stage)
    for parameter, tensor in owned:
        stored = [state for state in OPTIMIZER_STATES if state + parameter.key in contents.tensors]
        if bool(stored) != tensor.requires_grad:
            raise CheckpointError(
                f"{directory}: {parameter.key} was {'trained' if stored else 'frozen'} in it and is "
                f"{'trained' if tensor.requires_grad else 'frozen'} now.",
                "A run resumes with the parts that it was begun with (train: in its configuration).",
                another_stage,
            )
        if stored and len(stored) != len(OPTIMIZER_STATES):
            absent = next(state for state in OPTIMIZER_STATES if state not in stored)
            raise CheckpointError(f"{directory}: {absent}{parameter.key} is missing.", fix=another_stage)
    groups = [group.model_dump(exclude_unset=True) for group in record.optimizer_groups]
    for group in groups:
        # By which Megatron knows a group; its rate and everything else is of the step.
        if group.get("max_lr") is not None:
            group["max_lr"] = peaks.get(group["max_lr"], group["max_lr"])
    return groups


def _check_random(directory: Path, contents: Contents, random: dict[str, ShardedTensor]) -> None:
    for shard in random.values():
        stored = contents.tensors[shard.key]
        if stored.shape != tuple(shard.global_shape) or stored.dtype != shard.dtype:
            raise CheckpointError(
                f"{directory}: {shard.key} has shape {list(stored.shape)} in {stored.dtype}; this process has "
                f"{list(shard.global_shape)} in {shard.dtype}.",
                "It was saved by other versions of Python, NumPy or torch, or it is damaged.",
            )
