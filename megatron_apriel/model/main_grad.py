"""Gradients that are added where they are needed at once, into a parameter's ``main_grad``.

Megatron's data parallelism gives every trained parameter a part of a float32 buffer in which a step's gradients are
added up and reduced over the ranks. Autograd's way there is a gradient tensor of the parameter's size, added to the
buffer by a hook. For the vocabulary's two matrices that is gigabytes a micro-batch, and whoever computes the gradient
can do without: add to ``main_grad`` directly, then give autograd :func:`placeholder_gradient`.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from typing import Any

from megatron.core.utils import log_single_rank
from torch import Tensor, nn

from megatron_apriel.terminal import named_logger

logger = named_logger(__name__)


def placeholder_gradient(weight: Tensor) -> Tensor | None:
    """What to give autograd as the gradient of a weight whose ``main_grad`` has it already.

    Megatron's hook on the weight starts the reduction over ranks, and insists on a gradient. It must be set not to add
    it, and drops it at once. Any tensor of the weight's shape and type will do; the weight's own numbers cost nothing.
    """
    if not hasattr(weight, "grad_added_to_main_grad"):
        return None
    weight.grad_added_to_main_grad = True
    return weight.detach()


def share_placeholders(models: Sequence[nn.Module]) -> None:
    """Have Transformer Engine's layers, too, give autograd a weight's own numbers where it insists on a gradient.

    They keep a tensor for each shape of weight for that, which nothing ever reads: half a gigabyte for this model. Call
    when the weights are where they will stay.

    Transformer Engine's tensors are there for as long as the process. A model's weights lie in one buffer, of which a
    single one would keep the whole, so they are taken away with their model.
    """
    from transformer_engine.pytorch.module import base

    placeholders = getattr(base, "_dummy_wgrads", None)
    if placeholders is None:
        log_single_rank(logger, logging.INFO, "this version of Transformer Engine keeps its own placeholder gradients")
        return
    placeholders.clear()
    for model in models:
        own = {(*weight.shape, weight.dtype): weight.detach() for weight in model.parameters()}
        placeholders.update(own)
        weakref.finalize(model, _take_away, placeholders, own).atexit = False


def _take_away(placeholders: dict[Any, Tensor], own: dict[Any, Tensor]) -> None:
    """Another model's, made since, stay."""
    for key, weight in own.items():
        if placeholders.get(key) is weight:
            del placeholders[key]
