"""Small image files that ask for memory or time without end; most say so in a header, with little behind it."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

from image_files_in_memory import file_of, orientation
from PIL import Image

MIB = 2**20


def small(mode: str, kind: str, **options) -> bytes:
    return file_of(Image.new(mode, (64, 64)), kind, **options)


def png(height: int, width: int, bits: int, colour: int, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG of that header, a few chunks, and little else."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), *more, (b"IDAT", zlib.compress(bytes(MIB))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def tiff(tags: dict[int, tuple[int, int, int]], data: bytes = b"") -> bytes:
    """A TIFF whose tags have that type, count and value; ``data`` stands at byte 8."""
    entries = b"".join(struct.pack("<HHII", tag, *tags[tag]) for tag in sorted(tags))
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + directory


def big_tiff(tags: dict[int, tuple[int, int, int]]) -> bytes:
    entries = b"".join(struct.pack(">HHQQ", tag, *tags[tag]) for tag in sorted(tags))
    return struct.pack(">2sHHHQ", b"MM", 43, 8, 0, 16) + struct.pack(">Q", len(tags)) + entries + bytes(8)


def tags(height: int, width: int, compression: int, **more: tuple[int, int, int]) -> dict[int, tuple[int, int, int]]:
    """Grey, 8 bits; further tags as ``t322=(type, count, value)``."""
    values = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 277: 1}
    plain = {tag: (4, 1, value) for tag, value in values.items()}
    return plain | {int(name[1:]): value for name, value in more.items()}


def jpeg_sized(data: bytes, marker: bytes, height: int, width: int) -> bytes:
    """The JPEG with other dimensions in its frame header."""
    place = data.index(marker) + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


def jpeg_with_scans(number: int, side: int, junk: bytes = b"") -> bytes:
    data = file_of(Image.new("L", (side, side)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + (junk + data[last:-2]) * number + data[-2:]


def webp_sized(height: int, width: int) -> bytes:
    data = bytearray(small("RGB", "WEBP", lossless=True))
    bits = (width - 1) | (height - 1) << 14 | int.from_bytes(data[21:25], "little") >> 28 << 28
    data[21:25] = bits.to_bytes(4, "little")
    return bytes(data)


JPEG = small("RGB", "JPEG")
EXIF = b"\xff\xe1\xff\xffExif\0\0" + bytes(65527)

IMAGES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "16 bits": ("to decode", lambda: png(9990, 9990, 16, 0)),
    "16 bits of colour": ("to decode", lambda: png(9990, 9990, 16, 2)),
    "transparency": ("to decode", lambda: png(8000, 8000, 8, 6)),
    "grey and transparency": ("to decode", lambda: png(8000, 8000, 8, 4)),
    "a transparent colour": ("to decode", lambda: png(8000, 8000, 8, 2, (b"tRNS", bytes(6)))),
    "a transparent palette": (
        "to decode",
        lambda: png(9500, 9500, 8, 3, (b"PLTE", bytes(768)), (b"tRNS", bytes(256))),
    ),
    "a palette of one bit": ("to decode", lambda: png(9500, 9500, 1, 3, (b"PLTE", bytes(6)))),
    "many pixels": ("exceeds the limit", lambda: png(10000, 10001, 8, 2)),
    "still more pixels": ("too large to decode", lambda: png(2**31 - 1, 2**31 - 1, 1, 0)),
    "text that grows": (
        "text chunks",
        lambda: png(8, 8, 8, 2, *((b"zTXt", b"%d\0\0" % one + zlib.compress(bytes(10**6))) for one in range(100))),
    ),
    "a colour profile that grows": (
        "too large",
        lambda: png(8, 8, 8, 2, (b"iCCP", b"x\0\0" + zlib.compress(bytes(64 * MIB)))),
    ),
    "progressive JPEG": (
        "to decode",
        lambda: jpeg_sized(small("RGB", "JPEG", progressive=True), b"\xff\xc2", 7000, 7000),
    ),
    "progressive JPEG in CMYK": (
        "to decode",
        lambda: jpeg_sized(small("CMYK", "JPEG", progressive=True), b"\xff\xc2", 6000, 6000),
    ),
    "scans without end": ("scans, more than 100", lambda: jpeg_with_scans(3000, 2000)),
    "scans between bytes of nothing": ("scans, more than 100", lambda: jpeg_with_scans(3000, 2000, b"\0")),
    "a turned JPEG": (
        "to decode",
        lambda: jpeg_sized(small("RGB", "JPEG", exif=orientation(6)), b"\xff\xc0", 9000, 9000),
    ),
    "metadata without end": ("bytes before its picture", lambda: JPEG[:2] + EXIF * 260 + JPEG[2:]),
    "fill bytes": ("bytes before its picture", lambda: JPEG[:2] + b"\xff" * 17 * MIB + JPEG[2:]),
    "WebP": ("to decode", lambda: webp_sized(9999, 9999)),
    "WebP of the largest size": ("too large to decode", lambda: webp_sized(16383, 16383)),
    "a frame beyond its GIF": (
        "too large to decode",
        lambda: b"GIF89a" + bytes([1, 0, 1, 0, 0, 0, 0, 44, 0, 0, 0, 0, *[255] * 4, 0, 8, 0, 59]),
    ),
    "a large GIF": ("to decode", lambda: b"GIF89a" + struct.pack("<HH", 9500, 9500) + small("P", "GIF")[10:]),
    "one tile": (
        "to decode",
        lambda: tiff(tags(8, 8, 8, t322=(4, 1, 2**15), t323=(4, 1, 2**15), t324=(4, 1, 8), t325=(4, 1, 99)), bytes(99)),
    ),
    "one strip": (
        "to decode",
        lambda: tiff(tags(9000, 9000, 8, t273=(4, 1, 8), t278=(4, 1, 9000), t279=(4, 1, 99)), bytes(99)),
    ),
    "strips without end": (
        "1,000,000 strips",
        lambda: tiff(
            tags(8, 8, 1, t273=(4, 10**6, 8), t278=(4, 1, 1), t279=(4, 10**6, 8)), struct.pack("<I", 8) * 10**6
        ),
    ),
    "strips of a BigTIFF": (
        "1,000,000,000 strips",
        lambda: big_tiff(tags(8, 8, 1, t273=(4, 10**9, 16), t278=(4, 1, 1), t279=(4, 10**9, 16))),
    ),
    "numbers of a field": (
        "7,000,000 numbers in its field 258",
        lambda: tiff(tags(8, 8, 1, t258=(3, 7 * 10**6, 8), t273=(4, 1, 8), t278=(4, 1, 8)), bytes(14 * 10**6)),
    ),
    "a BMP": (
        "to decode",
        lambda: (
            b"BM" + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, 8000, 8000, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(99)
        ),
    ),
}
"""What the message says, and the file."""
