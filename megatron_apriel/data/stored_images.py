"""Images as a corpus stores them: encoded bytes that every decoder turns into the same 8-bit RGB pixels.

Raw data sets hold everything: photographs that a flag says to rotate, drawings with transparency, CMYK scans, 16-bit
microscopy, palettes, animations. Decoders disagree on all of these (DALI drops alpha without blending, nvJPEG ignores
the flag), so they are settled here, once, when a corpus is prepared: orientation applied, transparency blended onto
white, everything else turned into an RGB PNG, which loses nothing. A plain 8-bit JPEG or RGB PNG, the usual case,
is kept byte for byte. Every image is decoded completely, so that damage is found now and not in the middle of a run.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_apriel.data.picture_files import (
    DECODER_ERRORS,
    FORMATS,
    JPEG_FORMATS,
    check_cost,
    check_scans,
    jpeg_segments,
    open_picture,
)
from megatron_apriel.data.problems import BadRecord
from megatron_apriel.data.read_limits import DEFAULT_LIMITS, ReadLimits

if TYPE_CHECKING:
    from PIL import Image

_ORIENTATION = 0x0112
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # of TIFF
_JPEG_SIZE_MARKERS = (0xC0, 0xC1, 0xC2)  # baseline, extended sequential, progressive; all Huffman-coded
_TILE = 1024
"""Side of the pieces in which pixels are converted, so that only the result takes memory."""


@dataclass(frozen=True)
class EncodedImage:
    """Bytes of a JPEG or PNG, with the height and width that they decode to."""

    data: bytes
    height: int
    width: int


def encode_for_corpus(data: bytes, limits: ReadLimits = DEFAULT_LIMITS) -> EncodedImage:
    """Check an image by decoding it and return it in the form that a corpus stores.

    Args:
        data: the bytes of an image file in one of ``FORMATS``.
        limits: on what decoding takes, looked at before.

    Raises:
        BadRecord: not an image, damaged, too large, or of a kind whose pixels have no defined colours.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise BadRecord("an image has 0 bytes")
    with warnings.catch_warnings():
        # Pillow warns about sizes that are checked here, and about harmless metadata.
        warnings.simplefilter("ignore")
        try:
            with open_picture(data) as image:
                if image.format in JPEG_FORMATS:
                    check_scans(data)
                check_cost(image, limits, converted=not _may_be_plain(image, data))
                image.load()
                if _is_plain(image, data):
                    return EncodedImage(data, image.height, image.width)
                return _as_png(upright_rgb(image, limits))
        except UnidentifiedImageError:
            raise BadRecord(
                f"an image of {len(data)} bytes, beginning {data[:8]!r}, is none of {', '.join(FORMATS)}"
            ) from None
        except Image.DecompressionBombError as error:
            raise BadRecord(f"an image is too large to decode: {error}") from None
        except MemoryError:
            raise BadRecord(f"there is not enough memory to decode an image of {len(data)} bytes") from None
        except DECODER_ERRORS as error:
            raise BadRecord(f"an image of {len(data)} bytes is damaged: {error or type(error).__name__}") from None


def picture_pixels(data: bytes) -> int:
    """Height x width by an image's header; 0 where it cannot be read."""
    from PIL import Image, UnidentifiedImageError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with open_picture(data) as image:
                return image.height * image.width
        except (BadRecord, UnidentifiedImageError, Image.DecompressionBombError, MemoryError, *DECODER_ERRORS):
            return 0


def _may_be_plain(image: Image.Image, data: bytes) -> bool:
    """Whether it can be kept byte for byte, as far as its header says."""
    if image.format in JPEG_FORMATS:
        # Transform 0 says that three components are RGB itself; not every decoder reads that mark.
        return image.mode in ("L", "RGB") and image.info.get("adobe_transform") != 0
    # The header's fixed place: bit depth, colour type (2 is RGB without alpha or palette).
    return image.format == "PNG" and data[24] == 8 and data[25] == 2 and "transparency" not in image.info


def _is_plain(image: Image.Image, data: bytes) -> bool:
    """Whether every decoder reads the bytes as they are: no rotation, alpha, palette, CMYK, 16 bits or animation."""
    if image.getexif().get(_ORIENTATION, 1) != 1 or not _may_be_plain(image, data):
        return False
    if image.format in JPEG_FORMATS:
        return _plain_jpeg(data)
    return not getattr(image, "is_animated", False) and _has_end(data)


def _has_end(data: bytes) -> bool:
    """Whether a PNG has its last chunk: Pillow has all pixels without it, and other decoders refuse the file."""
    place = 8
    while data[place + 4 : place + 8] not in (b"IEND", b""):
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    return data[place : place + 12] == b"\0\0\0\0IEND\xaeB`\x82"


def _plain_jpeg(data: bytes) -> bool:
    """Whether the frame is 8-bit baseline, extended or progressive with Huffman coding."""
    for marker, place in jpeg_segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return marker in _JPEG_SIZE_MARKERS and data[place + 4 : place + 5] == b"\x08"
    return False


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
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    check_cost(image, limits, converted=True, turned=turn is not None)
    colour = image.info.get("transparency")
    if isinstance(colour, tuple) and max(colour) > 255:
        raise BadRecord("an image has 16 bits per colour and one transparent colour, which 8 bits cannot tell")
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


def _as_png(image: Image.Image) -> EncodedImage:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return EncodedImage(buffer.getvalue(), image.height, image.width)
