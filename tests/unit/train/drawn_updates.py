"""An optimizer after steps on numbers and gradients that are drawn: its states in any form, wherever they lie."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_apriel.planning.state_forms import StateForm
from megatron_apriel.testing.real_gradients import BETAS
from megatron_apriel.train.adamw import AdamW

SIZES = (5, 400, 1, 33, 170)


def trained(
    form: StateForm, share: float, piece: int, device: str, *, steps: int = 40, sizes: Sequence[int] = SIZES
) -> AdamW:
    """With ``share`` of the states on the host, in pieces of so many numbers; the fourth update is skipped."""
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if form.low_bits else torch.float32
    drawn = [torch.randn(size, generator=generator).to(dtype).to(device) for size in sizes]
    optimizer = AdamW([torch.nn.Parameter(numbers) for numbers in drawn], lr=1e-4, betas=BETAS, weight_decay=0.1)
    parameters = optimizer.param_groups[0]["params"]
    optimizer.make_states(share, piece=piece, forms=dict.fromkeys(parameters, form))
    for step in range(steps):
        for parameter in parameters:
            parameter.decoupled_grad = torch.randn(len(parameter), generator=generator).to(device)
        optimizer.factor = torch.tensor(math.nan if step == 3 else 1 / 30, device=device)
        optimizer.step()
        if step == 3:
            optimizer.take_back()
    return optimizer


def states_of(optimizer: AdamW) -> list[Tensor]:
    """What is kept of every number: masters and moments."""
    parameters = optimizer.param_groups[0]["params"]
    return [each.read(0, len(each)).cpu() for one in parameters for each in optimizer.numbers(one).values()]


def everything(optimizer: AdamW) -> list[Tensor]:
    """Parameters and states."""
    return [*(one.detach().cpu().float() for one in optimizer.param_groups[0]["params"]), *states_of(optimizer)]
