"""How many patches an image of given pixels becomes: the one rule that tokens, decoder and tower must share.

An image keeps its aspect. If a side exceeds the limit, both sides are divided by the larger ratio and made whole; then
each side is rounded up to whole patches, which stretches the image by less than one patch. References differ in how
they make the divided side whole, and the patch grid differs with it for about 3% of large images:

    floor   Hugging Face's PixtralImageProcessor; the reference here, since exported checkpoints are served through it
    round   mistral-common (to the nearest, halves to even)

No torch, no project imports but errors.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from megatron_apriel.errors import DataError

Rounding = Literal["floor", "round"]


def patch_grid(
    height: int, width: int, image_size: int, patch_size: int, rounding: Rounding = "floor"
) -> tuple[int, int]:
    """Rows and columns of patches of an image, as ``get_resize_output_image_size`` of transformers computes them.

    Args:
        height, width: pixels of the stored image, at least 1.
        image_size: longest side after resizing, pixels.
        patch_size: side of a patch, pixels.
        rounding: how a divided side is made whole.

    An image so thin that its divided side would be 0 pixels (the references fail there) gets one patch.
    Raises DataError for an image without pixels.
    """
    if height < 1 or width < 1:
        raise DataError(f"an image of {height} x {width} pixels has no pixels.")
    rows, columns = patch_grids(np.array([height]), np.array([width]), image_size, patch_size, rounding)
    return int(rows[0]), int(columns[0])


def patch_grids(
    heights: NDArray[np.integer],
    widths: NDArray[np.integer],
    image_size: int,
    patch_size: int,
    rounding: Rounding = "floor",
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """:func:`patch_grid` of many images, each side at least 1: rows and columns, int64."""
    ratios = np.maximum(heights / image_size, widths / image_size)
    whole = np.floor if rounding == "floor" else np.rint  # rint: halves to even, as Python's round
    rows, columns = (
        np.maximum(1, -(-np.where(ratios > 1, whole(sides / ratios), sides).astype(np.int64) // patch_size))
        for sides in (heights, widths)
    )
    return rows, columns


def image_tokens[Number: (int, NDArray[np.int64])](rows: Number, columns: Number) -> Number:
    """Tokens of an image of ``rows`` x ``columns`` patches: each row is closed by a break, the last by an end."""
    return rows * (columns + 1)
