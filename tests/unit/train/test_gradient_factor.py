"""What the summed gradients are multiplied by in an update, against torch's clipping of the mean gradient."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_apriel.train.optimizer import gradient_factor


@pytest.mark.parametrize("clip", [0.01, 1.0, 100.0])
def test_is_torchs_clipping_of_the_mean(clip: float) -> None:
    generator, tokens = torch.Generator().manual_seed(0), torch.tensor(321.0, dtype=torch.float64)
    summed = 500 * torch.randn(1000, generator=generator, dtype=torch.float64)
    reference = torch.nn.Parameter(torch.zeros_like(summed))
    reference.grad = summed / tokens
    torch.nn.utils.clip_grad_norm_([reference], clip)
    factor = gradient_factor(summed.norm(), torch.ones(2, dtype=torch.float64), tokens, clip)
    torch.testing.assert_close(factor * summed, reference.grad, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["norm", "loss"])
def test_there_is_none_where_a_number_is_not_finite(bad: float, where: str) -> None:
    norm, losses = torch.tensor(2.0), torch.tensor([1.0, 3.0])
    assert gradient_factor(norm, losses, torch.tensor(4.0), 1.0).isfinite()
    if where == "norm":
        norm.fill_(bad)
    else:
        losses[1] = bad
    assert gradient_factor(norm, losses, torch.tensor(4.0), 1.0).isnan()
