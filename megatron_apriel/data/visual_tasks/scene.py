"""Constructed scenes: drawn shapes on a real photograph, whose kinds, places and visible parts are all known.

Shapes are drawn four times as large and shrunk, so that their edges are as smooth as a photograph's. Kinds that could
be taken for one another when small or slightly turned (diamond and square, hexagon and circle, orange and red) are left
out. For every pixel the scene knows which object is on top there; what stays visible of an object is counted, not
estimated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from megatron_apriel.data.visual_tasks.pixels import Picture, Pixels, pixels_of
from megatron_apriel.data.visual_tasks.refusals import Ambiguous

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
PLURALS = {shape: f"{shape}s" for shape in SHAPES} | {"cross": "crosses"}
COLOURS = {
    "red": (215, 30, 35),
    "green": (35, 160, 60),
    "blue": (40, 75, 220),
    "yellow": (245, 220, 40),
    "pink": (250, 120, 190),
    "white": (250, 250, 250),
    "black": (12, 12, 12),
}

MIN_SIZE = 12
"""Smallest object, pixels."""

_FINE = 4
_CONTRAST = 45.0  # grey levels between an object and what lies behind it
_SOLID = 128  # coverage from which a pixel counts as the object's
_TRIES = 80


@dataclass(frozen=True)
class Kind:
    """Shape and colour."""

    shape: str
    colour: str

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"


KINDS = tuple(Kind(shape, colour) for shape in SHAPES for colour in COLOURS)


@dataclass(frozen=True)
class Placed:
    """An object in a scene: its kind, the centre in pixels, and its size (the side of the square around it)."""

    kind: Kind
    x: float
    y: float
    size: int


@dataclass
class Scene:
    """A photograph with objects on it.

    Attributes:
        background: the photograph.
        opacity: of the objects.
        visible: part of each object's area that no later object may cover.
        picture: the photograph with what has been placed so far.
        objects: what has been placed.
        owner: int16 [height, width]: number of the object on top, -1 for the photograph.
        areas: pixels of each object, covered or not.
    """

    background: Picture
    opacity: float = 1.0
    visible: float = 1.0
    picture: Picture = field(init=False)
    objects: list[Placed] = field(default_factory=list)
    owner: npt.NDArray[np.int16] = field(init=False)
    areas: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.picture = self.background.copy()
        self.owner = np.full((self.background.height, self.background.width), -1, dtype=np.int16)

    def place(
        self,
        kind: Kind,
        size: int,
        rng: np.random.Generator,
        within: tuple[float, float, float, float] | None = None,
    ) -> Placed:
        """Put an object where it stands out from its background and covers others no more than allowed.

        Args:
            kind: its shape and colour.
            size: side of the square around it, pixels.
            rng: of its place and its angle.
            within: (left, top, right, bottom) that its centre must lie in; anywhere if None.

        Raises:
            Ambiguous: if no such place was found.
        """
        size = max(size, MIN_SIZE)
        left, top, right, bottom = within or (0, 0, self.picture.width, self.picture.height)
        low = (max(left, size / 2), max(top, size / 2))
        high = (min(right, self.picture.width - size / 2), min(bottom, self.picture.height - size / 2))
        if low[0] > high[0] or low[1] > high[1]:
            raise Ambiguous("an object does not fit where it should be")
        for _ in range(_TRIES):
            corner = (round(rng.uniform(low[0], high[0]) - size / 2), round(rng.uniform(low[1], high[1]) - size / 2))
            corner = (
                min(max(corner[0], 0), self.picture.width - size),
                min(max(corner[1], 0), self.picture.height - size),
            )
            mask = shape_mask(kind.shape, size, rng.uniform(-12, 12))
            if self._fits(corner, mask, kind):
                return self._put(kind, corner, mask)
        raise Ambiguous("no place was found where an object stands out and hides no other")

    def shown(self, number: int) -> float:
        """Part of an object's area that is visible."""
        return float((self.owner == number).sum()) / self.areas[number]

    def require_visible(self) -> None:
        """Raise Ambiguous if what is left of an object hardly differs from the photograph, or has lost its colour."""
        if not self._recognised(pixels_of(self.picture), _CONTRAST * 0.8, 1.4):
            raise Ambiguous("an object or its colour can hardly be recognised")

    def seen_in(self, pixels: Pixels) -> bool:
        """Whether every object is there in a decoded picture of the scene, in its colour."""
        return self._recognised(pixels, _CONTRAST * 0.5, 1.0)

    def _recognised(self, pixels: Pixels, contrast: float, margin: float) -> bool:
        """Whether all that is visible of every object differs from the photograph and has the object's colour.

        Args:
            pixels: a picture of the scene.
            contrast: grey levels by which it must differ on average.
            margin: how many times nearer to the object's colour it must be than to any other.
        """
        photograph, palette = pixels_of(self.background).astype(np.float64), np.array(list(COLOURS.values()))
        for number, one in enumerate(self.objects):
            own = self.owner == number
            seen, behind = pixels[own].astype(np.float64), photograph[own]
            colour = ((seen - (1 - self.opacity) * behind) / self.opacity).mean(axis=0)
            away = np.linalg.norm(palette - colour, axis=1)
            right = list(COLOURS).index(one.kind.colour)
            if (
                np.abs(seen - behind).max(axis=1).mean() < contrast
                or away[right] * margin > np.delete(away, right).min()
            ):
                return False
        return True

    def described(self) -> list[list[object]]:
        """Objects as JSON: [kind, x, y, size]."""
        return [[str(one.kind), round(one.x, 1), round(one.y, 1), one.size] for one in self.objects]

    def _fits(self, corner: tuple[int, int], mask: Picture, kind: Kind) -> bool:
        window = (slice(corner[1], corner[1] + mask.height), slice(corner[0], corner[0] + mask.width))
        solid = np.asarray(mask) >= _SOLID
        under = self.owner[window]
        # One pixel more than the object on every side, also beyond the picture's edge.
        spread = np.asarray(ImageOps.expand(mask, 1).filter(ImageFilter.MaxFilter(3))) > 0
        near = np.pad(self.owner, 1, constant_values=-1)[corner[1] :, corner[0] :][: spread.shape[0], : spread.shape[1]]
        for number in map(int, np.unique(near[spread & (near >= 0)])):
            # Where objects may not cover each other they may not touch either; nor may two of one colour, ever, which
            # would melt into one blot.
            if self.visible >= 1 or self.objects[number].kind.colour == kind.colour:
                return False
            left = (self.owner == number).sum() - (solid & (under == number)).sum()
            if left < self.visible * self.areas[number]:
                return False
        behind = pixels_of(self.picture.crop((*corner, corner[0] + mask.width, corner[1] + mask.height)))[solid]
        change = np.abs(np.array(COLOURS[kind.colour]) - behind.astype(np.float64)).max(axis=1) * self.opacity
        return bool(change.mean() > _CONTRAST and np.quantile(change, 0.2) > _CONTRAST / 2)

    def _put(self, kind: Kind, corner: tuple[int, int], mask: Picture) -> Placed:
        solid = np.asarray(mask) >= _SOLID
        faint = mask.point(lambda value: round(value * self.opacity))
        self.picture.paste(COLOURS[kind.colour], (*corner, corner[0] + mask.width, corner[1] + mask.height), faint)
        self.owner[corner[1] : corner[1] + mask.height, corner[0] : corner[0] + mask.width][solid] = len(self.objects)
        self.areas.append(int(solid.sum()))
        self.objects.append(Placed(kind, corner[0] + mask.width / 2, corner[1] + mask.height / 2, mask.width))
        return self.objects[-1]


def shape_mask(shape: str, size: int, angle: float = 0.0) -> Picture:
    """Coverage of a shape, 0 to 255, on a square of ``size`` pixels; turned by ``angle`` degrees."""
    side = size * _FINE
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)
    if shape in ("circle", "ring"):
        pen.ellipse((0, 0, side - 1, side - 1), fill=255)
        if shape == "ring":
            inner = 0.26 * side
            pen.ellipse((inner, inner, side - inner, side - inner), fill=0)
    else:
        turn = np.deg2rad(angle)
        corners = np.array(_OUTLINES[shape]) @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
        corners /= np.abs(corners).max()
        pen.polygon([(float(x), float(y)) for x, y in (corners + 1) / 2 * (side - 1)], fill=255)
    return mask.resize((size, size), Image.Resampling.BOX)


def _star(points: int, inner: float) -> list[tuple[float, float]]:
    angles = [np.pi * step / points - np.pi / 2 for step in range(2 * points)]
    radii = [1.0, inner] * points
    return [(r * float(np.cos(angle)), r * float(np.sin(angle))) for angle, r in zip(angles, radii, strict=True)]


_ARM = 0.32
_OUTLINES: dict[str, Sequence[tuple[float, float]]] = {
    "square": [(-1, -1), (1, -1), (1, 1), (-1, 1)],
    "triangle": [(0, -1), (0.95, 0.75), (-0.95, 0.75)],
    "star": _star(5, 0.42),
    "cross": [
        (-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM),
        (_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM),
    ],
}  # fmt: skip
