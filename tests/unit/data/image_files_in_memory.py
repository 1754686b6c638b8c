"""The bytes of image files, as Pillow writes them."""

from __future__ import annotations

import io

from PIL import Image


def file_of(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def orientation(value: int) -> Image.Exif:
    """EXIF that asks to turn the picture."""
    exif = Image.Exif()
    exif[0x0112] = value
    return exif
