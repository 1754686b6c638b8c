"""``cross_entropy_rows.py`` on a GPU: two Triton kernels that read bfloat16 logits and compute in float32 registers.

Limited by memory: the first kernel reads the logits once, the second reads and writes them once. Importing this file
imports Triton, which comes with torch's CUDA wheels, so it is imported only where there are CUDA tensors.

A part of the logits may have more than 2**31 numbers: offsets of rows are int64.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from megatron_apriel.batch import IGNORED_LABEL

BLOCK = 8192
"""Logits that a program holds at a time: 32 numbers in each of 256 threads."""
WARPS = 8


def row_statistics(logits_TV: Tensor, labels_T: Tensor, first_entry: int) -> tuple[Tensor, Tensor, Tensor]:
    """Per row the largest logit, the sum of exp(logit - largest), and the label's logit; float32 [T] each."""
    rows, entries = logits_TV.shape
    statistics_3T = torch.empty(3, rows, dtype=torch.float32, device=logits_TV.device)
    _statistics_kernel[(rows,)](
        logits_TV, logits_TV.stride(0), labels_T, statistics_3T, rows, first_entry, entries, BLOCK, num_warps=WARPS
    )
    return statistics_3T[0], statistics_3T[1], statistics_3T[2]


def turn_into_gradient(
    logits_TV: Tensor, labels_T: Tensor, first_entry: int, maximum_T: Tensor, total_T: Tensor
) -> None:
    """Overwrite logits by softmax - onehot; 0 in rows of ignored labels."""
    rows, entries = logits_TV.shape
    _gradient_kernel[(rows, triton.cdiv(entries, BLOCK))](
        logits_TV,
        logits_TV.stride(0),
        labels_T,
        maximum_T,
        total_T,
        first_entry,
        entries,
        IGNORED_LABEL,
        BLOCK,
        num_warps=WARPS,
    )


@triton.jit  # type: ignore[untyped-decorator]
def _statistics_kernel(
    logits: tl.tensor,
    row_stride: tl.tensor,
    labels: tl.tensor,
    statistics: tl.tensor,
    rows: tl.tensor,
    first_entry: tl.tensor,
    entries: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """One program per row: the sum follows the maximum as it grows (online softmax, arXiv 1805.02867)."""
    row = tl.program_id(0).to(tl.int64)
    row_logits = logits + row * row_stride
    maximum = float("-inf")
    total = 0.0
    for start in range(0, entries, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        block = tl.load(row_logits + columns, mask=columns < entries, other=float("-inf")).to(tl.float32)
        larger = tl.maximum(maximum, tl.max(block, axis=0))
        total = total * tl.exp(maximum - larger) + tl.sum(tl.exp(block - larger), axis=0)
        maximum = larger
    column = tl.load(labels + row) - first_entry
    mine = (column >= 0) & (column < entries)
    tl.store(statistics + row, maximum)
    tl.store(statistics + rows + row, total)
    tl.store(statistics + 2 * rows + row, tl.load(row_logits + column, mask=mine, other=0.0).to(tl.float32))


@triton.jit  # type: ignore[untyped-decorator]
def _gradient_kernel(
    logits: tl.tensor,
    row_stride: tl.tensor,
    labels: tl.tensor,
    maximum: tl.tensor,
    total: tl.tensor,
    first_entry: tl.tensor,
    entries: tl.tensor,
    IGNORED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program per row and block of columns."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < entries
    label = tl.load(labels + row)
    place = logits + row * row_stride + columns
    block = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    softmax = tl.exp(block - tl.load(maximum + row)) / tl.load(total + row)
    gradient = tl.where(columns == label - first_entry, softmax - 1.0, softmax)
    tl.store(place, tl.where(label == IGNORED, 0.0, gradient), mask=inside)
