"""Opening a picture that somebody gave: what decoding it takes is known, and allowed, before a pixel is decoded.

Pillow checks height x width, but a pixel costs more than its three bytes: Pillow keeps colours in four, progressive
JPEG keeps all coefficients until its last scan, WebP three canvases, TIFF a whole strip or tile of any declared size.
A JPEG's time is not that of its pixels either: a file of a few kilobytes can hold thousands of scans, each over all of
them. What follows is read from the file's own structure, in time linear in its length.
"""

from __future__ import annotations

import io
import mmap
import re
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.read_limits import ReadLimits

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")
"""Formats that are accepted; an animation gives its first picture."""

DECODER_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error)
"""What Pillow's decoders raise for damaged data, depending on the format and the place of the damage."""

JPEG_FORMATS = ("JPEG", "MPO")
"""MPO is a JPEG followed by further pictures, as some phones write."""

MOST_SCANS = 100
"""Of a JPEG; encoders write about ten."""
_MOST_METADATA = 16 * 2**20
"""Bytes of a JPEG before its first scan; Pillow joins its parts in time that grows with the square of their size."""
_MOST_PARTS = 100_000
"""Strips or tiles of a TIFF."""
_MOST_NUMBERS = 3 * 2**16
"""In a field of a TIFF: those of a palette for 16 bits, the longest that means anything."""

_JPEG_WITHOUT_LENGTH = (0x01, 0xD8, *range(0xD0, 0xD8))
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_FILLING = re.compile(rb"\xff*")
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")

_TIFF_WIDTH, _TIFF_HEIGHT, _BITS, _SAMPLES, _ROWS_PER_STRIP = 256, 257, 258, 277, 278
_STRIP_OFFSETS, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS = 273, 322, 323, 324
_SUBFILE_TYPE, _REDUCED, _MASK, _SHORT = 254, 1, 4, 3
_BIG = (b"+\0", b"\0+")
_MOST_COPIES, _MOST_FIELDS = 32, 1000
"""Of smaller copies behind a TIFF's picture, and of the fields that describe one, that are looked at."""
_KEPT_AS_BYTES = (1, 2, 7)  # types of fields: bytes, text, and what is left to the reader

_STORED_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
"""Of a pixel in Pillow, by mode; all other modes take 4."""
_RGB_BYTES, _WEBP_BYTES = 4, 16


Contents = bytes | mmap.mmap
"""Of a file: read, or mapped."""


def open_picture(data: Contents) -> Image.Image:
    """Pillow's image of a file, its header read, its pixels not; as a context manager it closes itself.

    Raises:
        BadRecord: a structure that would take time or memory before the header is read.
        PIL.UnidentifiedImageError, PIL.Image.DecompressionBombError, MemoryError, or one of ``DECODER_ERRORS``.
    """
    from PIL import Image

    if data[:2] == b"\xff\xd8":
        _check_jpeg_header(data)
    elif data[:2] in (b"II", b"MM"):
        _check_tiff_directory(data)
    # A mapping is a file to Pillow as it stands.
    return Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=FORMATS)  # type: ignore[arg-type]


def check_cost(image: Image.Image, limits: ReadLimits, *, converted: bool = False, turned: bool = False) -> None:
    """Raise BadRecord if decoding the image takes more than is allowed.

    Args:
        image: of :func:`open_picture`.
        limits: of which ``pixels`` counts.
        converted: whether it will be converted to 8-bit RGB.
        turned: whether it will be turned upright after that.
    """
    width, height = image.size
    pixels = height * width
    if pixels > limits.pixels:
        raise BadRecord(f"an image of {height}x{width} pixels exceeds the limit of {limits.pixels} pixels")
    stored = _STORED_BYTES.get(image.mode, _RGB_BYTES)
    decoded = _WEBP_BYTES if image.format == "WEBP" else stored
    each = max(
        decoded + (2 * len(image.getbands()) if is_progressive(image) else 0),
        decoded + _RGB_BYTES if converted else 0,
        2 * _RGB_BYTES if turned else 0,
    )
    needed = pixels * each + (_part_bytes(image) if image.format == "TIFF" else 0)
    if needed > limits.picture_bytes:
        raise BadRecord(
            f"an image of {height}x{width} pixels ({image.format}, {image.mode}) takes {needed:,} bytes to decode, "
            f"more than 4 for each of the allowed {limits.pixels} pixels"
        )


def is_progressive(image: Image.Image) -> bool:
    """Whether it is a JPEG that keeps all coefficients, 2 bytes each, until its last scan."""
    return image.format in JPEG_FORMATS and bool(image.info.get("progressive"))


def jpeg_segments(data: Contents) -> Iterator[tuple[int, int]]:
    """Markers of a JPEG with their places, up to the end of its first picture; 0 for bytes that belong to none."""
    place = 0
    while place + 2 <= len(data):
        marker = data[place + 1] if data[place] == 0xFF else 0
        if marker == 0xFF:
            place = _FILLING.match(data, place).end() - 1  # type: ignore[union-attr]
            continue
        yield marker, place
        if marker == _END_OF_IMAGE:
            return
        if marker in _JPEG_WITHOUT_LENGTH:
            place += 2
            continue
        if marker:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if marker in (0, _START_OF_SCAN):
            found = _MARKER.search(data, place)
            place = found.start() if found else len(data)


def check_scans(data: Contents) -> None:
    """Raise BadRecord for a JPEG with more scans than any encoder writes."""
    scans = sum(marker == _START_OF_SCAN for marker, _ in jpeg_segments(data))
    if scans > MOST_SCANS:
        raise BadRecord(f"a JPEG has {scans:,} scans, more than {MOST_SCANS}")


def check_pages(data: Contents) -> None:
    """Raise BadRecord for a TIFF of several pages, of which a reader would see the first one alone.

    Smaller copies of the picture and masks, which scanners and cameras put behind it, are no pages.
    """
    place = _first_directory(data)
    for number in range(_MOST_COPIES):
        found = _directory(data, place) if place else None
        if found is None:
            return
        kind, place = found
        if number and not kind & (_REDUCED | _MASK):
            raise BadRecord("an image is a TIFF of several pages; give each page a file of its own")


def _first_directory(data: Contents) -> int:
    order = "<" if data[:2] == b"II" else ">"
    try:
        big = data[2:4] in _BIG
        return int(struct.unpack_from(f"{order}Q" if big else f"{order}I", data, 8 if big else 4)[0])
    except struct.error:
        return 0


def _directory(data: Contents, place: int) -> tuple[int, int] | None:
    """The kind of picture that a directory of a TIFF describes, and where the next one begins (0: nowhere)."""
    order, big = "<" if data[:2] == b"II" else ">", data[2:4] in _BIG
    entry = struct.Struct(f"{order}HHQ8x" if big else f"{order}HHI4x")
    try:
        (number,) = struct.unpack_from(f"{order}Q" if big else f"{order}H", data, place)
        start, kind = place + (8 if big else 2), 0
        end = start + number * entry.size
        for at in range(start, min(end, start + _MOST_FIELDS * entry.size), entry.size):
            tag, form, _ = entry.unpack_from(data, at)
            if tag == _SUBFILE_TYPE:
                value = at + entry.size - (8 if big else 4)
                (kind,) = struct.unpack_from(f"{order}H" if form == _SHORT else f"{order}I", data, value)
        return int(kind), int(struct.unpack_from(f"{order}Q" if big else f"{order}I", data, end)[0])
    except (struct.error, OverflowError):
        return None


def _check_jpeg_header(data: Contents) -> None:
    for marker, place in jpeg_segments(data):
        if place > _MOST_METADATA:
            raise BadRecord(f"a JPEG has more than {_MOST_METADATA:,} bytes before its picture")
        if marker == _START_OF_SCAN:
            return


def _part_bytes(image: Any) -> int:
    """Bytes of the strip or tile that libtiff unpacks at once."""
    tags = image.tag_v2
    bits, samples = tags.get(_BITS, (1,)), tags.get(_SAMPLES, 1)
    pixel = -(-max(bits if isinstance(bits, tuple) else (bits,)) * max(samples, 1) // 8)
    if _TILE_WIDTH in tags:
        return int(tags[_TILE_WIDTH] * tags.get(_TILE_HEIGHT, 1) * pixel)
    width, height = image.size
    return int(min(tags.get(_ROWS_PER_STRIP, height), height) * width * pixel)


def _check_tiff_directory(data: Contents) -> None:
    """Raise BadRecord for a first directory with more strips or tiles, or more numbers in a field, than a picture has.

    Pillow makes an object of each of them while it reads the header.
    """
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in _BIG
    entry = struct.Struct(f"{order}HHQ8x" if big else f"{order}HHI4x")
    try:
        (start,) = struct.unpack_from(f"{order}Q" if big else f"{order}I", data, 8 if big else 4)
        (number,) = struct.unpack_from(f"{order}Q" if big else f"{order}H", data, start)
        start += 8 if big else 2
        for place in range(start, start + number * entry.size, entry.size):
            tag, kind, count = entry.unpack_from(data, place)
            if tag in (_STRIP_OFFSETS, _TILE_OFFSETS) and count > _MOST_PARTS:
                raise BadRecord(f"a TIFF has {count:,} strips or tiles, more than {_MOST_PARTS:,}")
            if kind not in _KEPT_AS_BYTES and count > _MOST_NUMBERS:
                raise BadRecord(f"a TIFF has {count:,} numbers in its field {tag}, more than {_MOST_NUMBERS:,}")
    except (struct.error, OverflowError):
        return  # no directory there, or a part of one: Pillow will say so
