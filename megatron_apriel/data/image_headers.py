"""What an encoded image says of itself, compared with what a corpus's table says, before anything is decoded.

A few hundred bytes can declare 60,000 x 60,000 pixels, whose decoding takes 10 GB, and a JPEG can ask for its pixels to
be passed over thousands of times. Both stand in headers, so both are seen in time. Sizes are read by the library that
decodes, so that it cannot understand a header otherwise than it was checked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megatron_apriel.errors import ConfigError

MAX_IMAGES = 32
"""Images in one run of a DALI pipeline."""
MAX_SCANS = 100
"""Passes over the pixels of a progressive JPEG; encoders write 3 to 20."""

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_MARKER = re.compile(rb"\xff([^\x00\xff\xd0-\xd7])")
"""Of a JPEG, within or behind the data of a scan: there 0 is no marker, and those left out restart the decoder."""
_SCAN, _END = 0xDA, 0xD9
_MOST_SEGMENTS = 10_000


@dataclass(frozen=True)
class ImageRequest:
    """One image to decode.

    Attributes:
        data: encoded bytes, uint8 [n], JPEG or PNG.
        height, width: pixels that it decodes to.
        rows, columns: patches that it becomes.
        place: where it comes from, for messages, as in "corpus, document 3, image 0".
    """

    data: NDArray[np.uint8]
    height: int
    width: int
    rows: int
    columns: int
    place: str


class HeaderReader:
    """Finds what is wrong with images by their headers; not to be used by several threads at once."""

    def __init__(self, max_pixels: int) -> None:
        """``max_pixels``: largest image, height x width, that may be decoded."""
        self._max_pixels = max_pixels
        self._pipeline: Any = None

    def problems(self, images: Sequence[ImageRequest]) -> list[str | None]:
        """Why each image must not be decoded; None where it may be."""
        found = [self._without_sizes(image) for image in images]
        unknown = [number for number, problem in enumerate(found) if problem is None]
        for first in range(0, len(unknown), MAX_IMAGES):
            numbers = unknown[first : first + MAX_IMAGES]
            for number, problem in zip(numbers, self._by_size([images[n] for n in numbers]), strict=True):
                found[number] = problem
        return found

    def _without_sizes(self, image: ImageRequest) -> str | None:
        if image.height * image.width > self._max_pixels:
            return f"its {image.height} x {image.width} pixels are more than images.max_pixels={self._max_pixels}"
        start = image.data[: len(_PNG)].tobytes()
        if start.startswith(_JPEG):
            if too_many_scans(image.data.tobytes()):
                return f"it has more than {MAX_SCANS} scans or {_MOST_SEGMENTS} segments"
            return None
        return None if start == _PNG else "it is neither a JPEG nor a PNG"

    def _by_size(self, images: Sequence[ImageRequest]) -> list[str | None]:
        try:
            sizes = self._sizes([image.data for image in images])
        except RuntimeError as error:
            self._pipeline = None
            if len(images) > 1:
                return [problem for image in images for problem in self._by_size([image])]
            return [cause(error)]
        return [
            None if size == (image.height, image.width) else f"it has {size[0]} x {size[1]} pixels"
            for image, size in zip(images, sizes, strict=True)
        ]

    def _sizes(self, encoded: list[NDArray[np.uint8]]) -> list[tuple[int, ...]]:
        """Height and width of each. Raises RuntimeError, and leaves the pipeline useless, if one is no image."""
        if self._pipeline is None:
            self._pipeline = _size_pipeline()
        self._pipeline.feed_input("encoded", encoded)
        (shapes,) = self._pipeline.run()
        return [tuple(np.asarray(shapes.at(number)).tolist()[:2]) for number in range(len(encoded))]

    def close(self) -> None:
        """Release DALI's memory."""
        self._pipeline = None


def too_many_scans(data: bytes) -> bool:
    """Whether a JPEG has more than ``MAX_SCANS`` scans, or so many segments that counting them takes too long."""
    place = scans = 0
    for _ in range(_MOST_SEGMENTS):
        marker = _MARKER.search(data, place)
        if marker is None or marker[1][0] == _END:
            return False
        scans += marker[1][0] == _SCAN
        if scans > MAX_SCANS:
            return True
        place = marker.end()
        if marker[1][0] != 0xD8:  # the begin of the image is the one marker here without a length
            place += int.from_bytes(data[place : place + 2], "big")
    return True


def cause(error: RuntimeError) -> str:
    """The sentence of DALI's report that says what is wrong; the rest is the pipeline's definition."""
    _, _, report = str(error).partition("encountered:")
    lines = [line.strip() for line in (report or str(error)).splitlines()]
    return next((line for line in lines if line), type(error).__name__).rstrip(".")


def import_dali() -> Any:
    """The module ``nvidia.dali``. Raises ConfigError where it is not installed."""
    try:
        import nvidia.dali  # imported late: it takes a second, and text-only work does without it
    except ImportError:
        raise ConfigError(
            "images cannot be decoded: NVIDIA DALI is not installed.",
            fix="Run `make setup`, or install the package nvidia-dali-cuda130.",
        ) from None
    return nvidia.dali


def _size_pipeline() -> Any:
    dali = import_dali()
    pipeline = dali.Pipeline(
        batch_size=MAX_IMAGES,
        num_threads=1,
        device_id=None,
        prefetch_queue_depth=1,
        exec_async=False,
        exec_pipelined=False,
    )
    with pipeline:
        encoded = dali.fn.external_source(name="encoded", dtype=dali.types.UINT8, ndim=1)
        pipeline.set_outputs(dali.fn.peek_image_shape(encoded, adjust_orientation=False))
    pipeline.build()
    return pipeline
