"""Another view of a picture: a smaller window onto it, turned, perhaps mirrored, in other colours.

A view is an affine map from its own coordinates to the picture's, both continuous, in pixels, with (0, 0) at the outer
corner of the first pixel. The window lies inside the picture, so a view has no empty corners, and every point of it is
a known point of the picture: that is what makes correspondence questions answerable by construction.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from megatron_apriel.data.visual_tasks.pixels import Picture, recoloured

Point = tuple[float, float]


@dataclass(frozen=True)
class View:
    """An affine map from a view to its picture.

    Attributes:
        size: (width, height) of the view in pixels.
        matrix: ((a, b, c), (d, e, f)): the point (x, y) of the view is (a x + b y + c, d x + e y + f) of the picture.
    """

    size: tuple[int, int]
    matrix: tuple[tuple[float, float, float], tuple[float, float, float]]

    def to_picture(self, point: Point) -> Point:
        """The picture's point that is seen at a point of the view."""
        (a, b, c), (d, e, f) = self.matrix
        return a * point[0] + b * point[1] + c, d * point[0] + e * point[1] + f

    def from_picture(self, point: Point) -> Point:
        """Where the view shows a point of the picture (perhaps outside of it)."""
        matrix = np.array(self.matrix)
        x, y = np.linalg.solve(matrix[:, :2], np.array(point) - matrix[:, 2])
        return float(x), float(y)

    def of(self, picture: Picture) -> Picture:
        """What the view shows of the picture."""
        (a, b, c), (d, e, f) = self.matrix
        return picture.transform(
            self.size, Image.Transform.AFFINE, (a, b, c, d, e, f), resample=Image.Resampling.BICUBIC
        )


def random_view(
    picture: Picture, part: float, angle: float, rng: np.random.Generator, longest: int, mirror: bool = False
) -> View:
    """A window onto a picture at a random place.

    Args:
        picture: what is looked at.
        part: share of each side that the window covers; less where a turned window would not fit.
        angle: greatest rotation either way, degrees; it is drawn from the upper half of the range.
        rng: of place and rotation.
        longest: longer side of the view in pixels.
        mirror: left and right are exchanged.
    """
    width, height = picture.size
    turn = np.deg2rad(angle * rng.uniform(0.5, 1) * rng.choice([-1, 1]))
    cosine, sine = abs(np.cos(turn)), abs(np.sin(turn))
    # Half extents of the turned window, per unit of its share of the sides.
    extent = np.array([width * cosine + height * sine, width * sine + height * cosine]) / 2
    share = min(part, *(np.array([width, height]) / 2 / extent))
    slack = np.maximum(np.array([width, height]) / 2 - share * extent, 0)
    centre = np.array([width, height]) / 2 + rng.uniform(-1, 1, size=2) * slack
    scale = longest / max(width, height)
    size = (round(width * scale), round(height * scale))
    step = share * np.array([width / size[0], height / size[1]])
    linear: npt.NDArray[np.float64] = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) * step
    if mirror:
        linear[:, 0] *= -1
    offset = centre - linear @ (np.array(size) / 2)
    (a, b), (d, e) = linear.tolist()
    return View(size, ((a, b, float(offset[0])), (d, e, float(offset[1]))))


def looked_at(picture: Picture, view: View, colour: float, rng: np.random.Generator) -> Picture:
    """The view with its colours changed; ``colour`` as in :func:`pixels.recoloured`."""
    return recoloured(view.of(picture), colour, rng)
