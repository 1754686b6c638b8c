"""Token embeddings and their gradient against torch's own, with and without Megatron's gradient buffer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_apriel.formats.architecture import DecoderArchitecture
from megatron_apriel.model.decoder import TokenEmbedding, _Lookup
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


def test_the_gradient_of_repeated_tokens_is_the_same_every_time() -> None:
    """Threads that add to one row as they come would round otherwise from time to time."""
    draws = torch.Generator().manual_seed(0)
    tokens, gradient_SH = torch.randint(0, 100, (1024,), generator=draws), torch.randn(1024, 192, generator=draws)
    table_VH = torch.zeros(256, 192, requires_grad=True)

    def table_gradient() -> torch.Tensor:
        embeddings_SH = _Lookup.apply(table_VH, tokens, torch.zeros(1024, dtype=torch.bool))
        return torch.autograd.grad(embeddings_SH, table_VH, gradient_SH)[0]

    alone = table_gradient()
    expected = torch.zeros(256, 192, dtype=torch.float64).index_add_(0, tokens, gradient_SH.double())
    torch.testing.assert_close(alone.double(), expected, rtol=0, atol=1e-5)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        assert all(torch.equal(table_gradient(), alone) for _ in range(100))
    finally:
        torch.set_num_threads(threads)
