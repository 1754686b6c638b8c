"""The norms of local layers against their formula in double precision."""

from __future__ import annotations

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_apriel.model.norm import BranchNorm, RMSNorm


def test_norms_divide_by_the_root_mean_square_and_a_branch_keeps_its_input() -> None:
    config = TransformerConfig(num_layers=1, hidden_size=6, num_attention_heads=1, transformer_impl="local")
    hidden = torch.randn(4, 1, 6, generator=torch.Generator().manual_seed(0))
    factors = torch.arange(1.0, 7.0)
    expected = hidden.double() / (hidden.double().square().mean(-1, keepdim=True) + 1e-3).sqrt() * factors
    for kind in (RMSNorm, BranchNorm):
        norm = kind(config, 6, 1e-3)
        norm.weight.data.copy_(factors)
        found = norm(hidden)
        if kind is BranchNorm:
            found, past = found
            assert past is hidden
        torch.testing.assert_close(found, expected.float())
