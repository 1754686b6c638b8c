"""The fused head and loss with the vocabulary over several ranks, with and without sequence parallelism."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from megatron.core import parallel_state
from torch import Tensor

from megatron_apriel.batch import IGNORED_LABEL
from megatron_apriel.formats.architecture import DecoderArchitecture
from megatron_apriel.model.decoder import build_head
from megatron_apriel.model.head import losses_of_labels
from megatron_apriel.model.options import ModelOptions, decoder_config
from megatron_apriel.parallel import groups, logit_parts
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing.ranks import run_ranks

TOKENS, HIDDEN, ENTRIES = 40, 16, 64
DECODER = DecoderArchitecture(HIDDEN, 2, 4, 2, 4, 32, ENTRIES, rope_theta=1e6)


class Result(NamedTuple):
    losses: Tensor
    grad_hidden: Tensor
    grad_weight: Tensor


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    # The second half of the vocabulary has much the larger logits: ranks disagree about every maximum.
    weight = torch.randn(ENTRIES, HIDDEN, generator=generator) * torch.linspace(0.2, 3, ENTRIES)[:, None]
    labels = torch.randint(0, ENTRIES, (TOKENS,), generator=generator)
    labels[::7] = IGNORED_LABEL
    return torch.randn(TOKENS, HIDDEN, generator=generator), weight, labels


def run_head(rank: int, size: int, layout: Layout) -> Result:
    """Losses and hidden gradient of all tokens, and the gradient of this rank's part of the weight."""
    logit_parts.LOGITS_PER_PART = 20 * ENTRIES // size
    hidden, weight, labels = inputs()
    with groups.initialized(layout):
        head = build_head(DECODER, decoder_config(DECODER, ModelOptions(), layout))
        own = parallel_state.get_tensor_model_parallel_rank()
        with torch.no_grad():
            head.weight.copy_(weight.chunk(layout.tensor)[own])
        hidden = hidden.chunk(layout.tensor)[own] if layout.sequence else hidden
        leaf = hidden[:, None].clone().requires_grad_()
        losses = losses_of_labels(head, leaf, labels)
        losses.sum().backward()
        assert leaf.grad is not None
        return Result(losses.detach(), leaf.grad[:, 0], head.weight.grad)


@pytest.mark.parametrize(
    ("tensor", "sequence"),
    [(1, False), (2, False), (2, True), (4, True)],
    ids=["one rank", "TP2", "TP2 SP", "TP4 SP"],
)
def test_divided_vocabulary_gives_the_whole_ones_losses_and_gradients(tensor: int, sequence: bool) -> None:
    hidden, weight, labels = inputs()
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    losses = F.cross_entropy(hidden @ weight.T, labels, reduction="none", ignore_index=IGNORED_LABEL)
    losses.sum().backward()
    results = run_ranks(tensor, run_head, Layout(tensor, tensor=tensor, sequence=sequence))
    for result in results:
        assert (result.losses - losses).abs().max() <= 1e-6 * losses.max()
    found_hidden = torch.cat([result.grad_hidden for result in results]) if sequence else results[-1].grad_hidden
    found_weight = torch.cat([result.grad_weight for result in results])
    for found, expected in ((found_hidden, hidden.grad), (found_weight, weight.grad)):
        assert expected is not None
        assert found.shape == expected.shape
        assert (found - expected).abs().max() <= 2e-6 * expected.abs().max()
