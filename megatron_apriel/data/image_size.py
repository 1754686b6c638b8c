"""How many patches an image of given pixels becomes: the one rule that tokens, decoder and tower must share.

An image keeps its aspect. If a side exceeds the limit, both sides are divided by the larger ratio and made whole; then
each side is rounded up to whole patches, which stretches the image by less than one patch. References differ in how
they make the divided side whole, and the patch grid differs with it for about 3% of large images:

    floor   Hugging Face's PixtralImageProcessor; the reference here, since exported checkpoints are served through it
    round   mistral-common (to the nearest, halves to even)

No torch, no project imports but errors.
"""

from __future__ import annotations

import math
from typing import Literal

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
    ratio = max(height / image_size, width / image_size)
    if ratio > 1:
        whole = math.floor if rounding == "floor" else round
        height, width = int(whole(height / ratio)), int(whole(width / ratio))
    return max(1, -(-height // patch_size)), max(1, -(-width // patch_size))


def image_tokens(rows: int, columns: int) -> int:
    """Tokens of an image of ``rows`` x ``columns`` patches: each row is closed by a break, the last by an end."""
    return rows * (columns + 1)
