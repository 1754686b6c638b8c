"""Rotary positions in one and in two dimensions, per token.

A head's numbers are taken as pairs, and each pair is turned by an angle: position times frequency, with frequencies
that fall from 1 to 1/theta over the pairs. A pair is (i, i + D/2), the two halves of the head, as Hugging Face's
checkpoints have it; Mistral's own files pair neighbours, and the rows of q and k are reordered when they are read.

In a packed sequence the position of a token does not follow from its place, so angles are looked up per token and
nothing needs to know where documents begin. In the tower a patch has two positions. Pixtral gives the frequencies with
even numbers to the row and those with odd numbers to the column; the first half of the angles then belongs to rows,
the second to columns (transformers, ``PixtralVisionRotaryEmbedding``).

Angles are float32, always: at theta 1e9 and position 49 000, bfloat16 would be off by a hundred turns. Their cosine
and sine, one row a token, are computed once for all layers. On a GPU one kernel (``rotary_kernels.py``) takes the
output of the query, key and value projection apart, turns queries and keys in float32, and writes all three for the
attention; doing these one after another would read and write the same numbers five times. Elsewhere the same is
written out, with cosine and sine rounded to the type of the activations, as transformers has it.

Shape letters: S tokens, G key-value heads, N query heads, D numbers per head, P = D/2 pairs, X numbers per key-value
head of all three: its queries, its key, its value.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Rotary = tuple[Tensor, Tensor]
"""Cosine and sine of every token's angles, float32 [S, P] each."""


@lru_cache
def _frequencies(head_dim: int, theta: float, device: torch.device) -> Tensor:
    """float32 [D / 2], from 1 downward."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    return (1.0 / theta**exponents).to(device)


def decoder_rotary(positions_S: Tensor, head_dim: int, theta: float) -> Rotary:
    """For tokens at ``positions_S`` (int64) of their documents."""
    angles_SP = positions_S[:, None].float() * _frequencies(head_dim, theta, positions_S.device)
    return angles_SP.cos(), angles_SP.sin()


def tower_rotary(rows_S: Tensor, columns_S: Tensor, head_dim: int, theta: float) -> Rotary:
    """For patches at ``rows_S`` and ``columns_S`` (int64) of their images' grids."""
    frequencies = _frequencies(head_dim, theta, rows_S.device)
    angles_SP = torch.cat([rows_S[:, None] * frequencies[0::2], columns_S[:, None] * frequencies[1::2]], dim=-1)
    return angles_SP.cos(), angles_SP.sin()


def split_and_rotate(
    projected_S1GX: Tensor, queries: int, rotary: Rotary, *, fused: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Query [S, N, D], key [S, G, D] and value [S, G, D]; query and key are rotated.

    Args:
        projected_S1GX: output of the query, key and value projection.
        queries: query heads per key-value head.
        rotary: of every token.
        fused: use the kernel.
    """
    projected_SGX = projected_S1GX.squeeze(1)
    if fused:
        parts: tuple[Tensor, Tensor, Tensor] = _SplitAndRotate.apply(projected_SGX, queries, *rotary)
        return parts
    tokens, groups, width = projected_SGX.shape
    heads_SGHD = projected_SGX.view(tokens, groups, queries + 2, width // (queries + 2))
    query_SND = heads_SGHD[:, :, :queries].reshape(tokens, groups * queries, -1)
    return _rotate(query_SND, rotary), _rotate(heads_SGHD[:, :, queries], rotary), heads_SGHD[:, :, queries + 1]


def _rotate(x_SND: Tensor, rotary: Rotary) -> Tensor:
    """Turn the pairs of every head by its token's angles."""
    cosine_S1P, sine_S1P = (table.to(x_SND.dtype)[:, None] for table in rotary)
    first, second = x_SND.chunk(2, dim=-1)
    return torch.cat([first * cosine_S1P - second * sine_S1P, second * cosine_S1P + first * sine_S1P], dim=-1)


class _SplitAndRotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, projected_SGX: Tensor, queries: int, cosine_SP: Tensor, sine_SP: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        from megatron_apriel.model.rotary_kernels import split

        ctx.queries = queries
        ctx.save_for_backward(cosine_SP, sine_SP)
        return split(projected_SGX.contiguous(), queries, cosine_SP, sine_SP)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor, None, None, None]:
        from megatron_apriel.model.rotary_kernels import merge

        query, key, value = (gradient.contiguous() for gradient in incoming)
        return merge(query, key, value, ctx.queries, *ctx.saved_tensors), None, None, None
