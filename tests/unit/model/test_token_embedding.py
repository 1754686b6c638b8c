"""Token embeddings and their gradient against torch's own, with and without Megatron's gradient buffer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_apriel.formats.architecture import DecoderArchitecture
from megatron_apriel.model.decoder import TokenEmbedding
from megatron_apriel.model.options import ModelOptions, decoder_config
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing.ranks import run_ranks

DECODER = DecoderArchitecture(16, 1, 2, 2, 8, 32, 24, rope_theta=1e6)
TOKENS = torch.tensor([3, 23, 3, 0, 11, 12, 3])
# Two tokens, one of them repeated, have no gradient, as image slots and padding have none.
GRADIENT = torch.tensor([0.0, 2.0, 3.0, 0.0, 5.0, 6.0, 7.0])[:, None].expand(7, 16)


def run(rank: int, size: int, buffered: bool) -> dict[str, Any]:
    layout = Layout(size, tensor=size)
    with groups.initialized(layout):
        embedding = TokenEmbedding(DECODER, decoder_config(DECODER, ModelOptions(), layout))
        weight = embedding.word_embeddings.weight
        with torch.no_grad():
            whole = torch.randn(24, 16, generator=torch.Generator().manual_seed(0))
            weight.copy_(whole.chunk(size)[rank])
        if buffered:
            weight.main_grad, weight.grad_added_to_main_grad = torch.full_like(weight, 0.5), False
        outputs = embedding(TOKENS)
        outputs.backward(GRADIENT[:, None])
        added = getattr(weight, "grad_added_to_main_grad", None)
        gradient = weight.main_grad if buffered else weight.grad
        return {"outputs": outputs.detach(), "gradient": gradient, "added": added}


@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize("size", [1, 2])
def test_embeddings_and_gradient_equal_torch(size: int, buffered: bool) -> None:
    table = torch.randn(24, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    expected = table[TOKENS]
    expected.backward(GRADIENT)
    results = run_ranks(size, run, buffered)
    for result in results:
        torch.testing.assert_close(result["outputs"][:, 0], expected.detach())
        assert result["added"] is (True if buffered else None)
    gradient = torch.cat([result["gradient"] for result in results])
    torch.testing.assert_close(gradient, table.grad + (0.5 if buffered else 0.0))
