"""RMSNorm for layers that Transformer Engine does not provide."""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_apriel.parallel.groups import current_device


class RMSNorm(torch.nn.Module):
    """Divide each token's numbers by their root mean square, then scale them (arXiv 1910.07467).

    Under sequence parallelism every tensor-parallel rank normalises other tokens, so each has a part of the weight's
    gradient. The mark ``sequence_parallel`` on the weight tells Megatron to add the parts up.
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: object) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=current_device()))
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: Tensor) -> Tensor:
        """Any shape [..., hidden_size]."""
        return torch.nn.functional.rms_norm(hidden, self.weight.shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.weight.numel()}, eps={self.eps}, replicated"
