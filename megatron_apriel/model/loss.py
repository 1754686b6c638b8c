"""The loss of every token: the head's weight and the cross entropy brought together, on any tensor-parallel layout.

This is the one place where logits are made for training, a chunk of tokens at a time: see
``linear_cross_entropy.py``. The head's own forward pass, which makes all of them, is for those who ask for logits.
"""

from __future__ import annotations

from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor

from megatron_apriel.model.linear_cross_entropy import linear_cross_entropy
from megatron_apriel.model.sharing import await_parameters


def token_losses(head: ColumnParallelLinear, hidden_S1H: Tensor, labels_S: Tensor) -> Tensor:
    """Cross entropy per token, float32 [S]; 0 where the label is ``IGNORED_LABEL``.

    For the head's weight gradient to be right the losses must be summed before the backward pass, which checks it.

    Args:
        head: from hidden states to this rank's part of the vocabulary.
        hidden_S1H: output of the last layer's norm; this rank's tokens only under sequence parallelism.
        labels_S: int64, all tokens.
    """
    # The head is not called, only its weight is used: what hooks of its forward pass do must be asked for.
    await_parameters(head)
    if head.sequence_parallel:
        hidden_S1H = gather_from_sequence_parallel_region(hidden_S1H, group=head.tp_group)
    else:
        hidden_S1H = copy_to_tensor_model_parallel_region(hidden_S1H, group=head.tp_group)
    return linear_cross_entropy(hidden_S1H[:, 0], head.weight, labels_S, head.tp_group)
