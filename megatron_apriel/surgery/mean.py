"""The mean of numbers in low precision, rounded once.

Averaging checkpoints in their own precision loses what averaging is for: the mean of six bfloat16 numbers, summed in
bfloat16, keeps two or three digits. And rounding twice, to float32 and then to bfloat16, is wrong wherever the first
rounding lands halfway between two bfloat16 numbers. So here:

* **Equal weights.** The result is the exact mean, rounded once to the tensor's dtype, ties to even. Sums run in the
  narrowest type that nearly always holds them exactly: float32 for 16-bit numbers (unless summands differ by more than
  some 2^14 in size), float64 for others (2^29 for float32). The few elements where a sum was rounded are found and
  computed again: in float64, and where that is not enough, with exact fractions.
* **Given weights.** They are divided by their sum. The result is ``w0*x0 + w1*x1 + ...``, in that order in float64,
  rounded once.

Why a quotient may be rounded again: let the sum S of n numbers be exact in p bits, and let S/n, rounded to p bits, fall
on a tie t of the result's dtype. It was off by at most half its last bit, so S differs from n*t by at most n/2 of that
bit, which is less than the last bit of S; and both are multiples of that, as long as n*t fits p bits. So S = n*t: the
quotient is a true tie. Anywhere else, the first rounding cannot cross a tie.

All of this is done in blocks whose arrays stay in a processor's cache, in arrays that are made once: several times as
fast as whole tensors.

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
"""NumPy dtype that holds a tensor's bytes, by safetensors dtype.

Those of ``FLOATS`` are averaged; tensors of the others must be the same in all inputs.
"""

BLOCK = 1 << 17
"""Elements of a block. In smaller ones, threads that compute wait for the interpreter between operations: half the size
takes a fifth longer."""

_PRECISION_AND_SMALLEST_EXPONENT = {"BF16": (8, -126), "F16": (11, -14), "F32": (24, -126)}

_MOST_IN_FLOAT32 = 1 << 10
"""Inputs that may be summed in float32: n times a tie of float16, which has 12 bits, must fit its 24."""

_DOT = 1024
"""Elements that a dot product takes at once: few enough for float32's digits, and the linear-algebra library starts
threads of its own above 10,000."""

_LEAST_IN_FLOAT32 = 1e-30
"""A sum of squares above that has lost nothing to squares that float32 makes zero."""

Raw = NDArray
"""An array of ``STORAGE[dtype]``."""


def to_float64(raw: Raw, dtype: str) -> NDArray[np.float64]:
    """The numbers, exactly."""
    numbers = np.empty(raw.shape, np.float64)
    _widen(raw, dtype, numbers)
    return numbers


def _widen(raw: Raw, dtype: str, numbers: NDArray) -> None:
    """Write the numbers, exactly, into an array of floats."""
    if dtype != "BF16":
        np.copyto(numbers, raw)
    elif numbers.dtype == np.float32:
        bits = numbers.view(np.uint32)
        np.copyto(bits, raw)
        np.left_shift(bits, 16, out=bits)
    else:
        np.copyto(numbers, (raw.astype(np.uint32) << np.uint32(16)).view(np.float32))


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
    result = np.empty(bits.shape, np.uint16)
    _round_to_bfloat16(bits, np.empty_like(bits), result)
    return result


def _round_to_bfloat16(bits: NDArray[np.uint32], scratch: NDArray[np.uint32], result: NDArray[np.uint16]) -> None:
    """Round float32 numbers, given by their bits, to nearest, ties to even."""
    np.right_shift(bits, 16, out=scratch)
    np.bitwise_and(scratch, 1, out=scratch)
    np.add(scratch, 0x7FFF, out=scratch)
    np.add(scratch, bits, out=scratch)
    np.right_shift(scratch, 16, out=scratch)
    np.copyto(result, scratch, casting="unsafe")  # 16 bits are left


def normalised(weights: Sequence[float]) -> tuple[float, ...] | None:
    """Weights divided by their sum, rounded to float64; None if they are all equal, which is computed exactly."""
    if all(weight == weights[0] for weight in weights):
        return None
    exact = [Fraction(weight) for weight in weights]  # a sum of floats may overflow
    return tuple(float(weight / sum(exact)) for weight in exact)


def mean(inputs: Sequence[Raw], dtype: str, weights: Sequence[float] | None = None) -> Raw:
    """The mean of arrays, element by element, rounded once.

    Args:
        inputs: numbers of one float dtype and one shape, as ``STORAGE`` holds them.
        dtype: theirs and the result's.
        weights: adding up to 1; None for the equal mean.
    """
    flat = [raw.reshape(-1) for raw in inputs]
    result = np.empty_like(flat[0])
    blocks = BlockMean(dtype, weights, len(inputs), min(BLOCK, result.size))
    for begin in range(0, result.size, BLOCK):
        blocks.mean([raw[begin : begin + BLOCK] for raw in flat], result[begin : begin + BLOCK])
    return result.reshape(inputs[0].shape)


def _type_of_sums(dtype: str, weights: Sequence[float] | None, inputs: int) -> type[np.floating]:
    narrow = dtype in ("BF16", "F16") and weights is None and inputs <= _MOST_IN_FLOAT32
    return np.float32 if narrow else np.float64


class BlockMean:
    """Means of blocks of numbers of one dtype, in arrays that are made once. For one thread.

    Args:
        dtype: of inputs and results.
        weights: adding up to 1; None for the equal mean.
        inputs: how many there are.
        size: elements of a block at most.
        wide: type of the sums, unless it is to be the narrowest that nearly always holds them.
    """

    def __init__(
        self,
        dtype: str,
        weights: Sequence[float] | None,
        inputs: int,
        size: int = BLOCK,
        wide: type[np.floating] | None = None,
    ) -> None:
        self._dtype, self._weights, self._inputs = dtype, weights, inputs
        wide = wide or _type_of_sums(dtype, weights, inputs)
        self._total, self._larger, self._number, self._difference = (np.empty(size, wide) for _ in range(4))
        self._bits = np.empty(size if dtype == "BF16" else 0, np.uint32)
        self._unequal, self._rounded = np.empty(size, bool), np.empty(size, bool)

    def mean(self, raws: Sequence[Raw], result: Raw) -> None:
        """Write the mean of flat arrays into ``result``. Where an input is not finite, neither is the mean."""
        with np.errstate(over="ignore", invalid="ignore"):  # a sum that overflows counts as rounded
            if self._weights is None:
                self._equal_mean(raws, result)
            else:
                self._weighted_mean(raws, result)

    def squares(self, raws: Sequence[Raw], result: Raw) -> tuple[NDArray[np.float64], float]:
        """Squared distance of each input from the mean, and the mean's sum of squares; to some six digits."""
        center, difference = self._total[: result.size], self._difference[: result.size]
        distances = np.empty(len(raws))
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            _widen(result, self._dtype, center)
            for place, raw in enumerate(raws):
                _widen(raw, self._dtype, difference)
                np.subtract(difference, center, out=difference)
                distances[place] = _sum_of_squares(difference)
            return distances, _sum_of_squares(center)

    def _weighted_mean(self, raws: Sequence[Raw], result: Raw) -> None:
        assert self._weights is not None
        total, number = self._total[: result.size], self._number[: result.size]
        total[:] = -0.0  # so that the first sum, too, is the product itself
        for raw, weight in zip(raws, self._weights, strict=True):
            _widen(raw, self._dtype, number)
            np.multiply(number, weight, out=number)
            np.add(total, number, out=total)
        result[:] = from_float64(total, self._dtype)

    def _equal_mean(self, raws: Sequence[Raw], result: Raw) -> None:
        size = result.size
        total, larger, number, difference = (
            array[:size] for array in (self._total, self._larger, self._number, self._difference)
        )
        unequal, rounded = self._unequal[:size], self._rounded[:size]
        _widen(raws[0], self._dtype, total)
        rounded[:] = False
        for raw in raws[1:]:
            _widen(raw, self._dtype, number)
            np.add(total, number, out=larger)
            # One of the two differences is exact (the one that takes the larger summand away, by Dekker), and shows a
            # loss.
            for one, other in ((total, number), (number, total)):
                np.subtract(larger, one, out=difference)
                np.not_equal(difference, other, out=unequal)
                np.logical_or(rounded, unequal, out=rounded)
            total, larger = larger, total
        np.divide(total, len(raws), out=total)
        if total.dtype == np.float64:
            result[:] = from_float64(total, self._dtype)
        elif self._dtype == "BF16":
            _round_to_bfloat16(total.view(np.uint32), self._bits[:size], result)
        else:
            np.copyto(result, total, casting="same_kind")
        if rounded.any():
            places = np.flatnonzero(rounded)
            result[places] = self._computed_again([raw[places] for raw in raws])

    def _computed_again(self, raws: list[Raw]) -> Raw:
        """The mean of elements whose sum was rounded."""
        if self._total.dtype == np.float32:
            result = np.empty_like(raws[0])
            BlockMean(self._dtype, None, self._inputs, result.size, np.float64).mean(raws, result)
            return result
        columns = np.stack([to_float64(raw, self._dtype) for raw in raws], axis=1)
        exact = [_rounded_mean(row, self._dtype) for row in columns.tolist()]
        return from_float64(np.array(exact), self._dtype)


def _sum_of_squares(numbers: NDArray[np.floating]) -> float:
    whole = numbers.size - numbers.size % _DOT
    rows, rest = numbers[:whole].reshape(-1, _DOT), numbers[whole:]
    total = float(np.vecdot(rows, rows).sum(dtype=np.float64) + np.vecdot(rest, rest))
    if numbers.dtype == np.float64 or _LEAST_IN_FLOAT32 < total < math.inf or not numbers.any():
        return total
    return _sum_of_squares(numbers.astype(np.float64))  # squares may be too large for float32, or too small


def _rounded_mean(numbers: Sequence[float], dtype: str) -> float:
    """The exact mean, rounded once; infinity or NaN where there is one among the numbers."""
    if not all(map(math.isfinite, numbers)):
        return sum(numbers)
    return _rounded(sum(map(Fraction, numbers), Fraction()) / len(numbers), dtype)


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
