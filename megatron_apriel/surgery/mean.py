"""The mean of numbers in low precision, rounded once.

Averaging checkpoints in their own precision loses what averaging is for: the mean of six bfloat16 numbers, summed in
bfloat16, keeps two or three digits. And rounding twice, to float32 and then to bfloat16, is wrong wherever the first
rounding lands halfway between two bfloat16 numbers. So here:

* **Equal weights.** The result is the exact mean, rounded once to the tensor's dtype, ties to even. Sums run in
  float64, exact unless summands differ by more than some 2^29 (float32) or 2^45 (bfloat16) in size; the few elements
  where it is not are found and computed again with exact fractions.
* **Given weights.** They are divided by their sum. The result is ``w0*x0 + w1*x1 + ...``, in that order in float64,
  rounded once.

NumPy has no bfloat16: such arrays hold their bits as uint16. No file, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

STORAGE: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2"),
    "U8": np.dtype("u1"), "I8": np.dtype("i1"), "BOOL": np.dtype("u1"), "U16": np.dtype("<u2"), "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"), "I32": np.dtype("<i4"), "U64": np.dtype("<u8"), "I64": np.dtype("<i8"),
}  # fmt: skip
"""NumPy dtype that holds a tensor's bytes, by safetensors dtype."""

FLOATS = ("F64", "F32", "F16", "BF16")
"""Dtypes that are averaged; tensors of the others in ``STORAGE`` must be the same in all inputs."""

_PRECISION_AND_SMALLEST_EXPONENT = {"BF16": (8, -126), "F16": (11, -14), "F32": (24, -126)}

Raw = NDArray
"""An array of ``STORAGE[dtype]``."""


def to_float64(raw: Raw, dtype: str) -> NDArray[np.float64]:
    """The numbers, exactly."""
    if dtype == "BF16":
        return (raw.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    return raw.astype(np.float64)


def from_float64(numbers: NDArray[np.float64], dtype: str) -> Raw:
    """Round once, to nearest, ties to even."""
    if dtype != "BF16":
        return numbers.astype(STORAGE[dtype])
    # By way of float32 rounded *to odd*: where float64 does not fit, the last bit is set, which keeps "a little above"
    # and "a little below" a tie apart for the second rounding (Boldo and Melquiond, 2008).
    nearest = numbers.astype(np.float32)
    bits = nearest.view(np.uint32)
    inexact = (nearest != numbers) & ((bits & 1) == 0)
    if inexact.any():
        away = np.abs(numbers) > np.abs(nearest)
        bits = np.where(inexact, np.where(away, bits + 1, bits - 1), bits)
    tie_to_even = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return ((bits + tie_to_even) >> np.uint32(16)).astype(np.uint16)


def normalised(weights: Sequence[float]) -> tuple[float, ...] | None:
    """Weights divided by their sum, rounded to float64; None if they are all equal, which is computed exactly."""
    if all(weight == weights[0] for weight in weights):
        return None
    exact = [Fraction(weight) for weight in weights]  # a sum of floats may overflow
    return tuple(float(weight / sum(exact)) for weight in exact)


def mean(inputs: Sequence[Raw], dtype: str, weights: Sequence[float] | None = None) -> Raw:
    """The mean of arrays, element by element, rounded once.

    Args:
        inputs: finite numbers of one float dtype and one shape, as ``STORAGE`` holds them.
        dtype: theirs and the result's.
        weights: adding up to 1; None for the equal mean.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # float64 inputs may overflow in the sum; found as inexact
        return _equal_mean(inputs, dtype) if weights is None else _weighted_mean(inputs, dtype, weights)


def _weighted_mean(inputs: Sequence[Raw], dtype: str, weights: Sequence[float]) -> Raw:
    total = to_float64(inputs[0], dtype) * weights[0]
    for raw, weight in zip(inputs[1:], weights[1:], strict=True):
        total += to_float64(raw, dtype) * weight
    return from_float64(total, dtype)


def _equal_mean(inputs: Sequence[Raw], dtype: str) -> Raw:
    total = to_float64(inputs[0], dtype)
    uncertain = np.zeros(total.shape, dtype=bool)
    for raw in inputs[1:]:
        summand = to_float64(raw, dtype)
        larger = total + summand
        # One of the two differences is exact (the one that takes the larger summand away, by Dekker), and shows a loss.
        uncertain |= (larger - total != summand) | (larger - summand != total)
        total = larger
    quotient = total / len(inputs)
    # Where the sum is exact, rounding its quotient again is right: a quotient that falls on a tie is that tie. If it
    # were off, by at most half its last bit, the sum would differ from n ties by at most n/2 of that bit, which is less
    # than the sum's own last bit; and both are multiples of that.
    result = from_float64(quotient, dtype)
    for place in zip(*np.nonzero(uncertain), strict=True):
        numbers = [Fraction(float(to_float64(raw[place], dtype))) for raw in inputs]
        exact = _rounded(sum(numbers, Fraction()) / len(inputs), dtype)
        result[place] = from_float64(np.array([exact]), dtype)[0]
    return result


def _rounded(number: Fraction, dtype: str) -> float:
    """The nearest number of ``dtype``, ties to even, by whole-number arithmetic."""
    if dtype == "F64" or number == 0:
        return float(number)
    precision, smallest = _PRECISION_AND_SMALLEST_EXPONENT[dtype]
    magnitude = abs(number)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if magnitude < Fraction(2) ** exponent:
        exponent -= 1
    unit = max(exponent, smallest) - precision + 1
    return math.ldexp(round(number / Fraction(2) ** unit), unit)
