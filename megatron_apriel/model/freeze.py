"""Which parts of a model train.

A part is frozen by telling its parameters that they need no gradient, before the model is wrapped for data
parallelism: then they get no gradient buffer and no optimizer state. Where nothing below a point trains, there is no
backward pass below it: the frozen tower runs without a graph, and frozen weights save no activations.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from megatron_apriel.config.training_sections import TrainedParts
from megatron_apriel.formats.tensor_names import component_of


def apply_freezing(chunks: Iterable[torch.nn.Module], train: TrainedParts) -> None:
    """Freeze the parameters of every component whose factor in ``train`` is 0, and let the others train."""
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            parameter.requires_grad_(getattr(train, component_of(name).trained_as) > 0)
