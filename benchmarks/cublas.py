"""Every algorithm that cuBLAS offers for a matrix product, and the product by one of them.

Transformer Engine and torch ask cuBLAS for one algorithm and take it. cuBLAS chooses by rules, without running
anything; whether another is faster on this GPU, at the clock that its power leaves, only a measurement can tell. The
library is the one that torch has loaded, called through its C interface (cuBLAS documentation, "Using the cuBLASLt
API").

Matrices are torch's: by rows. cuBLAS reads them by columns, hence as their transposes, so ``left @ right`` is asked for
as ``right.T @ left.T``, whose result is the transpose of what is wanted, by columns: what is wanted, by rows.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import torch
from torch import Tensor

_TYPES = {torch.float32: 0, torch.bfloat16: 14}
"""``cudaDataType`` of a matrix."""
_COMPUTE_FLOAT32 = 68
_TRANSPOSE_A, _TRANSPOSE_B, _LARGEST_WORKSPACE = 3, 4, 1
"""Numbers of attributes, of a product and of the search for algorithms."""
WORKSPACE = 32 * 2**20
"""Bytes that an algorithm may use, as Transformer Engine gives them on Hopper."""


class Algorithm(ctypes.Structure):
    """``cublasLtMatmulHeuristicResult_t``: an algorithm and what it needs."""

    _fields_ = (
        ("algorithm", ctypes.c_uint64 * 8),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


@dataclass(frozen=True)
class _Operand:
    """A matrix as it lies in memory, by rows; or the transpose of one that lies so."""

    stored: Tensor
    transposed: bool

    @classmethod
    def of(cls, matrix: Tensor) -> _Operand:
        if matrix.is_contiguous():
            return cls(matrix, transposed=False)
        if matrix.t().is_contiguous():
            return cls(matrix.t(), transposed=True)
        raise ValueError("a matrix must lie in memory by rows or by columns, without gaps")


class Product:
    """``out = left @ right``, or ``out += left @ right``, of matrices in bfloat16 on this process's GPU.

    Args:
        left, right: [M, K] and [K, N], contiguous or the transposes of contiguous matrices.
        out: [M, N], contiguous, bfloat16 or float32.
        accumulate: add to ``out``.

    Raises:
        RuntimeError: where cuBLAS refuses.
    """

    def __init__(self, left: Tensor, right: Tensor, out: Tensor, *, accumulate: bool) -> None:
        # By columns the two change places.
        self._first, self._second, self._out = _Operand.of(right), _Operand.of(left), out
        self._beta = ctypes.c_float(1.0 if accumulate else 0.0)
        self._alpha = ctypes.c_float(1.0)
        self._workspace = torch.empty(WORKSPACE, dtype=torch.uint8, device=out.device)
        self._description = _created("cublasLtMatmulDescCreate", _COMPUTE_FLOAT32, _TYPES[torch.float32])
        for attribute, operand in ((_TRANSPOSE_A, self._first), (_TRANSPOSE_B, self._second)):
            _set("cublasLtMatmulDescSetAttribute", self._description, attribute, ctypes.c_int32(operand.transposed))
        self._layouts = [_layout(matrix) for matrix in (self._first.stored, self._second.stored, out)]

    def algorithms(self, most: int = 64) -> list[Algorithm]:
        """What cuBLAS offers, the one that it would take first."""
        preference = _created("cublasLtMatmulPreferenceCreate")
        _set("cublasLtMatmulPreferenceSetAttribute", preference, _LARGEST_WORKSPACE, ctypes.c_uint64(WORKSPACE))
        found, count = (Algorithm * most)(), ctypes.c_int()
        first, second, out = self._layouts
        _call(
            "cublasLtMatmulAlgoGetHeuristic",
            *(_handle(), self._description, first, second, out, out, preference),
            *(ctypes.c_int(most), found, ctypes.byref(count)),
        )
        return [one for one in found[: count.value] if one.state == 0]

    def run(self, algorithm: Algorithm) -> None:
        """Compute by ``algorithm``; queued on the current stream, not waited for."""
        first, second, out = self._layouts
        memory = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (self._first.stored, self._second.stored, self._out)]
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        _call(
            "cublasLtMatmul",
            *(_handle(), self._description, ctypes.byref(self._alpha), memory[0], first, memory[1], second),
            *(ctypes.byref(self._beta), memory[2], out, memory[2], out, ctypes.byref(algorithm)),
            *(ctypes.c_void_p(self._workspace.data_ptr()), ctypes.c_size_t(WORKSPACE), stream),
        )


def _layout(matrix: Tensor) -> ctypes.c_void_p:
    """Of a matrix by rows, described by columns."""
    rows, columns = matrix.shape
    sizes = (ctypes.c_uint64(columns), ctypes.c_uint64(rows), ctypes.c_int64(columns))
    return _created("cublasLtMatrixLayoutCreate", _TYPES[matrix.dtype], *sizes)


@functools.cache
def _handle() -> ctypes.c_void_p:
    return _created("cublasLtCreate")


@functools.cache
def _library() -> ctypes.CDLL:
    # Torch has loaded it, from wherever its packages lie: by its name alone it is found again.
    return ctypes.CDLL(f"libcublasLt.so.{(torch.version.cuda or '').split('.')[0]}")


def _created(function: str, *arguments: object) -> ctypes.c_void_p:
    made = ctypes.c_void_p()
    _call(function, ctypes.byref(made), *arguments)
    return made


def _set(function: str, of: ctypes.c_void_p, attribute: int, value: ctypes.c_int32 | ctypes.c_uint64) -> None:
    _call(function, of, ctypes.c_int(attribute), ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value)))


def _call(function: str, *arguments: object) -> None:
    status = getattr(_library(), function)(*arguments)
    if status:
        raise RuntimeError(f"{function} returned {status} (cublasStatus_t)")
