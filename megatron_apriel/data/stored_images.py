"""Images as a corpus stores them: encoded bytes that every decoder turns into the same 8-bit RGB pixels.

Raw data sets hold everything: photographs that a flag says to rotate, drawings with transparency, CMYK scans, 16-bit
microscopy, palettes, animations. Decoders disagree on all of these (DALI drops alpha without blending, nvJPEG ignores
the flag), so they are settled here, once, when a corpus is prepared: orientation applied, transparency blended onto
white, everything else turned into an RGB PNG, which loses nothing. A plain 8-bit JPEG or RGB PNG, the usual case,
is kept byte for byte. Every image is decoded completely, so that damage is found now and not in the middle of a run.
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_apriel.data.problems import BadRecord

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")
"""Formats that are accepted; an animation or a multi-page file gives its first picture."""

MAX_PIXELS = 100_000_000
"""Default limit on height x width: decoding takes 3 bytes for each. Pillow itself refuses above 178,956,970."""

DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error, MemoryError)
"""What Pillow's decoders raise for damaged data, depending on the format and the place of the damage."""

_ORIENTATION = 0x0112
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # of TIFF
_JPEG_SIZE_MARKERS = (0xC0, 0xC1, 0xC2)  # baseline, extended sequential, progressive; all Huffman-coded
_JPEG_WITHOUT_LENGTH = (0x01, 0xD8, *range(0xD0, 0xD8))


@dataclass(frozen=True)
class EncodedImage:
    """Bytes of a JPEG or PNG, with the height and width that they decode to."""

    data: bytes
    height: int
    width: int


def encode_for_corpus(data: bytes, max_pixels: int = MAX_PIXELS) -> EncodedImage:
    """Check an image by decoding it and return it in the form that a corpus stores.

    Args:
        data: the bytes of an image file in one of ``FORMATS``.
        max_pixels: limit on height x width, looked at before decoding.

    Raises:
        BadRecord: not an image, damaged, too large, or of a kind whose pixels have no defined colours.
    """
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise BadRecord("an image has 0 bytes")
    with warnings.catch_warnings():
        # Pillow warns about sizes that are checked below, and about harmless metadata.
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                if height * width > max_pixels:
                    raise BadRecord(f"an image of {height}x{width} pixels exceeds the limit of {max_pixels} pixels")
                image.load()
                if _is_plain(image, data):
                    return EncodedImage(data, height, width)
                return _as_png(upright_rgb(image))
        except UnidentifiedImageError:
            raise BadRecord(
                f"an image of {len(data)} bytes, beginning {data[:8]!r}, is none of {', '.join(FORMATS)}"
            ) from None
        except Image.DecompressionBombError as error:
            raise BadRecord(f"an image is too large to decode: {error}") from None
        except DECODER_ERRORS as error:
            raise BadRecord(f"an image of {len(data)} bytes is damaged: {error or type(error).__name__}") from None


def _is_plain(image: Image.Image, data: bytes) -> bool:
    """Whether every decoder reads the bytes as they are: no rotation, alpha, palette, CMYK, 16 bits or animation."""
    if image.getexif().get(_ORIENTATION, 1) != 1:
        return False
    if image.format in ("JPEG", "MPO"):  # MPO: a JPEG followed by further pictures, as some phones write
        # Transform 0 says that three components are RGB itself; not every decoder reads that mark.
        return image.mode in ("L", "RGB") and image.info.get("adobe_transform") != 0 and _plain_jpeg(data)
    if image.format == "PNG":
        # The header's fixed place: bit depth, colour type (2 is RGB without alpha or palette).
        animated = getattr(image, "is_animated", False)
        return data[24] == 8 and data[25] == 2 and "transparency" not in image.info and not animated and _has_end(data)
    return False


def _has_end(data: bytes) -> bool:
    """Whether a PNG has its last chunk: Pillow has all pixels without it, and other decoders refuse the file."""
    place = 8
    while data[place + 4 : place + 8] not in (b"IEND", b""):
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    return data[place : place + 12] == b"\0\0\0\0IEND\xaeB`\x82"


def _plain_jpeg(data: bytes) -> bool:
    """Whether the frame is 8-bit baseline, extended or progressive with Huffman coding."""
    place = 0
    while place + 4 <= len(data):
        if data[place] != 0xFF:
            return False
        marker = data[place + 1]
        if marker == 0xFF:
            place += 1
        elif marker in _JPEG_WITHOUT_LENGTH:
            place += 2
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return marker in _JPEG_SIZE_MARKERS and data[place + 4 : place + 5] == b"\x08"
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return False


def upright_rgb(image: Image.Image) -> Image.Image:
    """The first picture as 8-bit RGB: orientation applied, 16 bits scaled, transparency blended onto white.

    Raises BadRecord for pixels that have no defined colours, and what ``DECODER_ERRORS`` lists for damaged data.
    """
    from PIL import Image

    upright = _turned(image)
    if upright.mode == "F":
        raise BadRecord("an image has floating-point pixels, which have no defined white")
    if upright.mode.startswith("I"):
        upright = _eight_bits(upright, getattr(image, "tag_v2", {}))
    colour = upright.info.get("transparency")
    if isinstance(colour, tuple) and max(colour) > 255:
        raise BadRecord("an image has 16 bits per colour and one transparent colour, which 8 bits cannot tell")
    if upright.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in upright.info:
        premultiplied = {"RGBa": "RGBA", "La": "LA"}.get(upright.mode)
        transparent = (upright.convert(premultiplied) if premultiplied else upright).convert("RGBA")
        white = Image.new("RGBA", transparent.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, transparent).convert("RGB")
    return upright.convert("RGB")


def _turned(image: Image.Image) -> Image.Image:
    """The image as its orientation flag says.

    Pillow's own function also writes the metadata anew, which fails where other fields of it are damaged.
    """
    from PIL.Image import Transpose

    turn = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(image.getexif().get(_ORIENTATION, 1))
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """A grey image of 12 or 16 bits on the scale of 8, rounded to nearest, with alpha where a value is transparent.

    Pillow applies neither a TIFF's depth nor its mark that 0 is white to these; ``tags`` are the TIFF's.
    """
    from PIL import Image

    values = np.asarray(image).astype(np.int64)
    most = 4095 if tags.get(_BITS) == (12,) else 65535
    if values.min() < 0 or values.max() > most:
        raise BadRecord(
            f"an image has values from {values.min()} to {values.max()}, more than {most.bit_length()} bits"
        )
    levels = most - values if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else values
    grey = Image.fromarray(((levels * 255 + most // 2) // most).astype(np.uint8))
    if (transparent := image.info.get("transparency")) is not None:
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _as_png(image: Image.Image) -> EncodedImage:
    # A fresh image without the source's metadata, whose colour profile or orientation would be applied a second time.
    clean = image.copy()
    clean.info = {}
    buffer = io.BytesIO()
    clean.save(buffer, format="PNG", exif=b"", icc_profile=None)
    return EncodedImage(buffer.getvalue(), clean.height, clean.width)
