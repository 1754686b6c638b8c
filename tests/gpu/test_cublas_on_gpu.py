"""The benchmark's own calls of cuBLAS against products in float64, by every algorithm that is offered."""

from __future__ import annotations

import pytest
import torch

from benchmarks.cublas import Product
from megatron_apriel.testing.marks import needs_gpu

pytestmark = [pytest.mark.gpu, needs_gpu]

M, K, N = 256, 384, 512


def numbers(rows: int, columns: int, by_columns: bool) -> torch.Tensor:
    generator = torch.Generator("cuda").manual_seed(rows + columns)
    if by_columns:
        return numbers(columns, rows, False).t()
    return torch.randn(rows, columns, device="cuda", generator=generator).bfloat16()


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("left_by_columns", [False, True])
@pytest.mark.parametrize("right_by_columns", [False, True])
def test_product_by_every_algorithm(left_by_columns: bool, right_by_columns: bool, accumulate: bool) -> None:
    left, right = numbers(M, K, left_by_columns), numbers(K, N, right_by_columns)
    start = torch.ones(M, N, device="cuda") if accumulate else torch.full((M, N), float("nan"), device="cuda")
    out = start.clone()
    product = Product(left, right, out, accumulate=accumulate)
    expected = left.double() @ right.double() + (1.0 if accumulate else 0.0)
    algorithms = product.algorithms()
    assert algorithms
    for algorithm in algorithms:
        out.copy_(start)
        product.run(algorithm)
        assert (out.double() - expected).norm() < 1e-4 * expected.norm()


def test_matrices_with_gaps_are_refused() -> None:
    with pytest.raises(ValueError, match="without gaps"):
        Product(numbers(M, 2 * K, False)[:, :K], numbers(K, N, False), torch.empty(M, N), accumulate=False)
