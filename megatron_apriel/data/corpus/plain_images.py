"""Whether every decoder reads an image file alike, so that a corpus may keep its bytes.

Decoders differ in what they forgive. Pillow takes a PNG's pixels and does not look at the checksums around them, skips
chunks that others must refuse, and believes the second header of two; training decodes with another library. So a file
is plain only if it is right in all that its format says of its structure; no pixel is looked at here.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator

from megatron_apriel.data.raw.pictures.image_files import jpeg_segments

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_RGB_OF_8_BITS = b"\x08\x02\0\0\0"
"""Depth and kind of colour in a PNG's header; then the one compression, the one way to filter, rows one by one."""
_NOT_FOR_ALL = (b"PLTE", b"tRNS", b"acTL", b"fcTL", b"fdAT")
"""Palettes, a transparent colour and animation, which some decoders apply."""
_PIECE_BYTES = 2**16
_MOST_WINDOW_BITS = 15

_START, _END, _SCAN, _TABLES, _RESTART_INTERVAL = 0xD8, 0xD9, 0xDA, 0xC4, 0xDD
_FRAMES = (0xC0, 0xC1, 0xC2)
"""Of a JPEG: baseline, extended sequential, progressive; all with Huffman coding."""
_BESIDE_FRAMES = (_TABLES, 0xDB, _RESTART_INTERVAL, *range(0xE0, 0xF0), 0xFE)
"""Tables, restarts, applications' data and comments."""
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")


def is_plain_png(data: bytes) -> bool:
    """Whether it is one picture in 8-bit RGB without transparency, with all its checksums and nothing behind it."""
    chunks = list(_png_chunks(data))
    names = [name for name, _ in chunks]
    if not data.startswith(_PNG_SIGNATURE) or names[:1] != [b"IHDR"] or chunks[-1] != (b"IEND", b""):
        return False
    header, packed = bytes(chunks[0][1]), [body for name, body in chunks if name == b"IDAT"]
    first = names.index(b"IDAT") if packed else 0
    others = [*names[1:first], *names[first + len(packed) : -1]]
    if (
        len(header) != 13
        or header[8:] != _RGB_OF_8_BITS
        or names[first : first + len(packed)] != [b"IDAT"] * len(packed)
    ):
        return False
    if any(name[:1].isupper() or name[2:3].islower() or name in _NOT_FOR_ALL for name in others):
        return False
    width, height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")
    return _unpacks_to(b"".join(packed), height * (1 + 3 * width))


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Names and bodies up to the end of the file; nothing more from where a chunk is damaged or incomplete."""
    view, place = memoryview(data), len(_PNG_SIGNATURE)
    while place < len(data):
        end = place + 12 + int.from_bytes(view[place : place + 4], "big")
        name = bytes(view[place + 4 : place + 8])
        if end > len(data) or not name.isalpha():
            yield b"", view[:0]
            return
        if zlib.crc32(view[place + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            yield b"", view[:0]
            return
        yield name, view[place + 8 : end - 4]
        place = end


def _unpacks_to(packed: bytes, size: int) -> bool:
    """Whether it is one zlib stream of so many bytes and nothing else, its checksum right."""
    window_bits = 8 + (packed[0] >> 4) if packed else 0
    if 2**window_bits < min(size, 2**_MOST_WINDOW_BITS):  # it may refer further back than it says
        return False
    stream, left, found = zlib.decompressobj(), packed, 0
    try:
        while True:
            piece = stream.decompress(left, _PIECE_BYTES)
            left, found = stream.unconsumed_tail, found + len(piece)
            if found > size or not (left or piece):
                return stream.eof and not stream.unused_data and found == size
    except zlib.error:
        return False


def is_plain_jpeg(data: bytes) -> bool:
    """Whether it is one Huffman-coded picture of 8 bits to its end, its restarts in order, no RGB as it stands.

    What stands behind its end, such as the further pictures and films of phones, is passed over by every decoder.
    """
    frames = scans = scan = interval = 0
    tables = False
    for marker, place in jpeg_segments(data):
        if scan and not _restarts_in_order(data[scan:place], interval):
            return False
        scan = 0
        if marker == _END:
            return frames == 1 and scans > 0
        if marker == _SCAN:
            if not (frames and tables):
                return False
            scans += 1
            scan = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        elif marker in _FRAMES:
            frames += 1
            frame = data[place + 4 : place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")]
            identities = frame[6::3]
            if frame[:1] != b"\x08" or identities == b"RGB" or len(set(identities)) < len(identities):
                return False
        elif marker == _TABLES:
            tables = True
        elif marker == _RESTART_INTERVAL:
            interval = int.from_bytes(data[place + 4 : place + 6], "big")
        elif marker not in _BESIDE_FRAMES and (marker != _START or place):
            return False
    return False


def _restarts_in_order(scan: bytes, interval: int) -> bool:
    """Whether restart markers stand in coded pixels only where they were announced, and none is lost in between."""
    found = [match[1][0] & 7 for match in _RESTART.finditer(scan)]
    return (interval > 0 or not found) and found == [number % 8 for number in range(len(found))]
