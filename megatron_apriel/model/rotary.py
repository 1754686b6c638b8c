"""Rotary positions in one and in two dimensions, per token.

A head's numbers are taken as pairs, and each pair is turned by an angle: position times frequency, with frequencies
that fall from 1 to 1/theta over the pairs. A pair is (i, i + D/2), the two halves of the head, as Hugging Face's
checkpoints have it; Mistral's own files pair neighbours, and the rows of q and k are reordered when they are read.

In a packed sequence the position of a token does not follow from its place, so angles are looked up per token and
nothing needs to know where documents begin. In the tower a patch has two positions. Pixtral gives the frequencies with
even numbers to the row and those with odd numbers to the column; the first half of the angles then belongs to rows,
the second to columns (transformers, ``PixtralVisionRotaryEmbedding``).

Angles are float32, always: at theta 1e9 and position 49 000, bfloat16 would be off by a hundred turns. They are handed
to the layers as angles, one row a token. On a GPU one kernel of Transformer Engine takes the output of the query, key
and value projection apart, turns queries and keys, and writes all three for the attention; doing these one after
another would read and write the same numbers five times. Elsewhere the same is written out, with cosine and sine
rounded to the type of the activations, as transformers has it.

Shape letters: S tokens, G key-value heads, N query heads, D numbers per head, X numbers per key-value head of all
three: its queries, its key, its value.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


@lru_cache
def _frequencies(head_dim: int, theta: float, device: torch.device) -> Tensor:
    """float32 [D / 2], from 1 downward."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    return (1.0 / theta**exponents).to(device)


def _both_halves(angles: Tensor) -> Tensor:
    return torch.cat([angles, angles], dim=-1)[:, None, None]


def decoder_angles(positions_S: Tensor, head_dim: int, theta: float) -> Tensor:
    """Angles of tokens at ``positions_S`` (int64) of their documents, float32 [S, 1, 1, D]."""
    return _both_halves(positions_S[:, None].float() * _frequencies(head_dim, theta, positions_S.device))


def tower_angles(rows_P: Tensor, columns_P: Tensor, head_dim: int, theta: float) -> Tensor:
    """Angles of patches at ``rows_P`` and ``columns_P`` (int64) of their images' grids, float32 [P, 1, 1, D]."""
    frequencies = _frequencies(head_dim, theta, rows_P.device)
    angles = [rows_P[:, None] * frequencies[0::2], columns_P[:, None] * frequencies[1::2]]
    return _both_halves(torch.cat(angles, dim=-1))


def split_and_rotate(
    projected_S1GX: Tensor, parts: Sequence[int], angles_S11D: Tensor, *, fused: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Query [S, N, D], key [S, G, D] and value [S, G, D], contiguous where ``fused``; query and key are rotated.

    Args:
        projected_S1GX: output of the query, key and value projection.
        parts: how many of the X numbers are queries, key and value; they sum to X.
        angles_S11D: of every token.
        fused: use Transformer Engine's kernel.
    """
    if fused:
        from transformer_engine.pytorch.attention.rope import apply_fused_qkv_rotary_pos_emb

        # Its "sbhd" format takes the angle's row from the place in the sequence, and here a row belongs to a token.
        query, key, value = apply_fused_qkv_rotary_pos_emb(projected_S1GX, angles_S11D, angles_S11D, list(parts))
        return query.squeeze(1), key.squeeze(1), value.squeeze(1)
    tokens, head_dim = projected_S1GX.shape[0], angles_S11D.shape[-1]
    query, key, value = (
        part.reshape(tokens, -1, head_dim) for part in projected_S1GX.squeeze(1).split(list(parts), dim=-1)
    )
    cosine, sine = (turn.to(query.dtype).squeeze(1) for turn in (angles_S11D.cos(), angles_S11D.sin()))
    return _rotate(query, cosine, sine), _rotate(key, cosine, sine), value


def _rotate(x_SND: Tensor, cosine_S1D: Tensor, sine_S1D: Tensor) -> Tensor:
    """Turn the pairs of every head by its token's angles."""
    first, second = x_SND.chunk(2, dim=-1)
    return x_SND * cosine_S1D + torch.cat([-second, first], dim=-1) * sine_S1D
