"""What cross entropy does to the rows of a matrix of logits: three numbers per row, and the gradient in place.

Both functions read each logit in the type it has and compute in float32 (float64 for float64). On a GPU they are one
kernel each (``cross_entropy_kernels.py``), so that no float32 copy of the logits exists there; elsewhere they are
written in torch, a few rows at a time for the same reason.

A row is a token. A tensor-parallel rank has a run of the vocabulary, from ``first_entry`` on; a label outside of it,
``IGNORED_LABEL`` included, is somebody else's.

Shape letters: T tokens, R rows at a time, V entries of the vocabulary on this rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_apriel.batch import IGNORED_LABEL

LOGITS_AT_A_TIME = 2**22
"""How many logits torch's version copies at once, so that its temporary tensors stay at 16 MiB each."""


class RowStatistics(NamedTuple):
    """Per row: its largest logit, the sum of exp(logit - largest), and its label's logit (0 where it has none)."""

    maximum_T: Tensor
    total_T: Tensor
    target_T: Tensor

    def losses(self) -> Tensor:
        """log(sum of exp(logits)) - label's logit, per row."""
        return self.total_T.log() + self.maximum_T - self.target_T


def row_statistics(logits_TV: Tensor, labels_T: Tensor, first_entry: int) -> RowStatistics:
    """The three numbers of every row, over this rank's entries."""
    if _has_kernels(logits_TV):
        from megatron_apriel.model import cross_entropy_kernels

        return RowStatistics(*cross_entropy_kernels.row_statistics(logits_TV, labels_T, first_entry))
    return row_statistics_by_torch(logits_TV, labels_T, first_entry)


def turn_into_gradient(logits_TV: Tensor, labels_T: Tensor, first_entry: int, statistics: RowStatistics) -> None:
    """Overwrite logits by the gradient of the sum of losses: softmax - onehot, and 0 in rows of ignored labels.

    Args:
        statistics: over the whole vocabulary, not this rank's entries only.
    """
    if _has_kernels(logits_TV):
        from megatron_apriel.model import cross_entropy_kernels

        cross_entropy_kernels.turn_into_gradient(
            logits_TV, labels_T, first_entry, statistics.maximum_T, statistics.total_T
        )
    else:
        turn_into_gradient_by_torch(logits_TV, labels_T, first_entry, statistics)


def row_statistics_by_torch(logits_TV: Tensor, labels_T: Tensor, first_entry: int) -> RowStatistics:
    """:func:`row_statistics` on any device."""
    wide = torch.promote_types(logits_TV.dtype, torch.float32)
    columns_T, mine_T = _columns(logits_TV, labels_T, first_entry)
    maximum_T = logits_TV.amax(1).to(wide)
    target_T = logits_TV.gather(1, columns_T[:, None])[:, 0].to(wide).where(mine_T, 0.0)
    total_T = torch.empty_like(maximum_T)
    for rows in _pieces(logits_TV):
        total_T[rows] = (logits_TV[rows].to(wide) - maximum_T[rows, None]).exp_().sum(1)
    return RowStatistics(maximum_T, total_T, target_T)


def turn_into_gradient_by_torch(
    logits_TV: Tensor, labels_T: Tensor, first_entry: int, statistics: RowStatistics
) -> None:
    """:func:`turn_into_gradient` on any device."""
    columns_T, mine_T = _columns(logits_TV, labels_T, first_entry)
    for rows in _pieces(logits_TV):
        shifted_RV = logits_TV[rows].to(statistics.maximum_T.dtype) - statistics.maximum_T[rows, None]
        softmax_RV = shifted_RV.exp_().div_(statistics.total_T[rows, None])
        # The difference is taken before rounding to the logits' type: close to the label the two nearly cancel.
        softmax_RV.scatter_add_(1, columns_T[rows, None], -mine_T[rows, None].to(softmax_RV.dtype))
        logits_TV[rows] = softmax_RV.masked_fill_((labels_T[rows] == IGNORED_LABEL)[:, None], 0.0)


def _has_kernels(logits_TV: Tensor) -> bool:
    return logits_TV.is_cuda and logits_TV.dtype != torch.float64


def _columns(logits_TV: Tensor, labels_T: Tensor, first_entry: int) -> tuple[Tensor, Tensor]:
    """The label's column, 0 where it is not on this rank; and whether it is."""
    columns_T = labels_T - first_entry
    mine_T = (columns_T >= 0) & (columns_T < logits_TV.shape[1])
    return columns_T.where(mine_T, 0), mine_T


def _pieces(logits_TV: Tensor) -> Iterator[slice]:
    """Runs of rows with no more logits than torch's version copies at once."""
    rows, entries = logits_TV.shape
    length = max(LOGITS_AT_A_TIME // entries, 1)
    return (slice(start, start + length) for start in range(0, rows, length))
