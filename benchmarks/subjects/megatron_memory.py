"""What a model in Megatron's wrappers holds between steps, counted from its tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from benchmarks.subjects import bytes_of
from megatron_apriel.train.adamw import AdamW


def megatron_memory(wrapped: Iterable[Any], optimizer: Any) -> dict[str, int]:
    """Bytes on the device of weights, main gradients and optimizer state (moments, and masters or what weights lack).

    Args:
        wrapped: model chunks in Megatron's ``DistributedDataParallel``.
        optimizer: Megatron's, after at least one step.
    """
    chunks = list(wrapped)
    parameters = [parameter for chunk in chunks for parameter in chunk.parameters()]
    buffers = [buffer for chunk in chunks for buffer in [*chunk.buffers, *chunk.expert_parallel_buffers]]
    gradients = [tensor for buffer in buffers for tensor in getattr(buffer, "sums", (buffer.grad_data,))]
    model = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    held = [
        tensor
        for part in getattr(optimizer, "chained_optimizers", [optimizer])
        for tensor in _tensors(getattr(part, "optimizer", None))
        if tensor.untyped_storage().data_ptr() not in model
    ]
    return {
        "weights": bytes_of(parameters),
        "main gradients": bytes_of(gradients),
        "optimizer state": bytes_of(held),
    }


def _tensors(inner: Any) -> Iterable[torch.Tensor]:
    """Parameters that an optimizer of torch's form updates, and its state."""
    if inner is None:
        return
    for group in inner.param_groups:
        yield from group["params"]
    if isinstance(inner, AdamW):
        yield from (tensor for tensor in inner.states.tensors() if tensor.device == inner.factor.device)
    for state in inner.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))
