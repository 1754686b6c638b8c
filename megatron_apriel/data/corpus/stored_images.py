"""Images as a corpus stores them: encoded bytes that every decoder turns into the same 8-bit RGB pixels.

Raw data sets hold everything: photographs that a flag says to rotate, drawings with transparency, CMYK scans, 16-bit
microscopy, palettes, animations. Decoders disagree on all of these (DALI drops alpha without blending, nvJPEG ignores
the flag), so they are settled once, when a corpus is prepared: ``data/raw/pictures/image_pixels.py`` applies the
orientation and blends transparency onto white, and the result is an RGB PNG, which loses nothing. A plain 8-bit JPEG or
RGB PNG, the usual case, is kept byte for byte (``plain_images.py``). Every image is decoded completely, so that damage
is found now and not in the middle of a run.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_apriel.data.corpus.plain_images import is_plain_jpeg, is_plain_png
from megatron_apriel.data.raw.pictures.image_files import (
    DECODER_ERRORS,
    FORMATS,
    JPEG_FORMATS,
    check_cost,
    check_pages,
    check_scans,
    open_picture,
)
from megatron_apriel.data.raw.pictures.image_pixels import ORIENTATION, upright_rgb
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS, ReadLimits
from megatron_apriel.errors import words_of

if TYPE_CHECKING:
    from PIL import Image


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
                if image.format == "TIFF":
                    check_pages(data)
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
            raise BadRecord(f"an image of {len(data)} bytes is damaged: {words_of(error)}") from None


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
        # Transform 1 says that three components are luma and chroma; not every decoder reads the mark that says else.
        return image.mode in ("L", "RGB") and image.info.get("adobe_transform", 1) == 1
    # The header's fixed place: bit depth, colour type (2 is RGB without alpha or palette).
    plain = image.mode == "RGB" and data[24] == 8 and data[25] == 2 and "transparency" not in image.info
    return image.format == "PNG" and plain


def _is_plain(image: Image.Image, data: bytes) -> bool:
    """Whether every decoder reads the bytes as they are: no rotation, alpha, palette, CMYK, 16 bits or animation."""
    if image.getexif().get(ORIENTATION, 1) != 1 or not _may_be_plain(image, data):
        return False
    return is_plain_jpeg(data) if image.format in JPEG_FORMATS else is_plain_png(data)


def _as_png(image: Image.Image) -> EncodedImage:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return EncodedImage(buffer.getvalue(), image.height, image.width)
