"""Raw images: which files of a folder can be used, and their pixels.

The folder is gone through once, reading headers only, so that a million files take minutes and not hours; the order is
that of the sorted relative paths, whatever the file system says. Damage behind a header is found when an image is first
drawn, and the sample is then drawn again from another: the result is still a pure function of the folder's contents.
Pixels are those of ``image_pixels.py`` (orientation applied, transparency on white, 16 bits scaled, grey made RGB).
"""

from __future__ import annotations

import mmap
import os
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from megatron_apriel.data.raw.pictures.image_files import (
    DECODER_ERRORS,
    FORMATS,
    JPEG_FORMATS,
    check_cost,
    check_scans,
    open_picture,
)
from megatron_apriel.data.raw.pictures.image_pixels import ORIENTATION, upright_rgb
from megatron_apriel.data.raw.problems import BadRecord, printable
from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS, ReadLimits
from megatron_apriel.data.visual_tasks.pixels import Picture
from megatron_apriel.data.visual_tasks.refusals import Unreadable
from megatron_apriel.errors import DataError, words_of
from megatron_apriel.inputs import TooLargeError, open_input, what_was_meant
from megatron_apriel.quantities import counted

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp")
MIN_SIDE = 64
"""Shorter side in pixels below which an image holds too little to ask about."""

_CACHE_BYTES = 64 * 2**20
_NO_MEMORY = "there is not enough memory to decode it"
_TURNED = (5, 6, 7, 8)  # orientations of EXIF that exchange height and width


@dataclass(frozen=True)
class Header:
    """What a file's header says.

    Attributes:
        name: path relative to the folder, with forward slashes.
        width, height: of the upright picture; 0 if it cannot be used.
        problem: why it cannot be used, "" if it can.
    """

    name: str
    width: int = 0
    height: int = 0
    problem: str = ""


@dataclass
class RawImages:
    """The usable images of a folder.

    Attributes:
        root: the folder.
        names: relative paths, sorted.
        sizes: (width, height) of each, upright.
        max_side: pixels of the longer side that pictures are given.
        limits: on what is decoded.
    """

    root: Path
    names: Sequence[str]
    sizes: Sequence[tuple[int, int]]
    max_side: int
    limits: ReadLimits = DEFAULT_LIMITS
    _cache: OrderedDict[int, Picture] = field(default_factory=OrderedDict, repr=False)
    _cached: int = 0

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Picture:
        """The image upright in RGB, scaled so that its longer side has ``max_side`` pixels.

        An image more than twice as long as wide keeps ``max_side / 2`` pixels on its shorter side and is longer than
        ``max_side``: what is made of it is cut from it, or shrunk. Raises Unreadable.
        """
        if index in self._cache:
            self._cache.move_to_end(index)
            return self._cache[index]
        picture = self._read(index)
        self._cache[index] = picture
        self._cached += _bytes(picture)
        while self._cached > _CACHE_BYTES and len(self._cache) > 1:
            self._cached -= _bytes(self._cache.popitem(last=False)[1])
        return picture

    def _read(self, index: int) -> Picture:
        name = self.names[index]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # harmless metadata; sizes were looked at with the header
                with _mapped(self.root / name, self.limits) as data, open_picture(data) as image:
                    if image.format in JPEG_FORMATS:
                        check_scans(data)
                    check_cost(image, self.limits)
                    size = _scaled(image.size, self.max_side)
                    # JPEG decodes straight to half, a quarter or an eighth, which for a camera's pictures is most of
                    # the time; never below twice the size wanted, so that the last step is still a proper resize.
                    image.draft("RGB", (2 * size[0], 2 * size[1]))
                    check_cost(image, self.limits, converted=True)
                    upright = upright_rgb(image, self.limits)
                    if image.format not in JPEG_FORMATS and upright.size != self.sizes[index]:
                        raise Unreadable(name, "only its end says that it is to be turned")
        except MemoryError:
            raise Unreadable(name, _NO_MEMORY) from None
        except (BadRecord, UnidentifiedImageError, Image.DecompressionBombError, *DECODER_ERRORS) as error:
            raise Unreadable(name, str(error) or type(error).__name__) from None
        return upright.resize(_scaled(upright.size, self.max_side), Image.Resampling.BICUBIC)


@contextmanager
def _mapped(path: Path, limits: ReadLimits) -> Iterator[mmap.mmap]:
    """The contents of an image file, of which only what is looked at is read. Raises OSError or ValueError."""
    with open_input(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > limits.record_bytes:
            raise TooLargeError(path, size, limits.record_bytes)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


def _bytes(picture: Picture) -> int:
    return picture.width * picture.height * 3


def _scaled(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    longest, shortest = max(size), min(size)
    scale = max_side / longest if longest <= 2 * shortest else max_side / 2 / shortest
    return max(round(size[0] * scale), 1), max(round(size[1] * scale), 1)


def image_files(root: Path) -> tuple[list[str], int]:
    """Names of the image files below a folder, sorted, and the number of other files. Hidden ones are passed over.

    Links to folders are followed, and every folder is searched once.

    Raises DataError if the folder does not exist or holds no image file.
    """
    if not root.is_dir():
        raise DataError(
            f"the folder of images {root} is not there, or is no folder.",
            what_was_meant(root),
            "Give a folder of pictures.",
        )
    names, others, seen = [], 0, set()
    for folder, folders, files in os.walk(root, followlinks=True):
        place = Path(folder).resolve()
        if place in seen:  # a link to a folder that is searched anyway, or back to one above
            folders.clear()
            continue
        seen.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in files:
            if file.startswith("."):
                continue
            if file.lower().endswith(SUFFIXES):
                names.append((Path(folder) / file).relative_to(root).as_posix())
            else:
                others += 1
    if not names:
        raise DataError(
            f"{root} holds no image: {counted(others, 'file')}, none ending in {', '.join(SUFFIXES)}.",
            fix="Give a folder of pictures; folders below it are searched too.",
        )
    return sorted(names), others


def read_header(root: Path, name: str, limits: ReadLimits = DEFAULT_LIMITS) -> Header:
    """Size of an image file, and whether it can be used, without decoding it."""
    if printable(name) != name:
        return Header(name, problem="has a name that is not UTF-8, which no record can hold")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _mapped(root / name, limits) as data, open_picture(data) as image:
                width, height = image.size
                # Not the PNG reader's own method, which would decode all pixels to look for EXIF behind them.
                turned = Image.Image.getexif(image).get(ORIENTATION) in _TURNED
                if image.format not in JPEG_FORMATS:  # which come as small as they are needed
                    check_cost(image, limits, converted=True)
    except UnidentifiedImageError:
        return Header(name, problem=f"is none of {', '.join(FORMATS)}, or its header is damaged")
    except BadRecord as problem:
        return Header(name, problem=f"cannot be used: {problem}")
    except (Image.DecompressionBombError, MemoryError, *DECODER_ERRORS) as error:
        return Header(name, problem=f"cannot be opened: {words_of(error)}")
    if width * height > limits.pixels:
        return Header(name, problem=f"is {width}x{height} pixels, more than {limits.pixels} in all")
    if min(width, height) < MIN_SIDE:
        return Header(name, problem=f"is too small: {width}x{height} pixels, shorter side under {MIN_SIDE}")
    return Header(name, height, width) if turned else Header(name, width, height)
