"""The mean is the exact one, rounded once: compared with fractions, on numbers made to go wrong."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from megatron_apriel.surgery import mean as module
from megatron_apriel.surgery.mean import STORAGE, BlockMean, from_float64, mean, normalised, to_float64

DTYPES = ["BF16", "F16", "F32", "F64"]
SPREAD = {"BF16": (-44, 38), "F16": (-8, 4), "F32": (-44, 38), "F64": (-300, 300)}


def neighbours(number: Fraction, dtype: str) -> list[Fraction]:
    """The numbers of ``dtype`` around ``number``, found by walking the bits from a rough rounding."""
    near = np.array([float(number)]).astype(np.float32) if dtype == "BF16" else np.array([float(number)])
    bits = (near.view(np.uint32) >> 16).astype(np.uint16) if dtype == "BF16" else near.astype(STORAGE[dtype])
    whole = bits.view({2: np.int16, 4: np.int32, 8: np.int64}[bits.dtype.itemsize])
    around = []
    for step in (-2, -1, 0, 1, 2):
        sign = whole < 0
        moved = np.where(sign, whole - step, whole + step).astype(whole.dtype).view(bits.dtype)
        value = float(to_float64(moved, dtype)[0])
        if math.isfinite(value):
            around.append(Fraction(value))
    return around


def assert_nearest(result: float, exact: Fraction, dtype: str, bits: int) -> None:
    """``result`` is as near as any number of ``dtype``, and the even one of two that are equally near."""
    error = abs(Fraction(result) - exact)
    others = [other for other in neighbours(exact, dtype) if other != Fraction(result)]
    assert all(error <= abs(other - exact) for other in others), (result, exact)
    if any(error == abs(other - exact) for other in others):
        assert bits % 2 == 0, "a tie did not go to the even number"


def hard_numbers(dtype: str, count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    low, high = SPREAD[dtype]
    wide = rng.standard_normal(count) * 10.0 ** rng.integers(low, high, count)
    narrow = rng.standard_normal(count) * 0.02
    numbers = np.where(rng.random(count) < 0.5, wide, narrow)
    numbers[rng.random(count) < 0.1] = 0
    # Powers of two far apart: their sums land on ties, and next to them.
    powers = np.ldexp(rng.choice([-1.0, 1.0], count), rng.integers(-24 if dtype == "F16" else -40, 8, count))
    return from_float64(np.where(rng.random(count) < 0.4, powers, numbers), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inputs", [1, 2, 3, 4, 6])
def test_equal_mean_is_the_exact_one_rounded_once(dtype: str, inputs: int) -> None:
    raws = [hard_numbers(dtype, 400, seed) for seed in range(inputs)]
    result = mean(raws, dtype)
    assert result.dtype == STORAGE[dtype]
    columns = np.stack([to_float64(raw, dtype) for raw in raws], axis=1)
    for place, row in enumerate(columns):
        exact = sum(map(Fraction, row.tolist()), Fraction()) / inputs
        value = float(to_float64(result[place : place + 1], dtype)[0])
        bits = int(result[place : place + 1].view({2: np.uint16, 4: np.uint32, 8: np.uint64}[result.itemsize])[0])
        assert_nearest(value, exact, dtype, bits)


def test_a_tie_that_float64_cannot_see() -> None:
    # (2 + 2 + 2^-6 + 1e-30) / 4 lies just above the middle of two bfloat16 numbers; in float64 it is the middle.
    raws = [from_float64(np.array([number]), "BF16") for number in (2.0, 2.0, 2.0**-6, 1e-30)]
    assert to_float64(mean(raws, "BF16"), "BF16")[0] == 1 + 2.0**-7
    raws[3] = from_float64(np.array([0.0]), "BF16")
    assert to_float64(mean(raws, "BF16"), "BF16")[0] == 1.0
    raws[3] = from_float64(np.array([-1e-30]), "BF16")
    assert to_float64(mean(raws, "BF16"), "BF16")[0] == 1.0


def test_double_rounding_by_way_of_float32_is_avoided() -> None:
    just_above = 1 + 2.0**-8 + 2.0**-40
    assert np.float32(just_above) == 1 + 2.0**-8
    assert to_float64(from_float64(np.array([just_above]), "BF16"), "BF16")[0] == 1 + 2.0**-7


@pytest.mark.parametrize("dtype", DTYPES)
def test_weighted_mean_is_the_float64_sum_in_order(dtype: str) -> None:
    weights = normalised([1.0, 2.5, 0.25])
    assert weights is not None
    assert math.fsum(weights) == pytest.approx(1, abs=1e-15)
    raws = [hard_numbers(dtype, 300, seed) for seed in range(3)]
    result = to_float64(mean(raws, dtype, weights), dtype)
    for place, row in enumerate(np.stack([to_float64(raw, dtype) for raw in raws], axis=1).tolist()):
        total = row[0] * weights[0]
        for number, weight in zip(row[1:], weights[1:], strict=True):
            total += number * weight
        best = min(abs(other - Fraction(total)) for other in neighbours(Fraction(total), dtype))
        assert abs(Fraction(float(result[place])) - Fraction(total)) == best


def test_equal_weights_are_the_equal_mean() -> None:
    assert normalised([0.3, 0.3, 0.3]) is None


def test_weights_whose_sum_overflows() -> None:
    assert normalised([1e308, 1.5e308]) == (0.4, 0.6)


def test_mean_stays_at_the_largest_number() -> None:
    for dtype, largest in (("BF16", 3.3895313892515355e38), ("F16", 65504.0), ("F32", 3.4028234663852886e38)):
        raws = [from_float64(np.array([largest]), dtype)] * 6
        assert to_float64(mean(raws, dtype), dtype)[0] == largest
    huge = [np.array([1.7e308])] * 3
    assert mean(huge, "F64")[0] == 1.7e308


def test_agrees_with_torch_on_ordinary_weights() -> None:
    torch = pytest.importorskip("torch")
    tensors = [torch.randn(5000, generator=torch.Generator().manual_seed(seed)).bfloat16() for seed in range(6)]
    ours = mean([tensor.view(torch.uint16).numpy() for tensor in tensors], "BF16")
    theirs = torch.stack(tensors).double().mean(0).bfloat16()
    assert torch.equal(torch.from_numpy(ours).view(torch.bfloat16), theirs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_of_any_size_give_the_same(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raws = [hard_numbers(dtype, 300, seed).reshape(20, 15) for seed in range(3)]
    whole = mean(raws, dtype)
    monkeypatch.setattr(module, "BLOCK", 7)
    assert mean(raws, dtype).tobytes() == whole.tobytes()
    assert whole.shape == (20, 15)


def test_more_inputs_than_float32_can_divide_by() -> None:
    # Every sum is exact in float32, but the quotient, just above a tie, becomes that tie there.
    above = np.array([1 + 2.0**-10], "<f2")
    assert mean([above] * 8192 + [np.ones(1, "<f2")] * 8191, "F16") == above


@pytest.mark.parametrize("inputs", [1, 2, 3])
@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7F81, 0x7FFF, 0xFFFF, 0x7FC0])
def test_no_number_in_no_number_out(inputs: int, weights: bool, bits: int) -> None:
    for place in range(inputs):
        raws = [np.full(9, 0x3F80, "<u2") for _ in range(inputs)]
        raws[place][4] = bits
        given = [1 / inputs] * inputs if weights else None
        found = to_float64(mean(raws, "BF16", given), "BF16")
        assert np.isfinite(found).tolist() == [True] * 4 + [False] + [True] * 4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1.0, 1e-3, 1e-25, 1e25, 1e37])
@pytest.mark.parametrize("count", [5, 1024, 5000])
def test_squares(dtype: str, size: float, count: int) -> None:
    if dtype == "F16" and not 1e-6 < size < 1e4:
        return
    rng = np.random.default_rng(0)
    raws = [from_float64(size * rng.standard_normal(count), dtype) for _ in range(3)]
    raws[2] = raws[1]
    blocks, result = BlockMean(dtype, None, 3, count), np.empty_like(raws[0])
    blocks.mean(raws, result)
    found, norm = blocks.squares(raws, result)
    center = to_float64(result, dtype)
    assert norm == pytest.approx((center**2).sum(), rel=1e-5)
    assert found == pytest.approx([((to_float64(raw, dtype) - center) ** 2).sum() for raw in raws], rel=1e-5)
    assert blocks.squares([result], result)[0] == 0
