"""The 8-bit RGB pixels that a raw image means.

Raw data sets hold everything: photographs that a flag says to rotate, drawings with transparency, CMYK scans, 16-bit
microscopy, palettes, animations. Decoders disagree on all of these, so they are settled here, once: orientation
applied, transparency blended onto white, 16 bits scaled, the first picture of several.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_apriel.data.raw.pictures.image_files import check_cost
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS, ReadLimits

if TYPE_CHECKING:
    from PIL import Image

ORIENTATION = 0x0112
"""The tag of EXIF that says how a picture is to be turned."""
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # of TIFF
_TILE = 1024
"""Side of the pieces in which pixels are converted, so that only the result takes memory."""


def upright_rgb(image: Image.Image, limits: ReadLimits = DEFAULT_LIMITS) -> Image.Image:
    """The first picture as 8-bit RGB: orientation applied, 16 bits scaled, transparency blended onto white.

    The image is closed before its copy is turned, so that there are never more than two in memory.

    Raises BadRecord for pixels that have no defined colours, or that take more than is allowed, and what
    ``DECODER_ERRORS`` lists for damaged data.
    """
    from PIL import Image

    if image.mode == "F":
        raise BadRecord("an image has floating-point pixels, which have no defined white")
    image.load()
    turn = _TURNS.get(image.getexif().get(ORIENTATION, 1))
    check_cost(image, limits, converted=True, turned=turn is not None)
    colour = image.info.get("transparency")
    if isinstance(colour, tuple) and max(colour) > 255:
        raise BadRecord("an image has 16 bits per colour and one transparent colour, which 8 bits cannot hold")
    most = _most_value(image) if image.mode.startswith("I") else 0
    result = Image.new("RGB", image.size)
    for top in range(0, image.height, _TILE):
        for left in range(0, image.width, _TILE):
            box = (left, top, min(left + _TILE, image.width), min(top + _TILE, image.height))
            part = image.crop(box)
            result.paste(_rgb(_eight_bits(part, most, getattr(image, "tag_v2", {})) if most else part), box)
    image.close()
    # Pillow's own function also writes the metadata anew, which fails where other fields of it are damaged.
    return result if turn is None else result.transpose(Image.Transpose(turn))


_TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""Orientations of EXIF and ``PIL.Image.Transpose``, which is not imported until there is an image."""


def _rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode not in ("RGBA", "LA", "PA", "RGBa", "La") and "transparency" not in image.info:
        return image.convert("RGB")
    premultiplied = {"RGBa": "RGBA", "La": "LA"}.get(image.mode)
    transparent = (image.convert(premultiplied) if premultiplied else image).convert("RGBA")
    white = Image.new("RGBA", transparent.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, transparent).convert("RGB")


def _most_value(image: Image.Image) -> int:
    """The value of white of a grey image of 12 or 16 bits. Raises BadRecord for values beyond."""
    most = 4095 if getattr(image, "tag_v2", {}).get(_BITS) == (12,) else 65535
    low, high = image.getextrema()
    if low < 0 or high > most:  # type: ignore[operator]
        raise BadRecord(f"an image has values from {low} to {high}, more than {most.bit_length()} bits")
    return most


def _eight_bits(image: Image.Image, most: int, tags: Mapping[int, Any]) -> Image.Image:
    """A grey image of values up to ``most`` on the scale of 8 bits, rounded, with alpha where a value is transparent.

    Pillow applies neither a TIFF's depth nor its mark that 0 is white to these; ``tags`` are the TIFF's.
    """
    from PIL import Image

    values = np.asarray(image).astype(np.int64)
    levels = most - values if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else values
    grey = Image.fromarray(((levels * 255 + most // 2) // most).astype(np.uint8))
    if (transparent := image.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey
