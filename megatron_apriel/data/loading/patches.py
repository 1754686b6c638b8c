"""From an image to the list of patches that the tower reads."""

from __future__ import annotations

import torch
from torch import Tensor


def patchify(pixels_CHW: Tensor, patch_size: int) -> Tensor:
    """Cut an image into patches, [rows * columns, channels * patch_size * patch_size].

    Patches come row by row; the numbers of a patch in the order channel, row, column, which is the order of the
    weights of a convolution, so that the patch embedding is one matrix product.

    Args:
        pixels_CHW: [channels, rows * patch_size, columns * patch_size].
    """
    channels, height, width = pixels_CHW.shape
    rows, columns = height // patch_size, width // patch_size
    cut = pixels_CHW.reshape(channels, rows, patch_size, columns, patch_size)
    return cut.permute(1, 3, 0, 2, 4).reshape(rows * columns, channels * patch_size**2)


def patch_places(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Row and column of every patch of an image in the order of :func:`patchify`, two int64 [rows * columns]."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return row.reshape(-1), column.reshape(-1)
