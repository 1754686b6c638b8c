"""Sums of gradients in 24 bits: matrices of decoder layers take three bytes a number where float32 takes four.

A sum of hundreds of micro-batches in bf16 loses what is added last. Eight more bits do for it: a sum is kept as a bf16
number and the bits that it lacks (``split_master.py``), so that nothing less than 2^-17 of it is lost in an addition.

Products for weights' gradients write float32, and so they do here: each matrix of a layer has room in float32, which
all layers share, since a layer's gradients are added to their sums before the next layer's come. Megatron's buffers,
which hold gradients by their type, keep the bf16 numbers; the bits beside them lie here. Ranks add up in float32, a few
numbers at a time, so that what they send is not narrower than what they have.

The vocabulary's matrices keep float32: what is added to them are a few rows, or parts of the logits, many times in a
micro-batch. So do tower and projector, whose gradients Megatron adds up over tensor-parallel ranks as well.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel, param_and_grad_buffer
from megatron.core.optimizer import MegatronOptimizer
from torch import Tensor, nn

from megatron_apriel.checkpoint.training_state import distributed_parts
from megatron_apriel.model.apriel import AprielModel
from megatron_apriel.train.numbers_in_24_bits import PIECE, Sums, add

_LAYER = re.compile(r"(?:module\.)*decoder\.layers\.\d+\.")


def mark(chunks: list[AprielModel]) -> None:
    """Choose what has its sums in 24 bits; before the chunks are wrapped for data parallelism."""
    _have_two_buffers()
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            if parameter.requires_grad and parameter.dim() > 1 and _LAYER.match(name):
                parameter.sums_in_24_bits = True  # type: ignore[attr-defined]


def keep_sums(chunks: list[DistributedDataParallel]) -> None:
    """Give what was chosen its sums, and room for one layer's gradients; once the chunks are wrapped."""
    rooms: dict[tuple[str, torch.Size], Tensor] = {}
    for chunk in chunks:
        names = {parameter: name for name, parameter in chunk.named_parameters()}
        for buffer in chunk.buffers:
            if any(hasattr(parameter, "sums_in_24_bits") for parameter in buffer.params):
                _extend(buffer)
        trained = [parameter for parameter in chunk.module.parameters() if parameter.requires_grad]
        for parameter, accumulated in zip(trained, chunk.grad_accs, strict=True):
            if not hasattr(parameter, "sums_in_24_bits"):
                continue
            key = _LAYER.sub("", names[parameter]), parameter.shape
            if key not in rooms:
                rooms[key] = torch.zeros(parameter.shape, device=parameter.device)
            parameter.main_grad = rooms[key]
            if not chunk.ddp_config.overlap_grad_reduce:
                # Behind Megatron's own, which adds to the room what a product has not added there.
                accumulated.register_hook(partial(_added, parameter))
        for group in chunk.bucket_groups:
            _extend_group(group)


def give_sums(optimizer: MegatronOptimizer) -> None:
    """Give this rank's optimizers their runs of the sums, once these are reduced.

    Megatron computes the norm of all gradients from ``decoupled_grad``: of these it finds the norm there.
    """
    for part in distributed_parts(optimizer):
        for of_model, (group, number) in part.model_param_group_index_map.items():
            if hasattr(of_model, "gradient_sums"):
                inside = part._get_model_param_range_map(of_model)["param"]
                own = part.optimizer.param_groups[group]["params"][number]
                own.gradient_sums = of_model.gradient_sums.part(inside.start, inside.end)
                own.decoupled_grad = own.gradient_sums.norm()[None]


def _added(parameter: Any, *_: Any) -> None:
    add(parameter.gradient_sums, parameter.main_grad.view(-1))


def _have_two_buffers() -> None:
    """Have Megatron put what was chosen into a buffer of its own, in bf16; idempotent."""
    import megatron.core.distributed.distributed_data_parallel as data_parallel
    import megatron.core.optimizer.distrib_optimizer as distributed

    if data_parallel.group_params_for_buffers is not _grouped:
        data_parallel.group_params_for_buffers = distributed.group_params_for_buffers = _grouped


def _grouped(parameters: list[nn.Parameter], grad_reduce_in_fp32: bool) -> dict[Any, Any]:
    """Megatron's groups of parameters by the buffer that they are in."""
    of = param_and_grad_buffer.group_params_for_buffers
    chosen = [parameter for parameter in parameters if hasattr(parameter, "sums_in_24_bits")]
    others = [parameter for parameter in parameters if not hasattr(parameter, "sums_in_24_bits")]
    return {**(of(chosen, False) if chosen else {}), **(of(others, grad_reduce_in_fp32) if others else {})}


def _extend(buffer: Any) -> None:
    """A buffer of bf16 numbers, and the bits that they lack."""
    low = torch.zeros(buffer.numel, dtype=torch.int8, device=buffer.grad_data.device)
    buffer.sums = Sums(buffer.grad_data, low)
    reset = buffer.reset

    def reset_both() -> None:
        reset()
        low.zero_()

    buffer.reset = reset_both
    for bucket in buffer.buckets:
        bucket.sums = Sums(bucket.grad_data, low[bucket.offset : bucket.offset + bucket.grad_data.numel()])
    for parameter in buffer.params:
        start, stop, _ = buffer.param_index_map[parameter]
        parameter.gradient_sums = buffer.sums.part(start, stop)


class _Done:
    """Of a reduction that nobody has to wait for."""

    def wait(self) -> None:
        pass


def _extend_group(group: Any) -> None:
    """Reduce sums over the ranks here, and what else the group holds as Megatron does."""
    summed = [bucket for bucket in group.buckets if hasattr(bucket, "sums")]
    if not summed:
        return
    others = [bucket for bucket in group.buckets if bucket not in summed]
    start, ready = group.start_grad_sync, group.register_grad_ready

    def start_both(force_all_reduce: bool | None = False) -> None:
        for bucket in summed:
            _reduce(bucket.sums, group.intra_distributed_optimizer_instance_group)
        if others:
            with _only(group, others):
                start(force_all_reduce)
        elif group.ddp_config.overlap_grad_reduce:
            group.grad_reduce_handle = _Done()

    def ready_when_added(parameter: nn.Parameter, force_all_reduce: bool | None = False) -> None:
        if hasattr(parameter, "gradient_sums"):
            _added(parameter)
        ready(parameter, force_all_reduce)

    group.start_grad_sync, group.register_grad_ready = start_both, ready_when_added


@contextlib.contextmanager
def _only(group: Any, buckets: list[Any]) -> Iterator[None]:
    """Within it, the group has no others."""
    everything, group.buckets = group.buckets, buckets
    yield
    group.buckets = everything


def _reduce(sums: Sums, ranks: dist.ProcessGroup) -> None:
    """Leave this rank's share of the sums over all ranks in its place; collective."""
    size, rank = dist.get_world_size(ranks), dist.get_rank(ranks)
    if size == 1:
        return
    shared = Sums(*(numbers.view(size, -1) for numbers in sums))
    length = shared.high.shape[1]
    for start in range(0, length, max(PIECE // size, 1)):
        inside = slice(start, min(start + max(PIECE // size, 1), length))
        of_all = Sums(*(numbers[:, inside].contiguous() for numbers in shared)).read()
        mine = torch.empty_like(of_all[0])
        param_and_grad_buffer.dist_reduce_scatter_func(mine, of_all.view(-1), group=ranks)
        Sums(*(numbers[rank, inside] for numbers in shared)).write(mine)
