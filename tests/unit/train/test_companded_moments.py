"""Moments in 8 bits: what a code stands for, against the formulas in float64; and codes that come back from numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_apriel.testing.marks import on_each_device
from megatron_apriel.train.companded_moments import decode_mean, decode_square, encode_mean, encode_square

COUNT = 5001
"""The last group is not full."""


def drawn(scale: float, decades: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    spread = 10 ** torch.empty(COUNT).uniform_(-decades, 0, generator=generator)
    return torch.randn(COUNT, generator=generator) * scale * spread


@on_each_device
@pytest.mark.parametrize("decades", [0.0, 6.0])
@pytest.mark.parametrize("scale", [1e3, 1.0, 1e-6, 1e-12])
def test_codes_come_back_from_the_numbers_that_they_stand_for(scale: float, decades: float, device: str) -> None:
    mean, square = drawn(scale, decades).to(device), drawn(scale, decades).square().to(device)
    for numbers, encode, decode in ((mean, encode_mean, decode_mean), (square, encode_square, decode_square)):
        codes, scales = encode(numbers)
        assert len(codes) == COUNT and len(scales) == -(-COUNT // 32)
        again = encode(decode(codes, scales))
        assert torch.equal(again[0], codes) and torch.equal(again[1], scales)


@pytest.mark.parametrize("scale", [1.0, 1e-7])
def test_numbers_are_within_half_a_step(scale: float) -> None:
    """Of the formulas. A scale is the group's largest number within 2^-9, also where float16 would have none."""
    mean, square = drawn(scale, 3.0), drawn(scale, 3.0).square()
    grouped = [np.pad(each.double().numpy(), (0, -COUNT % 32)).reshape(-1, 32) for each in (mean, square)]
    largest = np.abs(grouped[0]).max(1, keepdims=True)
    bent = 2 * grouped[0] / largest / (1 + np.abs(grouped[0]) / largest)
    codes, scales = encode_mean(mean)
    found = np.pad(codes.numpy(), (0, -COUNT % 32)).reshape(-1, 32)
    assert np.abs(found - 127 * bent).max() < 0.5 + 127 * 2**-9
    assert np.abs(found).max(1).min() == 127
    roots = (grouped[1] / grouped[1].max(1, keepdims=True)) ** 0.25
    codes, scales = encode_square(square)
    found = np.pad(codes.numpy(), (0, -COUNT % 32)).reshape(-1, 32)
    off = np.abs(found - 255 * roots)
    assert (off < np.where(found == 1, 1.0, 0.5 + 255 * 2**-9)).all()
    assert found.max(1).min() == 255 and ((found > 0) == (grouped[1] > 0)).all()
    top = decode_square(codes, scales).double().numpy()
    assert np.pad(top, (0, -COUNT % 32)).reshape(-1, 32).max(1) == pytest.approx(grouped[1].max(1), rel=4 * 2**-8)


@on_each_device
def test_nothing_and_next_to_nothing_are_zeros(device: str) -> None:
    for numbers in (torch.zeros(40), torch.full((40,), 1e-38), torch.tensor([])):
        for encode, decode in ((encode_mean, decode_mean), (encode_square, decode_square)):
            codes, scales = encode(numbers.to(device))
            assert not codes.any() and not scales.any() and not decode(codes, scales).any()
