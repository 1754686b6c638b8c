"""Next token: cross entropy of every token that carries loss, as in pretraining and fine-tuning."""

from __future__ import annotations

from megatron.core.tensor_parallel import ColumnParallelLinear
from torch import Tensor

from megatron_apriel.batch import Batch
from megatron_apriel.model.head import token_losses
from megatron_apriel.train.objectives.objective import Counted


class NextToken:
    """Cross entropy by the fused operation, which makes the head's gradients in the forward pass: losses are summed."""

    figures: tuple[str, ...] = ()

    def __call__(self, head: ColumnParallelLinear, hidden_S1H: Tensor, batch: Batch) -> Counted:
        return Counted(token_losses(head, hidden_S1H, batch).sum(), batch.num_loss_tokens)
