"""Rotary positions in one and in two dimensions, per token.

A head's numbers are taken as pairs, and each pair is turned by an angle: position times frequency, with frequencies
that fall from 1 to 1/theta over the pairs. A pair is (i, i + D/2), the two halves of the head, as Hugging Face's
checkpoints have it; Mistral's own files pair neighbours, and the rows of q and k are reordered when they are read.

In a packed sequence the position of a token does not follow from its place, so angles are looked up per token and
nothing needs to know where documents begin. In the tower a patch has two positions. Pixtral gives the frequencies with
even numbers to the row and those with odd numbers to the column; the first half of the angles then belongs to rows,
the second to columns (transformers, ``PixtralVisionRotaryEmbedding``).

Angles are float32, always: at theta 1e9 and position 49 000, bfloat16 would be off by a hundred turns. Only cosine and
sine, which lie in [-1, 1], are rounded to the type of the activations.

Shape letters: S tokens, N heads, D numbers per head.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

Rotary = tuple[Tensor, Tensor]
"""Cosine and sine per token, each [S, 1, D] in the type of the activations."""


@lru_cache
def _frequencies(head_dim: int, theta: float, device: torch.device) -> Tensor:
    """float32 [D / 2], from 1 downward."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    return (1.0 / theta**exponents).to(device)


def _table(angles: Tensor, dtype: torch.dtype) -> Rotary:
    angles_S1D = torch.cat([angles, angles], dim=-1)[:, None]
    return angles_S1D.cos().to(dtype), angles_S1D.sin().to(dtype)


def decoder_rotary(positions_S: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> Rotary:
    """Cosine and sine for tokens at ``positions_S`` (int64) of their documents."""
    frequencies = _frequencies(head_dim, theta, positions_S.device)
    return _table(positions_S[:, None].float() * frequencies, dtype)


def tower_rotary(rows_P: Tensor, columns_P: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> Rotary:
    """Cosine and sine for patches at ``rows_P`` and ``columns_P`` (int64) of their images' grids."""
    frequencies = _frequencies(head_dim, theta, rows_P.device)
    angles = torch.cat([rows_P[:, None] * frequencies[0::2], columns_P[:, None] * frequencies[1::2]], dim=-1)
    return _table(angles, dtype)


def apply_rotary(x_SND: Tensor, rotary: Rotary) -> Tensor:
    """Turn the pairs of every head by its token's angles."""
    cosine, sine = rotary
    first, second = x_SND.chunk(2, dim=-1)
    return x_SND * cosine + torch.cat([-second, first], dim=-1) * sine
