"""What pixels say: how different two pictures are, how much there is to see in one, and small edits of pictures.

Pictures are PIL images in RGB; arrays are uint8 [height, width, 3]. A box is (left, top, right, bottom) in pixels, the
last two exclusive. Distances are root-mean-square differences in grey levels (0 to 255) after both pictures have been
shrunk to a few cells: noise and JPEG's rounding vanish there, while what a person would call a difference stays.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

from megatron_apriel.data.visual_tasks.refusals import Ambiguous

type Picture = Image.Image
type Pixels = npt.NDArray[np.uint8]
type Box = tuple[int, int, int, int]

DISTINCT = 14.0
"""Grey levels by which things that a question distinguishes must differ."""

TEXTURED = 12.0
"""Standard deviation, in grey levels, below which there is too little to see in a piece."""

GREY = (127, 127, 127)
"""Holes and gaps."""

_CELLS = 12


def pixels_of(picture: Picture) -> Pixels:
    return np.asarray(picture.convert("RGB"), dtype=np.uint8)


def summary(picture: Picture, cells: int = _CELLS) -> npt.NDArray[np.float64]:
    """The picture shrunk to ``cells`` x ``cells`` averages, float64 [cells, cells, 3]."""
    return np.asarray(picture.resize((cells, cells), Image.Resampling.BOX), dtype=np.float64)


def distance(first: Picture, second: Picture) -> float:
    """Root-mean-square difference of two pictures shrunk to the same few cells, in grey levels."""
    return float(np.sqrt(np.mean((summary(first) - summary(second)) ** 2)))


def exact_distance(first: Pixels, second: Pixels) -> float:
    """Root-mean-square difference of two arrays of one shape, in grey levels."""
    return float(np.sqrt(np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2)))


def require_distinct(pictures: list[Picture], what: str) -> None:
    """Raise Ambiguous if any two of the pictures look the same."""
    summaries = [summary(picture) for picture in pictures]
    for index, one in enumerate(summaries):
        for other in summaries[:index]:
            if np.sqrt(np.mean((one - other) ** 2)) < DISTINCT:
                raise Ambiguous(f"{what} look the same")


def require_texture(picture: Picture, what: str) -> None:
    """Raise Ambiguous if the picture is nearly uniform."""
    if summary(picture).std(axis=(0, 1)).max() < TEXTURED:
        raise Ambiguous(f"{what} is nearly uniform")


def correlation(first: Pixels, second: Pixels) -> float:
    """Correlation of the grey values of two pictures of any size, -1 to 1; changes of colour hardly touch it."""
    cells = 16
    grey = [
        np.asarray(Image.fromarray(one).convert("L").resize((cells, cells), Image.Resampling.BOX), dtype=np.float64)
        for one in (first, second)
    ]
    centred = [one - one.mean() for one in grey]
    spreads = [float(np.sqrt((one**2).sum())) for one in centred]
    # Below a grey level of spread there is only rounding's noise, whose likeness says nothing.
    return float((centred[0] * centred[1]).sum() / (spreads[0] * spreads[1])) if min(spreads) >= cells else 0.0


def require_best(likeness: Sequence[float], truth: int, what: str) -> None:
    """Raise Ambiguous unless the true option is like what is shown, and clearly more so than every other."""
    others = [value for index, value in enumerate(likeness) if index != truth]
    if likeness[truth] < 0.7 or likeness[truth] < max(others) + 0.1:
        raise Ambiguous(f"{what} cannot be distinguished")


def recoloured(picture: Picture, strength: float, rng: np.random.Generator) -> Picture:
    """Brightness, contrast, colour balance and gamma changed at random; dark stays darker than bright.

    ``strength`` 0 changes nothing; at 0.5 contrast and channels change by up to a quarter, brightness by 32 levels.
    """
    values = np.asarray(picture, dtype=np.float64) / 255
    gamma = np.exp(rng.uniform(-1, 1) * strength * 0.8)
    contrast = 1 + rng.uniform(-1, 1) * strength * 0.5
    channels = 1 + rng.uniform(-1, 1, size=3) * strength * 0.5
    brightness = rng.uniform(-1, 1) * strength * 0.25
    values = ((values**gamma - 0.5) * contrast + 0.5) * channels + brightness
    return Image.fromarray(np.clip(np.rint(values * 255), 0, 255).astype(np.uint8))


def resized(picture: Picture, longest: int) -> Picture:
    """The picture with its longer side made ``longest`` pixels, its aspect kept."""
    scale = longest / max(picture.size)
    size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
    return picture.resize(size, Image.Resampling.BICUBIC)


def random_box(picture: Picture, width: int, height: int, rng: np.random.Generator) -> Box:
    """A place of that size somewhere in the picture, which is at least as large."""
    left, top = int(rng.integers(picture.width - width + 1)), int(rng.integers(picture.height - height + 1))
    return left, top, left + width, top + height


def cut_square(picture: Picture, rng: np.random.Generator) -> Picture:
    """A square as large as the picture's shorter side, cut from a random place."""
    side = min(picture.size)
    return picture.crop(random_box(picture, side, side, rng))


def encoded(picture: Picture, image_format: str, quality: int) -> bytes:
    """Bytes of an image file; every picture of every sample passes here, so that no encoding gives an answer away.

    JPEG keeps colours at full resolution: small coloured objects would smear otherwise.
    """
    buffer = io.BytesIO()
    if image_format == "jpeg":
        picture.save(buffer, "JPEG", quality=quality, subsampling=0)
    else:
        picture.save(buffer, "PNG")
    return buffer.getvalue()


def decoded(data: bytes) -> Pixels:
    """Pixels of an encoded picture."""
    with Image.open(io.BytesIO(data)) as picture:
        return pixels_of(picture)
