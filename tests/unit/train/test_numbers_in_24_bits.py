"""Masters and sums in 24 bits: what they can show, how they are rounded, and long sums of gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_apriel.testing.marks import needs_gpu, on_each_device
from megatron_apriel.testing.real_gradients import real_gradients
from megatron_apriel.train.numbers_in_24_bits import Sums, add
from megatron_apriel.train.split_master import drawn_to_24_bits, join, split

MICRO_BATCHES = 640


def zeros(count: int, device: str = "cpu") -> Sums:
    return Sums(
        torch.zeros(count, dtype=torch.bfloat16, device=device), torch.zeros(count, dtype=torch.int8, device=device)
    )


def all_numbers_of_24_bits() -> torch.Tensor:
    """Every sign, exponent and fraction, without numbers that are none."""
    bits = np.arange(1 << 24, dtype=np.uint32) << 8
    return torch.from_numpy(bits[(bits & 0x7FFFFFFF) <= 0x7F800000].view(np.float32))


@on_each_device
def test_every_number_of_24_bits_comes_back(device: str) -> None:
    numbers = all_numbers_of_24_bits().to(device)
    weight, rest = split(numbers, 8)
    assert rest.dtype == torch.int8
    assert torch.equal(join(weight, rest).view(torch.int32), numbers.view(torch.int32))


def test_others_are_rounded_to_the_nearest() -> None:
    generator = np.random.default_rng(0)
    numbers = (generator.standard_normal(100_000) * 10.0 ** generator.integers(-30, 30, 100_000)).astype(np.float32)
    found = join(*split(torch.from_numpy(numbers), 8)).numpy().astype(np.float64)
    step = 2.0 ** (np.floor(np.log2(np.abs(numbers.astype(np.float64)))) - 15)
    assert (np.abs(found - numbers) <= step / 2).all() and (np.abs(found / step) % 1 == 0).all()
    assert torch.isnan(join(*split(torch.tensor([float("nan")]), 8))).all()


@on_each_device
def test_rounding_by_chance_is_right_in_the_mean(device: str) -> None:
    """Each to one of its two neighbours, up as often as the rest says; the same again at the same step."""
    generator = torch.Generator().manual_seed(0)
    numbers = (torch.randn(20_000, generator=generator) * 0.02).to(device)
    means = (torch.randn(20_000, generator=generator) * 1e-6).to(device)
    steps = 400
    total = torch.zeros(20_000, dtype=torch.float64, device=device)
    for step in range(1, steps + 1):
        drawn = drawn_to_24_bits(numbers, means, step)
        assert torch.equal(join(*split(drawn, 8)), drawn)
        total += drawn.double()
    cut = 2.0 ** (numbers.double().abs().log2().floor() - 15)
    assert ((drawn.double() - numbers.double()).abs() < cut).all()
    rest = (numbers.double() / cut).remainder(1)
    off = (total / steps - numbers.double()) / cut
    deviation = (rest * (1 - rest) / steps).sqrt().clamp(min=1e-3)
    assert float((off / deviation).square().mean().sqrt()) == pytest.approx(1.0, abs=0.05)
    assert abs(float(off.mean())) < 5 * 0.41 / (20_000 * steps) ** 0.5
    assert torch.equal(drawn, drawn_to_24_bits(numbers, means, steps))


@pytest.mark.parametrize("signal", [0.05, 0.2, 1.0])
def test_sums_of_many_micro_batches(signal: float) -> None:
    """Of bf16 gradients with so much in common, against float64; sums in bf16 lose a hundred times as much."""
    common = torch.cat([gradient.flatten() for gradient in real_gradients().gradients[-1].values()])
    generator = torch.Generator().manual_seed(0)
    noise = common.abs().mean() / signal
    sums, exact = zeros(len(common)), torch.zeros_like(common, dtype=torch.float64)
    narrow = torch.zeros_like(common, dtype=torch.bfloat16)
    for _ in range(MICRO_BATCHES):
        one = (common + noise * torch.randn(len(common), generator=generator)).bfloat16()
        exact += one.double()
        narrow += one
        given = one.float()
        add(sums, given)
        assert not given.any()

    def error(found: torch.Tensor) -> float:
        return float((found.double() - exact).norm() / exact.norm())

    assert error(sums.read()) <= 1e-3 and error(narrow) > 1e-2
    assert float(sums.norm()) == pytest.approx(float(exact.norm()), rel=1e-4)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("count", [1, 4096, 100_001])
def test_a_gpu_adds_as_a_cpu(count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    here, there = zeros(count), zeros(count, "cuda")
    for _ in range(50):
        given = torch.randn(count, generator=generator) * 10 ** torch.empty(count).uniform_(-9, 3, generator=generator)
        of_gpu = given.cuda()
        add(here, given)
        add(there, of_gpu)
        assert not of_gpu.any()
    assert all(torch.equal(one, other.cpu()) for one, other in zip(here, there, strict=True))
