"""Small PNGs and JPEGs that are not quite as their format wants them, and honest ones of unusual make."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from image_files_in_memory import file_of
from PIL import Image

HEIGHT, WIDTH = 40, 56
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 14, 3), dtype=np.uint8)).resize(
    (WIDTH, HEIGHT), Image.Resampling.BICUBIC
)
ROWS = b"".join(b"\0" + row.tobytes() for row in np.asarray(PICTURE))
PACKED = zlib.compress(ROWS)


def chunk(name: bytes, body: bytes = b"", checksum: int | None = None) -> bytes:
    found = zlib.crc32(name + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", found)


def header(*more: int, kind: int = 2, compression: int = 0) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, kind, compression, 0, 0) + bytes(more))


def png(*chunks: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


FIRST, DATA, LAST, TEXT = header(), chunk(b"IDAT", PACKED), chunk(b"IEND"), chunk(b"tEXt", b"a\0b")
_NARROW = bytes([0x08, 0x1D]) + PACKED[2:]
_FRAME = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, WIDTH, HEIGHT, 0, 0, 1, 1, 0, 0))

PLAIN_PNGS = {
    "two parts": png(FIRST, chunk(b"IDAT", PACKED[:50]), chunk(b"IDAT", PACKED[50:]), LAST),
    "empty parts": png(FIRST, chunk(b"IDAT"), chunk(b"IDAT", PACKED[:50]), chunk(b"IDAT", PACKED[50:]), LAST),
    "text": png(FIRST, TEXT, DATA, TEXT, LAST),
    "gamma": png(FIRST, chunk(b"gAMA", struct.pack(">I", 20000)), DATA, LAST),
    "background and bits": png(FIRST, chunk(b"sBIT", b"\3\3\3"), chunk(b"bKGD", bytes(6)), DATA, LAST),
    "an unknown chunk": png(FIRST, chunk(b"abCd", b"x"), DATA, LAST),
}
ODD_PNGS = {
    "two headers": png(FIRST, FIRST, DATA, LAST),
    "a second header with alpha": png(FIRST, header(kind=6), DATA, LAST),
    "a header behind": png(FIRST, DATA, FIRST, LAST),
    "a header that is not first": png(TEXT, FIRST, DATA, LAST),
    "a longer header": png(header(0), DATA, LAST),
    "an unknown compression": png(header(compression=1), DATA, LAST),
    "a checksum of the pixels": png(FIRST, chunk(b"IDAT", PACKED, 5), LAST),
    "a checksum of a text": png(FIRST, DATA, chunk(b"tEXt", b"a\0b", 5), LAST),
    "zlib's checksum": png(FIRST, chunk(b"IDAT", PACKED[:-4] + bytes(4)), LAST),
    "zlib's checksum, missing": png(FIRST, chunk(b"IDAT", PACKED[:-4]), LAST),
    "zlib's window": png(FIRST, chunk(b"IDAT", _NARROW), LAST),
    "more rows": png(FIRST, chunk(b"IDAT", zlib.compress(ROWS + bytes(100))), LAST),
    "fewer rows": png(FIRST, chunk(b"IDAT", zlib.compress(ROWS[:-100])), LAST),
    "something behind the pixels": png(FIRST, chunk(b"IDAT", PACKED + b"abc"), LAST),
    "a part behind the pixels": png(FIRST, DATA, chunk(b"IDAT", b"abc"), LAST),
    "a text between the pixels": png(FIRST, chunk(b"IDAT", PACKED[:50]), TEXT, chunk(b"IDAT", PACKED[50:]), LAST),
    "an end with a body": png(FIRST, DATA, chunk(b"IEND", b"abc")),
    "two ends": png(FIRST, DATA, LAST, LAST),
    "no end": png(FIRST, DATA),
    "no pixels": png(FIRST, LAST),
    "something behind": png(FIRST, DATA, LAST) + b"abc",
    "a needed chunk": png(FIRST, chunk(b"ABCD", b"x"), DATA, LAST),
    "a needed chunk behind": png(FIRST, DATA, chunk(b"ABCD", b"x"), LAST),
    "a reserved name": png(FIRST, chunk(b"abcd", b"x"), DATA, LAST),
    "a palette": png(FIRST, chunk(b"PLTE", bytes(4)), DATA, LAST),
    "a transparent colour behind": png(FIRST, DATA, chunk(b"tRNS", bytes(6)), LAST),
    "a frame of an animation": png(FIRST, _FRAME, DATA, LAST),
    "an animation of one frame": png(FIRST, chunk(b"acTL", struct.pack(">II", 1, 0)), _FRAME, DATA, LAST),
    "row by row in seven passes": png(
        chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 1)), DATA, LAST
    ),
}

JPEG = file_of(PICTURE, "JPEG", quality=95)
RESTARTS = file_of(PICTURE, "JPEG", restart_marker_blocks=1)
_FRAME_PLACE, _SCAN_PLACE = JPEG.index(b"\xff\xc0"), JPEG.index(b"\xff\xda")


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def before_frame(data: bytes) -> bytes:
    return JPEG[:_FRAME_PLACE] + data + JPEG[_FRAME_PLACE:]


def named(identities: bytes) -> bytes:
    """The JPEG with other names for its components."""
    data = bytearray(JPEG)
    for place, identity in enumerate(identities):
        data[_FRAME_PLACE + 10 + 3 * place] = data[_SCAN_PLACE + 5 + 2 * place] = identity
    return bytes(data)


def adobe(transform: int) -> bytes:
    body = b"Adobe\0\x64\0\0\0\0" + bytes([transform])
    return JPEG[:2] + segment(0xEE, body) + JPEG[20:]  # in the place of JFIF's


PLAIN_JPEGS = {
    "plain": JPEG,
    "grey": file_of(PICTURE.convert("L"), "JPEG"),
    "progressive": file_of(PICTURE, "JPEG", progressive=True),
    "restarts": RESTARTS,
    "half the colour": file_of(PICTURE, "JPEG", subsampling=2),
    "extended": JPEG.replace(b"\xff\xc0", b"\xff\xc1", 1),
    "a further picture behind": JPEG + file_of(PICTURE.convert("L"), "JPEG"),
    "something behind": JPEG + b"film" * 100,
    "filling": before_frame(b"\xff\xff\xff"),
    "a comment": before_frame(segment(0xFE, b"\xff" * 50)),
    "other names": named(b"\0\1\2"),
    "Adobe's luma": adobe(1),
}
ODD_JPEGS = {
    "no end": JPEG[:-2],
    "half an end": JPEG[:-1],
    "noise for an end": JPEG[:-2] + b"abc" * 20,
    "two frames": before_frame(JPEG[_FRAME_PLACE : _FRAME_PLACE + 19]),
    "a frame behind": JPEG[:-2] + JPEG[_FRAME_PLACE : _FRAME_PLACE + 19] + JPEG[-2:],
    "no scan": JPEG[:_SCAN_PLACE] + JPEG[-2:],
    "two beginnings": JPEG[:2] + JPEG,
    "noise between segments": before_frame(b"abc"),
    "a restart between segments": before_frame(b"\xff\xd0"),
    "a segment of length 0": before_frame(b"\xff\xe5\0\0"),
    "a segment of length 1": before_frame(b"\xff\xe5\0\1"),
    "a number of lines": JPEG[:-2] + segment(0xDC, struct.pack(">H", HEIGHT // 2)) + JPEG[-2:],
    "tables of arithmetic coding": before_frame(segment(0xCC, b"\0\x10")),
    "arithmetic coding": JPEG.replace(b"\xff\xc0", b"\xff\xc9", 1),
    "without loss": JPEG.replace(b"\xff\xc0", b"\xff\xc3", 1),
    "12 bits": JPEG[: _FRAME_PLACE + 4] + b"\x0c" + JPEG[_FRAME_PLACE + 5 :],
    "a restart of another number": RESTARTS.replace(b"\xff\xd1", b"\xff\xd2", 1),
    "a restart that is missing": RESTARTS.replace(b"\xff\xd1", b"", 1),
    "a restart that was not announced": JPEG[: _SCAN_PLACE + 60] + b"\xff\xd0" + JPEG[_SCAN_PLACE + 60 :],
    "a comment among the pixels": JPEG[: _SCAN_PLACE + 100] + segment(0xFE, b"comment") + JPEG[_SCAN_PLACE + 100 :],
    "components named RGB": named(b"RGB"),
    "components of one name": named(b"\1\1\1"),
    "Adobe's RGB": adobe(0),
    "Adobe's fourth ink": adobe(2),
    "four inks": file_of(PICTURE.convert("CMYK"), "JPEG"),
}
