"""Images of every accepted format: decoded to the pixels that Pillow itself gives, or a bad record."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, ImageOps

from megatron_apriel.data.corpus.image_size import patch_grid
from megatron_apriel.data.corpus.stored_images import EncodedImage, encode_for_corpus
from megatron_apriel.data.loading.image_headers import ImageRequest
from megatron_apriel.data.loading.images import ImageDecoder
from megatron_apriel.data.raw.pictures.image_files import FORMATS
from megatron_apriel.errors import DataError

from ..byte_changes import change_bytes, edge
from ..case import Target, Wrong

_SIDE, _PATCH = 24, 16
_MOST_PIXELS = 4_000_000


@cache
def honest_images(scale: int = 1) -> dict[str, bytes]:
    """Small images by name, 40 x 32 pixels and a multiple: every format, and the kinds of pixel that each can hold."""
    rng = np.random.default_rng(5)
    rgb = Image.fromarray(rng.integers(0, 256, (_SIDE, _SIDE + 8, 3), dtype=np.uint8)).resize((40 * scale, 32 * scale))
    grey, alpha = rgb.convert("L"), rgb.convert("RGBA")
    alpha.putalpha(grey)
    palette = rgb.quantize(16)
    deep = Image.fromarray(rng.integers(0, 2**16, (_SIDE * scale, _SIDE * scale), dtype=np.uint16))
    turned = Image.Exif()
    turned[0x0112] = 6
    frames = [rgb, rgb.rotate(90), rgb.rotate(180)]
    animated = {"save_all": True, "append_images": frames[1:]}
    made: dict[str, tuple[Image.Image, dict[str, object]]] = {
        "rgb.jpeg": (rgb, {}),
        "grey.jpeg": (grey, {}),
        "turned.jpeg": (rgb, {"exif": turned}),
        "progressive.jpeg": (rgb, {"progressive": True}),
        "cmyk.jpeg": (rgb.convert("CMYK"), {}),
        "rgb.png": (rgb, {}),
        "alpha.png": (alpha, {}),
        "palette.png": (palette, {"transparency": 3}),
        "grey.png": (grey, {"transparency": 7}),
        "deep.png": (deep, {}),
        "bits.png": (grey.convert("1"), {}),
        "turned.png": (rgb, {"exif": turned}),
        "animated.png": (rgb, animated),
        "lossy.webp": (rgb, {}),
        "alpha.webp": (alpha, {"lossless": True}),
        "animated.webp": (rgb, animated),
        "palette.gif": (palette, {}),
        "animated.gif": (palette, animated),
        "rgb.tiff": (rgb, {}),
        "packed.tiff": (rgb, {"compression": "tiff_lzw"}),
        "deflated.tiff": (alpha, {"compression": "tiff_adobe_deflate"}),
        "deep.tiff": (deep, {}),
        "bits.tiff": (grey.convert("1"), {"compression": "group4"}),
        "pages.tiff": (rgb, animated),
        "jpeg.tiff": (rgb, {"compression": "jpeg"}),
        "rgb.bmp": (rgb, {}),
        "palette.bmp": (palette, {}),
        "alpha.bmp": (alpha, {}),
    }
    files = {}
    for name, (image, options) in made.items():
        buffer = io.BytesIO()
        image.save(buffer, format=name.rpartition(".")[2].upper(), **options)  # type: ignore[arg-type]
        files[name] = buffer.getvalue()
    return files


class Images(Target):
    """What preparation makes of an image; the result decodes, everywhere, to what Pillow shows of the original."""

    name = "images"
    about = "an image file of any accepted format"

    def make(self, directory: Path) -> None:
        for name, data in honest_images().items():
            (directory / name).write_bytes(data)

    def open(self, directory: Path) -> None:
        self.files = {file.name: file.read_bytes() for file in sorted(directory.iterdir())}

        self.decoder = ImageDecoder(_PATCH, device="cpu", threads=1)

    def mutate(self, random: Random, directory: Path, changes: int) -> str:
        name = random.choice(sorted(self.files))
        data, done = changed_image(random, name, self.files, changes)
        (directory / name).write_bytes(data)
        return f"{name}: {done}"

    def check(self, directory: Path) -> None:
        (file,) = directory.iterdir()
        data = file.read_bytes()
        result = encode_for_corpus(data)
        if result.height * result.width <= _MOST_PIXELS:  # a second reading takes as much memory again
            compare(data, result)
            self._decode(result)

    def _decode(self, image: EncodedImage) -> None:
        """Decode what a corpus would hold as training does. A damaged JPEG may show its damage only there."""
        rows, columns = patch_grid(image.height, image.width, 64, _PATCH)
        data = np.frombuffer(image.data, dtype=np.uint8)
        try:
            patches = self.decoder.patches([ImageRequest(data, image.height, image.width, rows, columns, "here")])
        except DataError as error:
            if image.data.startswith(b"\x89PNG"):
                raise Wrong(f"a PNG was prepared that training refuses: {error}") from None
            return
        if len(patches) != rows * columns or not patches.isfinite().all():
            raise Wrong(f"{len(patches)} patches of {rows} x {columns}")


def compare(data: bytes, result: EncodedImage) -> None:
    """Compare what is accepted with Pillow's own view of the same bytes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(result.data)) as stored:
            if stored.format not in ("JPEG", "PNG", "MPO") or stored.mode not in ("RGB", "L"):
                raise Wrong(f"a corpus would hold {stored.format} of mode {stored.mode}")
            if stored.getexif().get(0x0112, 1) != 1:
                raise Wrong("a corpus would hold an image that is to be turned")
            if stored.size != (result.width, result.height):
                raise Wrong(f"the size {result.width} x {result.height} is not that of the bytes, {stored.size}")
            found = np.asarray(stored.convert("RGB"))
        rows, columns = patch_grid(result.height, result.width, 64, _PATCH)
        if not (1 <= rows <= 4 and 1 <= columns <= 4):
            raise Wrong(f"a grid of {rows} x {columns} patches for at most 4 x 4")
        expected = _reference(data)
    if expected is not None and not np.array_equal(found, expected):
        raise Wrong(f"other pixels than Pillow's: {_difference(found, expected)}")


def _difference(found: np.ndarray, expected: np.ndarray) -> str:
    if found.shape != expected.shape:
        return f"shape {found.shape} for {expected.shape}"
    return f"by {np.abs(found.astype(int) - expected).max()} at most"


def _reference(data: bytes) -> np.ndarray | None:
    """Pixels as Pillow's own functions give them; None for 16 bits and floats, where it has no view of its own."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        image.load()
        try:
            upright = ImageOps.exif_transpose(image)
        except Exception:  # Pillow writes the metadata anew, which fails where other fields are damaged
            return None
        if upright.mode[0] in "IF":
            return None
        colour = image.info.get("transparency")
        if colour is not None and "transparency" not in upright.info:
            upright.info["transparency"] = colour
        if colour is None and upright.mode in ("RGB", "L", "P", "1", "CMYK", "YCbCr", "LAB", "HSV"):
            return np.asarray(upright.convert("RGB"))
        clear = (
            upright.convert("RGBA")
            if upright.mode not in ("RGBa", "La")
            else upright.convert(upright.mode.upper()).convert("RGBA")
        )
    white = Image.new("RGBA", clear.size, "white")
    return np.asarray(Image.alpha_composite(white, clear).convert("RGB"))


def changed_image(random: Random, name: str, files: dict[str, bytes], changes: int) -> tuple[bytes, str]:
    """Image ``name`` with so many mutations, half of them in its parts and with their checksums made good."""
    kind = name.rpartition(".")[2]
    data, done = files[name], []
    others = [other for other_name, other in sorted(files.items()) if other_name.endswith(kind)]
    for _ in range(changes):
        structured = _STRUCTURED.get(kind)
        if structured is not None and random.random() < 0.6:
            try:
                data, what = structured(random, data, random.choice(others))
            except (ValueError, IndexError, struct.error):  # an earlier mutation left nothing of the structure
                data, what = change_bytes(random, data, others)
        else:
            data, what = change_bytes(random, data, others)
        done.append(what)
    return data, "; ".join(done)


def _parts_changed(random: Random, parts: list[bytes], donors: list[bytes]) -> tuple[list[bytes], str]:
    """Parts removed, repeated, exchanged, moved or borrowed."""
    parts = list(parts)
    place = random.randrange(len(parts))
    kind = random.randrange(5)
    if kind == 0:
        del parts[place]
        return parts, f"remove part {place}"
    if kind == 1:
        times = random.choice((1, 2, 300))
        parts[place:place] = [parts[place]] * times
        return parts, f"repeat part {place} {times} times"
    if kind == 2:
        other = random.randrange(len(parts))
        parts[place], parts[other] = parts[other], parts[place]
        return parts, f"exchange parts {place} and {other}"
    if kind == 3:
        parts.append(parts.pop(place))
        return parts, f"move part {place} to the end"
    parts.insert(place, random.choice(donors))
    return parts, f"borrow a part for {place}"


def png_parts(data: bytes) -> list[bytes]:
    """Chunks of a PNG as type and body, without lengths and checksums."""
    parts, place = [], 8
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        parts.append(data[place + 4 : place + 8 + length])
        place += 12 + length
    if not parts:
        raise ValueError("no chunk is left")
    return parts


def png_of(parts: list[bytes]) -> bytes:
    """A PNG of chunks, with right lengths and checksums."""
    framed = (struct.pack(">I", max(0, len(part) - 4)) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def _png(random: Random, data: bytes, other: bytes) -> tuple[bytes, str]:
    parts = png_parts(data)
    if random.random() < 0.3:
        parts, what = _parts_changed(random, parts, png_parts(other))
        return png_of(parts), what
    place = random.randrange(len(parts))
    kind, body = parts[place][:4], parts[place][4:]
    if kind == b"IDAT" and random.random() < 0.6:
        try:  # the rows themselves, packed again: what no checksum shows
            body, what = change_bytes(random, zlib.decompress(body))
            parts[place] = kind + zlib.compress(body[: 2**22])
            return png_of(parts), f"rows: {what}"
        except zlib.error:
            pass
    body, what = change_bytes(random, body)
    parts[place] = kind + body
    return png_of(parts), f"{kind!r}: {what}"


def _jpeg(random: Random, data: bytes, other: bytes) -> tuple[bytes, str]:
    parts = _jpeg_parts(data)
    if random.random() < 0.4:
        parts, what = _parts_changed(random, parts, _jpeg_parts(other))
        return b"".join(parts), what
    place = random.randrange(len(parts))
    part = parts[place]
    body, what = change_bytes(random, part[4:])
    length = struct.pack(">H", (len(body) + 2) & 0xFFFF) if part[1] not in (0xD8, 0xD9) else b""
    parts[place] = part[:2] + length + body
    return b"".join(parts), f"segment {part[1]:#x}: {what}"


def _jpeg_parts(data: bytes) -> list[bytes]:
    """Segments of a JPEG; the scan's data belong to its header."""
    parts, place = [data[:2]], 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        stop = place + 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        parts.append(data[place:stop])
        place = stop
    return [*parts, data[place:]]


def _riff(random: Random, data: bytes, other: bytes) -> tuple[bytes, str]:
    parts = _riff_parts(data)
    if random.random() < 0.4:
        parts, what = _parts_changed(random, parts, _riff_parts(other))
    else:
        place = random.randrange(len(parts))
        body, what = change_bytes(random, parts[place][8:])
        size = len(body) if random.random() < 0.8 else edge(random, 32)
        parts[place] = parts[place][:4] + struct.pack("<I", size) + body + b"\0" * (len(body) % 2)
    body = b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body, what


def _riff_parts(data: bytes) -> list[bytes]:
    parts, place = [], 12
    while place + 8 <= len(data):
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        parts.append(data[place : place + 8 + size + size % 2])
        place += 8 + size + size % 2
    if not parts:
        raise ValueError("no chunk is left")
    return parts


def _tiff(random: Random, data: bytes, other: bytes) -> tuple[bytes, str]:
    """An entry of the first directory: its tag, type, count or value."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, start)
    entry = start + 2 + 12 * random.randrange(min(count, 100))
    offset, form = random.choice(((0, "H"), (2, "H"), (4, "I"), (8, "I"), (8, "H")))
    value = edge(random, 16 if form == "H" else 32)
    if offset == 0:
        value = random.choice((256, 257, 258, 259, 262, 273, 274, 277, 278, 279, 284, 317, 320, 322, 338, 339, value))
    buffer = bytearray(data)
    struct.pack_into(f"{order}{form}", buffer, entry + offset, value)
    return bytes(buffer), f"entry at {entry}, byte {offset} = {value}"


def _bmp(random: Random, data: bytes, other: bytes) -> tuple[bytes, str]:
    """A field of the headers."""
    offset, form = random.choice(
        ((2, "I"), (10, "I"), (14, "I"), (18, "i"), (22, "i"), (26, "H"), (28, "H"), (30, "I"), (34, "I"), (46, "I"))
    )
    value = random.choice((1, 2, 3, 4, 8, 12, 16, 24, 32, 40, 56, 64, 108, 124, edge(random, 15), edge(random, 31)))
    if form != "H" and random.random() < 0.2:
        value = -value if form == "i" else 2**32 - 1 - value
    buffer = bytearray(data)
    struct.pack_into(f"<{form}", buffer, offset, value % 2**16 if form == "H" else value)
    return bytes(buffer), f"header field at {offset} = {value}"


def _gif(random: Random, data: bytes, other: bytes) -> tuple[bytes, str]:
    """A field of the screen, a block's introducer, or a block's size."""
    marks = [place for place, byte in enumerate(data) if byte in (0x21, 0x2C, 0x3B)]
    place = random.choice((6, 8, 10, 11, *(mark + random.randrange(10) for mark in marks[:20])))
    value = random.choice((0, 1, 0x21, 0x2C, 0x3B, 0xF9, 0xFF, 0x80, random.randrange(256)))
    return data[:place] + bytes([value]) + data[place + 1 :], f"byte {place} = {value}"


_STRUCTURED: dict[str, Callable[[Random, bytes, bytes], tuple[bytes, str]]] = {
    "png": _png,
    "jpeg": _jpeg,
    "webp": _riff,
    "tiff": _tiff,
    "bmp": _bmp,
    "gif": _gif,
}
