"""Query, key and value taken apart and rotated on a GPU: one Triton kernel each way, one program per token.

Limited by memory: every number is read and written once. Importing this file imports Triton.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

WARPS = 4


def split(projected_SGX: Tensor, queries: int, cosine_SP: Tensor, sine_SP: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query [S, G * queries, D], key and value [S, G, D] of a projection [S, G, (queries + 2) * D].

    Args:
        projected_SGX: contiguous.
        queries: query heads per key-value head.
        cosine_SP, sine_SP: float32 [S, D / 2].
    """
    tokens, groups, width = projected_SGX.shape
    size = width // (queries + 2)
    query = projected_SGX.new_empty(tokens, groups * queries, size)
    key, value = (projected_SGX.new_empty(tokens, groups, size) for _ in range(2))
    _launch(projected_SGX, query, key, value, cosine_SP, sine_SP, queries, backward=False)
    return query, key, value


def merge(
    query_SND: Tensor, key_SGD: Tensor, value_SGD: Tensor, queries: int, cosine_SP: Tensor, sine_SP: Tensor
) -> Tensor:
    """The gradient of :func:`split`'s input [S, G, (queries + 2) * D] from those of its contiguous outputs."""
    tokens, groups, size = key_SGD.shape
    projected_SGX = query_SND.new_empty(tokens, groups, (queries + 2) * size)
    _launch(projected_SGX, query_SND, key_SGD, value_SGD, cosine_SP, sine_SP, queries, backward=True)
    return projected_SGX


def _launch(
    projected: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cosine: Tensor,
    sine: Tensor,
    queries: int,
    *,
    backward: bool,
) -> None:
    tokens, groups, size = key.shape
    heads, half = groups * (queries + 2), size // 2
    _rotary_kernel[(tokens,)](
        projected,
        query,
        key,
        value,
        cosine,
        sine,
        groups,
        heads,
        half,
        queries,
        triton.next_power_of_2(heads),
        triton.next_power_of_2(half),
        backward,
        num_warps=WARPS,
    )


@triton.jit  # type: ignore[untyped-decorator]
def _rotary_kernel(
    projected: tl.tensor,
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    cosines: tl.tensor,
    sines: tl.tensor,
    groups: tl.tensor,
    heads: tl.tensor,
    half: tl.tensor,
    QUERIES: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    BACKWARD: tl.constexpr,
) -> None:
    """Heads in the projection's order: of each group its queries, its key, its value."""
    token = tl.program_id(0).to(tl.int64)
    head, pair = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    group, number = head // (QUERIES + 2), head % (QUERIES + 2)
    there = (head < heads) & (pair < half)
    is_query, is_key, is_value = (
        there & (number < QUERIES),
        there & (number == QUERIES),
        there & (number == QUERIES + 1),
    )
    joined = projected + (token * heads + head) * 2 * half + pair
    in_query = query + (token * groups * QUERIES + group * QUERIES + number) * 2 * half + pair
    in_key = key + (token * groups + group) * 2 * half + pair
    in_value = value + (token * groups + group) * 2 * half + pair
    angle = token * half + pair
    cosine = tl.load(cosines + angle, mask=pair < half, other=1.0)
    sine = tl.load(sines + angle, mask=pair < half, other=0.0)
    cosine = tl.where(number <= QUERIES, cosine, 1.0)
    sine = tl.where(number <= QUERIES, sine, 0.0)
    if BACKWARD:
        first = tl.load(in_query, mask=is_query, other=0.0).to(tl.float32)
        first += tl.load(in_key, mask=is_key, other=0.0).to(tl.float32)
        first += tl.load(in_value, mask=is_value, other=0.0).to(tl.float32)
        second = tl.load(in_query + half, mask=is_query, other=0.0).to(tl.float32)
        second += tl.load(in_key + half, mask=is_key, other=0.0).to(tl.float32)
        second += tl.load(in_value + half, mask=is_value, other=0.0).to(tl.float32)
        tl.store(joined, first * cosine + second * sine, mask=there)
        tl.store(joined + half, second * cosine - first * sine, mask=there)
    else:
        first = tl.load(joined, mask=there, other=0.0).to(tl.float32)
        second = tl.load(joined + half, mask=there, other=0.0).to(tl.float32)
        turned_first = first * cosine - second * sine
        turned_second = second * cosine + first * sine
        tl.store(in_query, turned_first, mask=is_query)
        tl.store(in_query + half, turned_second, mask=is_query)
        tl.store(in_key, turned_first, mask=is_key)
        tl.store(in_key + half, turned_second, mask=is_key)
        tl.store(in_value, turned_first, mask=is_value)
        tl.store(in_value + half, turned_second, mask=is_value)
