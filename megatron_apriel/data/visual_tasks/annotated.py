"""Detection and counting on annotated photographs: what people have marked there.

=================  ===================================================================================================
category_presence  is a category in the photograph? The category is drawn first, and then whether an image that has it
                   or one that has not is shown, so that its name gives nothing away. Hard: with its relatives there
category_location  in which cell of a grid is the centre of the only object of a category?
category_count     how many objects of a category are there?
pair_count         how many objects of two categories are there together?
=================  ===================================================================================================

Only what annotators have marked one by one is asked for: see :mod:`coco`. Photographs are shown whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from megatron_apriel.data.visual_tasks import difficulty as knobs
from megatron_apriel.data.visual_tasks.coco import TINY, Annotations, Groups
from megatron_apriel.data.visual_tasks.partition import Partition
from megatron_apriel.data.visual_tasks.pixels import Picture, Pixels, resized
from megatron_apriel.data.visual_tasks.refusals import Ambiguous
from megatron_apriel.data.visual_tasks.sample import Draw, Sample, cell_name

PRESENCE_QUESTIONS = (
    "Does this picture contain an object of the category '{name}'? Answer yes or no.",
    "Look for this category of object: {name}. Is there one in the picture? Reply with yes or no.",
)
LOCATION_QUESTIONS = (
    "There is one object of the category '{name}' in this picture. Divide the picture into {grid} rows and {grid} "
    "columns: in which cell is the centre of its bounding box? Answer as: row R, column C.",
    "Locate the one object of this category: {name}. Name the cell of a {grid} by {grid} grid, counted from the top "
    "left, in which the centre of its bounding box lies, as: row R, column C.",
)
COUNT_QUESTIONS = (
    "How many objects of the category '{name}' are in this picture? Answer with a number.",
    "Count the objects of this category in the picture: {name}. Reply with the number only.",
)
PAIR_QUESTIONS = (
    "How many objects of the categories '{first}' and '{second}' are in this picture together? Answer with a number.",
    "Count everything in the picture that is of one of these categories: {first}, {second}. Reply with the number.",
)

VISIBLE = 2 * TINY
"""Size (square root of its share of the image) from which an object cannot be overlooked."""

_CELL_MARGIN = 0.15  # of a cell: a centre nearer to its edge could be taken for the neighbour's
_NEAR_SIZES = 8  # images drawn, of which the one with the object nearest to the wanted size is used


def category_presence(draw: Draw) -> Sample:
    """Whether a photograph shows a category."""
    annotations = _annotations(draw)
    groups = annotations.groups
    yes = bool(draw.choices.integers(2))
    category = _pick(askable_categories(annotations), draw.choices)
    if yes:
        own = groups.of_category[category]
        shown = own[groups.countable[own] & (groups.largest[own] >= VISIBLE)]
        chosen = int(groups.image[_nearest_size(shown, groups, draw)])
    else:
        chosen = _image_without(category, annotations, draw)
    rows = annotations.of_image(chosen)
    name = annotations.categories[category]

    def check(pictures: Sequence[Pixels]) -> bool:
        return any(row[1] == category for row in rows)

    return Sample(
        (_whole(draw, annotations, chosen), "\n" + draw.phrase(PRESENCE_QUESTIONS, name=name)),
        "Yes" if yes else "No",
        yes,
        {"category": name},
        check,
    )


def category_location(draw: Draw) -> Sample:
    """In which cell of a photograph the only object of a category is."""
    annotations = _annotations(draw)
    groups = annotations.groups
    grid = knobs.SCENE_GRID.count(draw.difficulty)
    by_cell = _cells(annotations, grid)
    # Cells are drawn first: photographers put things in the middle, and a model would learn to say so.
    target = _pick(by_cell.values, draw.choices)
    group = _nearest_size(by_cell[target], groups, draw)
    chosen, category = int(groups.image[group]), int(groups.category[group])
    rows = [row for row in annotations.of_image(chosen) if row[1] == category]
    name = annotations.categories[category]

    def check(pictures: Sequence[Pixels]) -> list[int] | None:
        if len(rows) != 1:
            return None
        x, y = (rows[0][2] + rows[0][4]) / 2, (rows[0][3] + rows[0][5]) / 2
        return [int(y * grid) + 1, int(x * grid) + 1]

    row, column = divmod(target, grid)
    box = [round(value, 4) for value in rows[0][2:6]]
    return Sample(
        (_whole(draw, annotations, chosen), "\n" + draw.phrase(LOCATION_QUESTIONS, grid=grid, name=name)),
        cell_name(row, column).capitalize(),
        [row + 1, column + 1],
        {"grid": grid, "category": name, "box": box, "size": round(float(groups.largest[group]), 3)},
        check,
    )


def category_count(draw: Draw) -> Sample:
    """How many objects of a category a photograph shows."""
    annotations = _annotations(draw)
    groups = annotations.groups
    most = knobs.COUNT_ANNOTATED.count(draw.difficulty)
    by_number = _numbers(groups, most)
    if not len(by_number.values):
        raise Ambiguous("no image has few enough objects of a category")
    number = _pick(by_number.values, draw.choices)
    group = _pick(by_number[number], draw.rng)
    chosen, category = int(groups.image[group]), int(groups.category[group])
    rows = annotations.of_image(chosen)
    name = annotations.categories[category]

    def check(pictures: Sequence[Pixels]) -> int:
        return sum(row[1] == category and not row[6] for row in rows)

    question = draw.phrase(COUNT_QUESTIONS, name=name)
    picture = _whole(draw, annotations, chosen)
    return Sample((picture, "\n" + question), str(number), number, {"categories": [name]}, check)


def pair_count(draw: Draw) -> Sample:
    """How many objects of two categories a photograph shows together."""
    annotations = _annotations(draw)
    groups = annotations.groups
    pairs, by_number = _pairs(groups, knobs.COUNT_ANNOTATED.count(draw.difficulty))
    if not len(pairs):
        raise Ambiguous("no image has few enough objects of two categories")
    number = _pick(by_number.values, draw.choices)
    first, second = pairs[_pick(by_number[number], draw.rng)]
    chosen = int(groups.image[first])
    wanted = [int(groups.category[one]) for one in draw.rng.permutation([first, second])]
    rows = annotations.of_image(chosen)
    names = [annotations.categories[category] for category in wanted]

    def check(pictures: Sequence[Pixels]) -> int:
        return sum(row[1] in wanted and not row[6] for row in rows)

    question = draw.phrase(PAIR_QUESTIONS, first=names[0], second=names[1])
    picture = _whole(draw, annotations, chosen)
    return Sample((picture, "\n" + question), str(number), number, {"categories": names}, check)


# What these find in all annotations is the same for every sample, and takes longer than the rest of a sample.
_once = lru_cache(maxsize=32)


@_once
def askable_categories(annotations: Annotations) -> npt.NDArray[np.int64]:
    """Categories that some image shows and of which some other surely has nothing."""
    groups = annotations.groups
    shown = np.unique(groups.category[groups.countable & (groups.largest >= VISIBLE)])
    return np.array([category for category in shown if len(annotations.without(int(category)))], dtype=np.int64)


def available(annotations: Annotations) -> dict[str, bool]:
    """Whether each kind of question of this file can be asked, by its name."""
    groups = annotations.groups
    return {
        "category_presence": bool(len(askable_categories(annotations))),
        "category_location": all(len(_cells(annotations, grid).values) for grid in _grids()),
        "category_count": bool(len(_numbers(groups, knobs.COUNT_ANNOTATED.count(0)).values)),
        "pair_count": bool(len(_pairs(groups, knobs.COUNT_ANNOTATED.count(0))[0])),
    }


def _annotations(draw: Draw) -> Annotations:
    if draw.annotations is None:
        raise RuntimeError("questions about annotated photographs are only drawn where there are annotations")
    return draw.annotations


def _grids() -> range:
    return range(knobs.SCENE_GRID.count(0), knobs.SCENE_GRID.count(1) + 1)


def _pick(values: npt.NDArray[np.int64], rng: np.random.Generator) -> int:
    return int(values[int(rng.integers(len(values)))])


def _nearest_size(groups_wanted: npt.NDArray[np.int64], groups: Groups, draw: Draw) -> int:
    """Of some of the groups, drawn at random, that whose largest object is nearest to the size wanted."""
    drawn = draw.rng.choice(groups_wanted, size=min(_NEAR_SIZES, len(groups_wanted)), replace=False)
    return int(drawn[np.argmin(np.abs(groups.largest[drawn] - knobs.BOX_SIZE.at(draw.difficulty)))])


def _image_without(category: int, annotations: Annotations, draw: Draw) -> int:
    """An image with nothing of a category; as often as the difficulty says, with a relative of it, if there is one."""
    free = annotations.without(category)
    close = draw.rng.random() < knobs.SCENE_ALIKE.at(draw.difficulty)
    if close and len(related := np.intersect1d(free, _with_any_of(annotations, category), assume_unique=True)):
        free = related
    return _pick(free, draw.rng)


def _with_any_of(annotations: Annotations, category: int) -> npt.NDArray[np.int64]:
    """The images that have a category with this one's supercategory, rising."""
    groups, supers = annotations.groups, annotations.supercategory
    relatives = np.nonzero(supers == supers[category])[0]
    return np.unique(np.concatenate([groups.image[groups.of_category[int(one)]] for one in relatives]))


@_once
def _numbers(groups: Groups, most: int) -> Partition:
    """The countable groups by how many objects they have, at most ``most``."""
    return Partition.of(groups.count, np.nonzero(groups.countable & (groups.count <= most))[0])


@_once
def _cells(annotations: Annotations, grid: int) -> Partition:
    """The groups of one object clearly inside a cell (row * grid + column), by that cell."""
    groups = annotations.groups
    boxes = annotations.boxes[groups.row].astype(np.float64)
    place = (boxes[:, :2] + boxes[:, 2:]) / 2 * grid
    inside = np.abs(place - np.floor(place) - 0.5).max(axis=1) <= 0.5 - _CELL_MARGIN
    cell = np.floor(place).astype(np.int64)
    clear = inside & groups.countable & (groups.count == 1)
    return Partition.of(cell[:, 1] * grid + cell[:, 0], np.nonzero(clear)[0])


@_once
def _pairs(groups: Groups, most: int) -> tuple[npt.NDArray[np.int64], Partition]:
    """Neighbouring countable groups of one image [pairs, 2], also by how many objects they have, at most ``most``."""
    known = np.nonzero(groups.countable)[0]
    pairs = np.stack([known[:-1], known[1:]], axis=1)
    pairs = pairs[groups.image[pairs[:, 0]] == groups.image[pairs[:, 1]]]
    sums = groups.count[pairs].sum(axis=1)
    return pairs[sums <= most], Partition.of(sums[sums <= most])


def _whole(draw: Draw, annotations: Annotations, chosen: int) -> Picture:
    """An annotated photograph, not cut, its longer side ``max_side`` pixels."""
    index = int(annotations.images[chosen])
    draw.used.append(draw.images.names[index])
    picture = draw.images.load(index)
    return picture if max(picture.size) <= draw.images.max_side else resized(picture, draw.images.max_side)
