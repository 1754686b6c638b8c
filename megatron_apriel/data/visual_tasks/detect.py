"""Object detection in constructed scenes: is it there, and roughly where.

========  ==============================================================================================================
presence  is a drawn shape of a given colour in the scene? Other objects share its colour or its shape when it is hard,
          so that "something red" is not enough
location  in which cell of a grid is the centre of a drawn shape?
inset     a patch is shown and pasted somewhere into another picture; in which cell?
========  ==============================================================================================================

The same questions about annotated photographs are in :mod:`annotated`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from megatron_apriel.data.visual_tasks import difficulty as knobs
from megatron_apriel.data.visual_tasks.pixels import (
    DISTINCT,
    Picture,
    Pixels,
    correlation,
    distance,
    pixels_of,
    recoloured,
    require_texture,
)
from megatron_apriel.data.visual_tasks.refusals import Ambiguous
from megatron_apriel.data.visual_tasks.sample import Draw, Sample, cell_name
from megatron_apriel.data.visual_tasks.scene import KINDS, Kind, Scene

PRESENCE_QUESTIONS = (
    "Shapes have been drawn on this photograph. Is there a {kind} among them? Answer yes or no.",
    "Do you see a {kind} drawn on the picture? Reply with yes or no.",
    "Is a {kind} one of the shapes that were added to this picture? Answer with one word, yes or no.",
)
LOCATION_QUESTIONS = (
    "Divide the picture into {grid} rows and {grid} columns. In which cell is the centre of the {kind}? "
    "Answer as: row R, column C.",
    "Where is the {kind}? Name the cell of a {grid} by {grid} grid, counted from the top left, in which its centre "
    "lies, as: row R, column C.",
)
INSET_QUESTIONS = (
    "The small second picture has been pasted into the first. If the first is divided into {grid} rows and {grid} "
    "columns, in which cell is the centre of the pasted patch? Answer as: row R, column C.",
    "Find the second picture inside the first one. Which cell of a {grid} by {grid} grid over the first, counted from "
    "the top left, holds its centre? Answer as: row R, column C.",
)
_CELL_MARGIN = 0.15  # of a cell: a centre nearer to its edge could be taken for the neighbour's
_SEEN_AGAIN = 0.6  # correlation of a patch and its pasted self in the decoded picture
_SEEN = 0.75  # and before encoding


def presence(draw: Draw) -> Sample:
    """Whether a kind of object is in the scene."""
    yes = bool(draw.choices.integers(2))
    kind = KINDS[int(draw.choices.integers(len(KINDS)))]
    number = _objects(draw)
    scene = Scene(draw.picture(), knobs.SCENE_OPACITY.at(draw.difficulty))
    size = _size(scene.background, draw)
    others = _other_kinds(kind, number - 1 if yes else number, draw)
    for one in ([kind] if yes else []) + others:
        scene.place(one, size, draw.rng)
    scene.require_visible()

    def check(pictures: Sequence[Pixels]) -> bool | None:
        found = any(scene.objects[int(owner)].kind == kind for owner in np.unique(scene.owner) if owner >= 0)
        return found if scene.seen_in(pictures[0]) else None

    return Sample(
        (scene.picture, "\n" + draw.phrase(PRESENCE_QUESTIONS, kind=kind)),
        "Yes" if yes else "No",
        yes,
        {"kind": str(kind), "objects": scene.described(), "opacity": round(scene.opacity, 3)},
        check,
    )


def location(draw: Draw) -> Sample:
    """In which cell an object is."""
    grid = knobs.SCENE_GRID.count(draw.difficulty)
    row, column = divmod(int(draw.choices.integers(grid * grid)), grid)
    kind = KINDS[int(draw.choices.integers(len(KINDS)))]
    number = _objects(draw)
    scene = Scene(draw.picture(), knobs.SCENE_OPACITY.at(draw.difficulty))
    size = _size(scene.background, draw)
    target = scene.place(kind, size, draw.rng, _inside_cell(scene.background, grid, row, column))
    for other in _other_kinds(kind, number - 1, draw):
        scene.place(other, size, draw.rng)
    scene.require_visible()

    def check(pictures: Sequence[Pixels]) -> list[int] | None:
        mine = [index for index, one in enumerate(scene.objects) if one.kind == kind]
        ys, xs = np.nonzero(scene.owner == mine[0])
        height, width = pictures[0].shape[:2]
        found = [int((ys.min() + ys.max()) / 2 / height * grid) + 1, int((xs.min() + xs.max()) / 2 / width * grid) + 1]
        return found if len(mine) == 1 and scene.seen_in(pictures[0]) else None

    return Sample(
        (scene.picture, "\n" + draw.phrase(LOCATION_QUESTIONS, grid=grid, kind=kind)),
        cell_name(row, column).capitalize(),
        [row + 1, column + 1],
        {"grid": grid, "kind": str(kind), "size": target.size, "objects": scene.described()},
        check,
    )


def inset(draw: Draw) -> Sample:
    """In which cell a patch was pasted."""
    grid = knobs.SCENE_GRID.count(draw.difficulty)
    row, column = divmod(int(draw.choices.integers(grid * grid)), grid)
    picture = draw.picture()
    other = (draw.others(1) or [picture])[0]
    side = round(knobs.INSET_SIZE.at(draw.difficulty) * min(picture.size))
    # Cut from a place twice as large and shrunk, so that the patch shows something whole.
    span = min(2 * side, *other.size)
    left, top = int(draw.rng.integers(other.width - span + 1)), int(draw.rng.integers(other.height - span + 1))
    patch = other.crop((left, top, left + span, top + span)).resize((side, side), Image.Resampling.LANCZOS)
    require_texture(patch, "the patch")
    centre = _point_in(_inside_cell(picture, grid, row, column), draw.rng)
    corner = (
        min(max(round(centre[0] - side / 2), 0), picture.width - side),
        min(max(round(centre[1] - side / 2), 0), picture.height - side),
    )
    box = (*corner, corner[0] + side, corner[1] + side)
    middle = (corner[0] + side / 2, corner[1] + side / 2)
    if _cell_of(middle[0] / picture.width, middle[1] / picture.height, grid) != (row, column):
        raise Ambiguous("the patch is too large to have its centre in the cell")
    pasted = recoloured(patch, knobs.INSET_COLOUR.at(draw.difficulty), draw.rng)
    if distance(picture.crop(box), pasted) < 2 * DISTINCT:
        raise Ambiguous("the patch looks like what it covers")
    if correlation(pixels_of(patch), pixels_of(pasted)) < _SEEN:
        raise Ambiguous("the patch was recoloured beyond recognition")
    scene = picture.copy()
    scene.paste(pasted, corner)

    def check(pictures: Sequence[Pixels]) -> list[int] | None:
        seen = correlation(pictures[0][box[1] : box[3], box[0] : box[2]], pictures[1]) > _SEEN_AGAIN
        around = pictures[0].copy()
        around[box[1] : box[3], box[0] : box[2]] = pixels_of(picture.crop(box))
        untouched = distance(Image.fromarray(around), picture) < DISTINCT / 2
        found = _cell_of((box[0] + box[2]) / 2 / picture.width, (box[1] + box[3]) / 2 / picture.height, grid)
        return [found[0] + 1, found[1] + 1] if seen and untouched else None

    return Sample(
        (scene, "\n", patch, "\n" + draw.phrase(INSET_QUESTIONS, grid=grid)),
        cell_name(row, column).capitalize(),
        [row + 1, column + 1],
        {"grid": grid, "box": box, "side": side},
        check,
    )


def _objects(draw: Draw) -> int:
    most = knobs.SCENE_OBJECTS.count(draw.difficulty)
    return int(draw.rng.integers(max(most - 2, 1), most + 1))


def _size(picture: Picture, draw: Draw) -> int:
    return round(knobs.SCENE_SIZE.at(draw.difficulty) * min(picture.size))


def _other_kinds(kind: Kind, number: int, draw: Draw) -> list[Kind]:
    """Kinds other than the one asked for; the difficulty says how many share its colour or its shape."""
    alike = [one for one in KINDS if one != kind and (one.shape == kind.shape or one.colour == kind.colour)]
    unlike = [one for one in KINDS if one.shape != kind.shape and one.colour != kind.colour]
    similar = round(knobs.SCENE_ALIKE.at(draw.difficulty) * number)
    pools = [alike] * similar + [unlike] * (number - similar)
    return [pool[int(draw.rng.integers(len(pool)))] for pool in pools]


def _inside_cell(picture: Picture, grid: int, row: int, column: int) -> tuple[float, float, float, float]:
    """The part of a cell, in pixels, that is clear of its edges."""
    width, height = picture.width / grid, picture.height / grid
    return (
        (column + _CELL_MARGIN) * width,
        (row + _CELL_MARGIN) * height,
        (column + 1 - _CELL_MARGIN) * width,
        (row + 1 - _CELL_MARGIN) * height,
    )


def _point_in(box: tuple[float, float, float, float], rng: np.random.Generator) -> tuple[float, float]:
    return float(rng.uniform(box[0], box[2])), float(rng.uniform(box[1], box[3]))


def _cell_of(x: float, y: float, grid: int) -> tuple[int, int]:
    """(row, column), counted from 0, of a point given as shares of the sides."""
    return int(y * grid), int(x * grid)
