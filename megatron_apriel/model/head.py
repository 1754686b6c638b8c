"""What can be done with the model's head: the loss of every token, or their logits, on any tensor-parallel layout.

A model's last chunk hands its head, hidden states and batch to one of these operations, or to one of a caller's own
(:data:`HeadOperation`), and gives back what comes of it. The cheapest way to a loss is not by way of all logits:
:func:`token_losses` makes them a block of tokens at a time (``linear_cross_entropy.py``).

Shape letters: S tokens of the batch, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    gather_from_tensor_model_parallel_region,
)
from torch import Tensor

from megatron_apriel.batch import Batch
from megatron_apriel.model.linear_cross_entropy import linear_cross_entropy
from megatron_apriel.model.sharing import await_parameters

type HeadOperation[Result] = Callable[[ColumnParallelLinear, Tensor, Batch], Result]
"""From head, output of the last norm [S, 1, H] (divided over the ranks under sequence parallelism), and batch."""


def token_losses(head: ColumnParallelLinear, hidden_S1H: Tensor, batch: Batch) -> Tensor:
    """Cross entropy per token of the batch, float32 [S]; see :func:`losses_of_labels`."""
    return losses_of_labels(head, hidden_S1H, batch.labels_S)


def losses_of_labels(head: ColumnParallelLinear, hidden_S1H: Tensor, labels_S: Tensor) -> Tensor:
    """Cross entropy per token, float32 [S]; 0 where the label is ``IGNORED_LABEL``.

    For the head's weight gradient to be right the losses must be summed before the backward pass, which checks it.
    """
    # The head is not called, only its weight is used: what hooks of its forward pass do must be asked for.
    await_parameters(head)
    if head.sequence_parallel:
        hidden_S1H = gather_from_sequence_parallel_region(hidden_S1H, group=head.tp_group)
    else:
        hidden_S1H = copy_to_tensor_model_parallel_region(hidden_S1H, group=head.tp_group)
    return linear_cross_entropy(hidden_S1H[:, 0], head.weight, labels_S, head.tp_group)


def token_logits(head: ColumnParallelLinear, hidden_S1H: Tensor, batch: Batch) -> Tensor:
    """Logits of the whole vocabulary [S, V], the same on every tensor-parallel rank."""
    gathered: Tensor = gather_from_tensor_model_parallel_region(head(hidden_S1H)[0])
    return torch.squeeze(gathered, 1)
