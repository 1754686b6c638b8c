"""Visual matching: the same thing in another view, another picture, or not quite the same.

=========  =============================================================================================================
point      a spot is marked in one picture; in which cell of a grid over another view of it does the spot lie?
retrieval  a cropped, turned and recoloured anchor; which of several pictures was it taken from?
different  several copies of a picture; which one was changed in one place?
=========  =============================================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from megatron_apriel.data.visual_tasks import difficulty as knobs
from megatron_apriel.data.visual_tasks.pixels import (
    DISTINCT,
    Box,
    Picture,
    Pixels,
    correlation,
    cut_square,
    distance,
    exact_distance,
    pixels_of,
    random_box,
    require_best,
    require_texture,
    resized,
)
from megatron_apriel.data.visual_tasks.refusals import Ambiguous
from megatron_apriel.data.visual_tasks.sample import LETTERS, Draw, Sample, cell_name, lettered
from megatron_apriel.data.visual_tasks.views import View, looked_at, random_view

POINT_QUESTIONS = (
    "The first picture has a spot marked by a red and white ring. The second picture is another view of the same "
    "scene. If the second picture is divided into {grid} rows and {grid} columns, in which cell does the marked spot "
    "lie? Answer as: row R, column C.",
    "Find the place at the centre of the ring in the second picture, which shows the same thing differently. Which "
    "cell of a {grid} by {grid} grid over the second picture is it in, counting from the top left? "
    "Answer as: row R, column C.",
)
RETRIEVAL_QUESTIONS = (
    "The first picture was cut from one of the pictures below; colours and angle may have changed, and it may be "
    "mirrored. From which one? "
    "Answer with the letter only.",
    "Which of the lettered pictures shows the same scene as the first picture? Reply with one letter.",
)
DIFFERENT_QUESTIONS = (
    "These pictures are the same, except for one that was changed in one place. Which one? "
    "Answer with the letter only.",
    "One of the pictures is not quite like the others. Which is it? Give only its letter.",
)

MIN_PANEL = 96
"""Smallest longer side of a picture that is shown beside others, pixels."""

_CELL_MARGIN = 0.15  # of a cell: a spot nearer to its edge could be taken for the neighbour's
_ALIKE = 0.5  # correlation from which two decoded patches are the same thing in other colours
_CLEARLY_ALIKE = 0.7  # and before encoding
_SPREAD = 2.0  # grey levels, below which a patch holds rounding's noise, and its likeness to another says nothing
_CLEAR_SPREAD = 4.0  # and before encoding
_LEAST_EDIT = 12  # pixels


def point(draw: Draw) -> Sample:
    """Where a marked spot lies in another view."""
    grid = knobs.POINT_GRID.count(draw.difficulty)
    row, column = divmod(int(draw.choices.integers(grid * grid)), grid)
    inside = draw.choices.uniform(_CELL_MARGIN, 1 - _CELL_MARGIN, size=2)
    picture = draw.picture()
    view = random_view(
        picture,
        knobs.VIEW_SIZE.at(draw.difficulty),
        knobs.VIEW_ANGLE.at(draw.difficulty),
        draw.rng,
        max(picture.size),
    )
    cell = (view.size[0] / grid, view.size[1] / grid)
    spot = view.to_picture(((column + float(inside[0])) * cell[0], (row + float(inside[1])) * cell[1]))
    radius = min(picture.size) / 8
    around = _around(spot, radius, picture.size)
    require_texture(picture.crop(around), "the marked spot")
    second = looked_at(picture, view, knobs.VIEW_COLOUR.at(draw.difficulty), draw.rng)
    intact = pixels_of(picture)
    if _sameness(intact, pixels_of(second), view, spot, radius, _CLEAR_SPREAD) < _CLEARLY_ALIKE:
        raise Ambiguous("the marked spot was recoloured beyond recognition")

    def check(pictures: Sequence[Pixels]) -> list[int] | None:
        x, y = view.from_picture(spot)
        if _sameness(intact, pictures[1], view, spot, radius, _SPREAD) < _ALIKE:
            return None
        return [int(y // cell[1]) + 1, int(x // cell[0]) + 1]

    return Sample(
        (_with_ring(picture, spot), "\n", second, "\n" + draw.phrase(POINT_QUESTIONS, grid=grid)),
        cell_name(row, column).capitalize(),
        [row + 1, column + 1],
        {"grid": grid, "spot": [round(spot[0], 2), round(spot[1], 2)], "view": view.matrix},
        check,
    )


def retrieval(draw: Draw) -> Sample:
    """Which picture an anchor was taken from."""
    number = knobs.RETRIEVAL_CANDIDATES.count(draw.difficulty)
    truth = int(draw.choices.integers(number))
    mirror = bool(draw.choices.integers(2)) and draw.difficulty >= 0.5
    # All of one shape: an anchor that is as wide as one candidate only would be matched without looking.
    whole = draw.picture()
    picture = cut_square(whole, draw.rng)
    wanted = (number - 1) * knobs.RETRIEVAL_POOL.count(draw.difficulty)
    # The same photograph twice in a folder: other cuts of it are not the same picture, and yet the same scene.
    others = [other for other in draw.others(wanted) if distance(whole, other) >= 2 * DISTINCT]
    pool = [cut_square(other, draw.rng) for other in others]
    if len(pool) < number - 1:
        raise Ambiguous("there are too few other pictures")
    pool.sort(key=lambda other: distance(picture, other))
    wrong = pool[: number - 1]
    if distance(picture, wrong[0]) < 2 * DISTINCT:
        raise Ambiguous("another picture looks the same")
    part, angle = knobs.VIEW_SIZE.at(draw.difficulty), knobs.VIEW_ANGLE.at(draw.difficulty)
    view = random_view(picture, part, angle, draw.rng, max(picture.size), mirror)
    anchor = looked_at(picture, view, knobs.VIEW_COLOUR.at(draw.difficulty), draw.rng)
    require_texture(anchor, "the anchor")
    panel = _panel(draw)
    candidates = [resized(wrong[int(index)], panel) for index in draw.rng.permutation(number - 1)]
    candidates.insert(truth, resized(picture, panel))

    def likeness(shown: Pixels, options: Sequence[Pixels]) -> list[float]:
        # Only the right picture, seen through the same window, looks like the anchor.
        return [correlation(shown, pixels_of(_stretched(one, view, picture.size))) for one in options]

    require_best(likeness(pixels_of(anchor), list(map(pixels_of, candidates))), truth, "the anchor's picture")

    def check(pictures: Sequence[Pixels]) -> str:
        return LETTERS[int(np.argmax(likeness(pictures[0], pictures[1:])))]

    return Sample(
        (anchor, "\n" + draw.phrase(RETRIEVAL_QUESTIONS), *lettered(candidates)),
        LETTERS[truth],
        LETTERS[truth],
        {"candidates": number, "pool": len(pool), "view": view.matrix, "mirrored": mirror},
        check,
    )


def different(draw: Draw) -> Sample:
    """Which of several copies was changed."""
    number = knobs.EDIT_PANELS.count(draw.difficulty)
    truth = int(draw.choices.integers(number))
    picture = resized(draw.picture(), _panel(draw))
    side = max(round(knobs.EDIT_SIZE.at(draw.difficulty) * min(picture.size)), _LEAST_EDIT)
    target, origin = (random_box(picture, side, side, draw.rng) for _ in range(2))
    strength = knobs.EDIT_STRENGTH.at(draw.difficulty)
    edited = picture.copy()
    new = Image.blend(picture.crop(target), picture.crop(origin), strength)
    # A soft edge: the change is in what is seen there, not in a hard outline.
    soft = Image.new("L", (side, side), 0)
    margin = max(side // 10, 1)
    soft.paste(255, (margin, margin, side - margin, side - margin))
    edited.paste(new, target[:2], soft.filter(ImageFilter.GaussianBlur(margin / 2)))
    if distance(picture.crop(target), edited.crop(target)) < 1.5 * DISTINCT:
        raise Ambiguous("the change is hardly visible")
    copies = [edited if index == truth else picture for index in range(number)]

    def check(pictures: Sequence[Pixels]) -> str:
        apart = [float(np.median([exact_distance(one, other) for other in pictures])) for one in pictures]
        return LETTERS[int(np.argmax(apart))]

    return Sample(
        (draw.phrase(DIFFERENT_QUESTIONS), *lettered(copies)),
        LETTERS[truth],
        LETTERS[truth],
        {"candidates": number, "box": target, "from": origin, "strength": round(strength, 3)},
        check,
    )


def _panel(draw: Draw) -> int:
    return max(draw.images.max_side // 2, MIN_PANEL)


def _around(spot: tuple[float, float], radius: float, size: tuple[int, int]) -> Box:
    left, top = max(round(spot[0] - radius), 0), max(round(spot[1] - radius), 0)
    return left, top, min(round(spot[0] + radius), size[0]), min(round(spot[1] + radius), size[1])


def _with_ring(picture: Picture, spot: tuple[float, float]) -> Picture:
    """The picture with a ring around a spot, drawn four times as large and shrunk; the spot itself stays visible."""
    radius, fine = max(min(picture.size) / 32, 4.0), 4
    ring = Image.new("RGBA", (picture.width * fine, picture.height * fine), (0, 0, 0, 0))
    pen = ImageDraw.Draw(ring)
    for extra, colour in ((1.0, (255, 255, 255, 255)), (0.0, (230, 0, 0, 255))):
        reach = radius + extra
        box = [fine * (centre + sign * reach) for sign in (-1, 1) for centre in spot]
        pen.ellipse(box, outline=colour, width=round(fine * (1.5 + 2 * extra)))
    shrunk = ring.resize(picture.size, Image.Resampling.BOX)
    marked = picture.copy()
    marked.paste(shrunk.convert("RGB"), mask=shrunk.getchannel("A"))
    return marked


def _sameness(
    intact: Pixels, seen: Pixels, view: View, spot: tuple[float, float], radius: float, spread: float
) -> float:
    """Correlation of what the view, mapped back, shows around the spot, with what the picture has there.

    0 where either has less than ``spread``, a standard deviation in grey levels: nothing can be compared.
    """
    steps = np.linspace(-radius, radius, 16)
    around = [(spot[0] + x, spot[1] + y) for y in steps for x in steps]
    height, width = seen.shape[:2]
    expected, found = [], []
    for place in around:
        x, y = view.from_picture(place)
        inside = 0 <= place[0] < intact.shape[1] and 0 <= place[1] < intact.shape[0]
        if inside and 0 <= x < width and 0 <= y < height:
            expected.append(intact[int(place[1]), int(place[0])].astype(float).mean())
            found.append(seen[int(y), int(x)].astype(float).mean())
    if not expected or min(np.std(expected), np.std(found)) < spread:
        return 0.0
    return float(np.corrcoef(expected, found)[0, 1])


def _stretched(pixels: Pixels, view: View, size: tuple[int, int]) -> Picture:
    """A candidate seen through the anchor's window, whatever its own size and aspect."""
    return view.of(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
