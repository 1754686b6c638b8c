"""The loss of every token, with the vocabulary divided over tensor-parallel ranks.

This is the one place where logits are made for training, so that the head's matrix product and the cross entropy can
be computed together, piece by piece, without changing anything else.
"""

from __future__ import annotations

import torch
from megatron.core.tensor_parallel import ColumnParallelLinear, vocab_parallel_cross_entropy
from torch import Tensor

from megatron_apriel.batch import IGNORED_LABEL


def token_losses(head: ColumnParallelLinear, hidden_S1H: Tensor, labels_S: Tensor) -> Tensor:
    """Cross entropy per token, float32 [S]; 0 where the label is ``IGNORED_LABEL``.

    Args:
        head: from hidden states to this rank's part of the vocabulary.
        hidden_S1H: output of the last layer's norm; this rank's tokens only under sequence parallelism.
        labels_S: int64, all tokens.
    """
    logits_S1V, _ = head(hidden_S1H)
    scored_S = labels_S != IGNORED_LABEL
    losses_S1 = vocab_parallel_cross_entropy(logits_S1V.float(), labels_S.clamp(min=0)[:, None])
    return torch.where(scored_S, losses_S1[:, 0], 0.0)
