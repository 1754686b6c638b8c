"""COCO-style instance annotations: which objects are where in which image.

How the file looks and is read: :mod:`coco_file`. What it says of images that are not there is counted, not guessed.

Kept are arrays with one row per box, and one row per *group*, all boxes of one category in one image. A group may only
be counted, or asked for, if the annotators did so: no box of it marks a crowd, none is tiny, the image has no place
where nothing was marked, and does not say that some have no box. A category that is in an image only as a crowd or tiny
is neither present nor absent there. In a federated set, absent is only what was looked for; see :mod:`coco_file`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_apriel.data.visual_tasks.coco_file import Document, Identity, read_document
from megatron_apriel.data.visual_tasks.coco_marks import in_singular
from megatron_apriel.data.visual_tasks.partition import Partition
from megatron_apriel.errors import DataError, shown
from megatron_apriel.quantities import counted

TINY = 0.03
"""Shorter side of a box, as a share of the image's, below which the object is hardly visible."""

_SAME = 0.9
"""Share of what two boxes cover together that both cover, from which on they are most likely of one object."""
_MOST_COMPARED = 50
"""Boxes of one category in an image that are compared with one another; more are never counted."""
_FEW = 10
"""Boxes from which on all of them together show that they are in another form."""
_MOST_KIN = 200
"""Categories below one; an image with a box of more has places where anything may be."""

BoxRow = tuple[int, int, float, float, float, float, bool]
"""Image, category, left, top, right, bottom (shares of the image's sides), crowd."""


@dataclass(frozen=True, eq=False)
class Annotations:
    """Boxes of the usable images.

    Attributes:
        images: number of the raw image of each annotated image.
        categories: names, in the order of their ids.
        supercategory: number of each category's supercategory.
        box_image, box_category: int32 [boxes], positions in ``images`` and ``categories``.
        boxes: float32 [boxes, 4], left, top, right, bottom as shares of the image's sides.
        crowd: bool [boxes], of no single object, in a group of which some have no box, or of a place that could not be
            used.
        absent: sorted int64 [known], image * number of categories + category, of what was looked for and not found;
            None where all that has no box is absent.
        unmarked: bool [images], with places where nothing was marked: nothing is absent there, nothing can be counted.
        problems: what was passed over, and how often.
    """

    images: npt.NDArray[np.int64]
    categories: tuple[str, ...]
    supercategory: npt.NDArray[np.int32]
    box_image: npt.NDArray[np.int32]
    box_category: npt.NDArray[np.int32]
    boxes: npt.NDArray[np.float32]
    crowd: npt.NDArray[np.bool_]
    absent: npt.NDArray[np.int64] | None
    unmarked: npt.NDArray[np.bool_]
    problems: dict[str, int]

    def without(self, category: int) -> npt.NDArray[np.int64]:
        """Positions of the images in which surely no object of a category is, rising."""
        having = self.groups.image[self.groups.of_category[category]]
        if self._absent_of is not None and self.absent is not None:
            listed = np.unique(self.absent[self._absent_of[category]] // len(self.categories))
            missing = np.setdiff1d(listed, having, assume_unique=True)
            return missing[~self.unmarked[missing]]
        free = ~self.unmarked
        free[having] = False
        return np.flatnonzero(free)

    @cached_property
    def _absent_of(self) -> Partition | None:
        """Positions in ``absent`` by category."""
        return None if self.absent is None else Partition.of(self.absent % len(self.categories))

    def of_image(self, image: int) -> list[BoxRow]:
        """All boxes of an annotated image, as they were read."""
        first, last = np.searchsorted(self.box_image, [image, image + 1])
        return [
            (image, int(self.box_category[row]), *map(float, self.boxes[row]), bool(self.crowd[row]))  # type: ignore[misc]
            for row in range(first, last)
        ]

    @cached_property
    def groups(self) -> Groups:
        """One row per category and image."""
        key = self.box_image.astype(np.int64) * len(self.categories) + self.box_category
        unique, inverse = np.unique(key, return_inverse=True)
        sides = self.boxes[:, 2:] - self.boxes[:, :2]
        usable = ~self.crowd & (sides.min(axis=1) >= TINY)
        size = np.sqrt(sides.prod(axis=1))
        largest, row = np.zeros(len(unique)), np.zeros(len(unique), dtype=np.int64)
        np.maximum.at(largest, inverse, np.where(usable, size, 0))
        row[inverse] = np.arange(len(key))  # of groups of one box, which are the only ones it is read for
        return Groups(
            image=unique // len(self.categories),
            category=unique % len(self.categories),
            count=np.bincount(inverse, minlength=len(unique)),
            countable=np.bincount(inverse, weights=~usable, minlength=len(unique)) == 0,
            largest=largest,
            row=row,
        )


@dataclass(frozen=True, eq=False)
class Groups:
    """All boxes of one category in one image, one row each, in the order of images.

    Attributes:
        image, category: int64 [groups], positions in the annotations.
        count: boxes, crowds included.
        countable: no crowd and nothing tiny among them.
        largest: size of the largest usable box, the square root of its share of the image; 0 if there is none.
        row: the box of a group that has one.
    """

    image: npt.NDArray[np.int64]
    category: npt.NDArray[np.int64]
    count: npt.NDArray[np.int64]
    countable: npt.NDArray[np.bool_]
    largest: npt.NDArray[np.float64]
    row: npt.NDArray[np.int64]

    @cached_property
    def of_category(self) -> Partition:
        """Positions of the groups by their category."""
        return Partition.of(self.category)


def read_annotations(path: Path, names: Mapping[str, int], sizes: Mapping[int, tuple[int, int]]) -> Annotations:
    """Read and check an annotation file.

    Args:
        path: the JSON file.
        names: number of each usable raw image, by its path relative to the folder.
        sizes: (width, height) of each, upright.

    Raises:
        DataError: the file is missing, damaged, not of this form, or says nothing of any usable image.
    """
    document = read_document(path)
    problems: dict[str, int] = {}
    images, places, shapes = _images(document, names, sizes, problems)
    if not images:
        listed = ", ".join(f"{reason}: {count}" for reason, count in problems.items())
        raise DataError(
            f"{document.name} describes {counted(len(document.images), 'image')}, none of them usable here"
            f" ({listed or 'none'}).",
            "An image is found by its file_name, relative to the folder of images.",
            "Give the folder that these annotations belong to with --images, or the annotations of these images.",
        )
    _check_form(document, places, shapes)
    rows, unmarked = _rows(document, places, shapes, problems)
    rows.sort(key=lambda row: row[0])
    rows = _without_doubles(rows, problems)
    supers = [category.supercategory for category in document.categories]
    numbers = {name: number for number, name in enumerate(sorted(set(supers)))}
    return Annotations(
        images=np.array(images, dtype=np.int64),
        categories=tuple(category.name for category in document.categories),
        supercategory=np.array([numbers[name] for name in supers], dtype=np.int32),
        box_image=np.array([row[0] for row in rows], dtype=np.int32),
        box_category=np.array([row[1] for row in rows], dtype=np.int32),
        boxes=np.array([row[2:6] for row in rows], dtype=np.float32).reshape(-1, 4),
        crowd=np.array([row[6] for row in rows], dtype=bool),
        absent=_absent(document, places) if document.is_federated else None,
        unmarked=np.isin(np.arange(len(images)), sorted(unmarked)),
        problems=problems,
    )


def _images(
    document: Document,
    names: Mapping[str, int],
    sizes: Mapping[int, tuple[int, int]],
    problems: dict[str, int],
) -> tuple[list[int], dict[Identity, int | None], list[tuple[int, int]]]:
    """Raw image numbers, position of each image id (None: passed over), and sizes of those used."""
    images: list[int] = []
    used = set[int]()
    shapes: list[tuple[int, int]] = []
    places: dict[Identity, int | None] = {entry.identity: None for entry in document.images}
    for entry in sorted(document.images, key=lambda entry: (entry.file_names, str(entry.identity))):
        raw = next((names[name] for name in entry.file_names if name in names), None)
        if raw is not None and raw in used:
            # Nothing could be said to be absent: one entry does not know the other's boxes.
            raise DataError(
                f"{document.name}: two images have the file_name {shown(entry.file_names[0])}.",
                fix="Give all its boxes to one of them.",
            )
        if raw is None:
            _tally(problems, "images without a usable file")
        elif sizes[raw] != entry.size:
            _tally(problems, "images whose upright file has another size than the annotations say")
        else:
            places[entry.identity] = len(images)
            images.append(raw)
            used.add(raw)
            shapes.append(entry.size)
    return images, places, shapes


def _absent(document: Document, places: Mapping[Identity, int | None]) -> npt.NDArray[np.int64]:
    """What was looked for and not found, as of :class:`Annotations`."""
    positions = {category.identity: number for number, category in enumerate(document.categories)}
    known = [
        place * len(positions) + positions[category]
        for entry in document.images
        if (place := places[entry.identity]) is not None
        for category in entry.absent or ()
        if category in positions
    ]
    return np.array(sorted(known), dtype=np.int64)


def _rows(
    document: Document, places: Mapping[Identity, int | None], shapes: list[tuple[int, int]], problems: dict[str, int]
) -> tuple[list[BoxRow], set[int]]:
    """Boxes of the used images, and the images that have places where nothing was marked."""
    rows: list[BoxRow] = []
    unmarked = {place for entry in document.images if entry.unmarked and (place := places[entry.identity]) is not None}
    seen = set[tuple[object, ...]]()
    positions = {category.identity: number for number, category in enumerate(document.categories)}
    not_all = {(entry.identity, category) for entry in document.images for category in entry.not_all}
    kin = _kin(document)
    related = set[tuple[int, int]]()
    for number, (identity, category, (x, y, across, down), crowd, is_place) in enumerate(document.boxes):
        if is_place and category not in positions:
            # VisDrone's places have category 0, which need not be listed.
            if (place := places.get(identity)) is not None:
                unmarked.add(place)
            continue
        if category not in positions:
            raise DataError(
                f"{document.name}: annotations[{number}]: no category has the id {shown(category)}.",
                fix="Add it to the list categories.",
            )
        if identity not in places:
            _tally(problems, "boxes of images that are not listed")
            continue
        place = places[identity]
        if place is None:
            continue  # its image was counted
        if document.categories[positions[category]].is_region:
            unmarked.add(place)
        width, height = shapes[place]
        left, right = (min(max(edge, 0), width) / width for edge in (x, x + across))
        top, bottom = (min(max(edge, 0), height) / height for edge in (y, y + down))
        if right <= left or bottom <= top:
            # Something of this category may be there, but not where it is said to be: like a crowd, never asked for.
            _tally(problems, "boxes that are empty or outside of their image")
            crowd = True
        elif min(x, y) < -1 or x + across > width + 1 or y + down > height + 1:
            _tally(problems, "boxes cut to their image")
        if (box := (place, category, x, y, across, down)) in seen:
            _tally(problems, "boxes that are there twice")
            crowd = True  # two objects in one place, or one object twice
        seen.add(box)
        crowd |= (identity, category) in not_all or document.categories[positions[category]].countless
        rows.append((place, positions[category], left, top, right, bottom, crowd))
        relatives = kin.get(positions[category], ())
        if len(relatives) > _MOST_KIN:
            unmarked.add(place)
        else:
            related.update((place, other) for other in relatives)
    # Where a man is marked, a person may be there, and is not counted among persons: as a crowd, never asked for.
    rows += [(place, other, 0.0, 0.0, 1.0, 1.0, True) for place, other in sorted(related)]
    return [(*row[:6], row[6] or row[0] in unmarked) for row in rows], unmarked


def _without_doubles(rows: list[BoxRow], problems: dict[str, int]) -> list[BoxRow]:
    """The boxes, those that nearly coincide with another of their category and image as of no single object."""
    together: dict[tuple[int, int], list[int]] = {}
    for number, row in enumerate(rows):
        if not row[6]:
            together.setdefault(row[:2], []).append(number)
    doubled = set[int]()
    for numbers in together.values():
        if 1 < len(numbers) <= _MOST_COMPARED:
            for one, other in combinations(numbers, 2):
                if _coincide(rows[one], rows[other]):
                    doubled |= {one, other}
    for number in doubled:
        rows[number] = (*rows[number][:6], True)
        _tally(problems, "boxes that nearly coincide with another")
    return rows


def _coincide(one: BoxRow, other: BoxRow) -> bool:
    """Whether two boxes cover nearly the same."""
    across = min(one[4], other[4]) - max(one[2], other[2])
    down = min(one[5], other[5]) - max(one[3], other[3])
    if across <= 0 or down <= 0:
        return False
    both = across * down
    either = sum((row[4] - row[2]) * (row[5] - row[3]) for row in (one, other)) - both
    return both > _SAME * either


def _check_form(document: Document, places: Mapping[Identity, int | None], shapes: list[tuple[int, int]]) -> None:
    """Raise DataError where all boxes together show that they are corners, or shares of the sides.

    Of boxes in pixels of left, top, width and height some lie further from the edge than they are wide, and hardly any
    leave their image.
    """
    known = [(box[2], shapes[place]) for box in document.boxes if (place := places.get(box[0])) is not None]
    boxes = [(*box, *shape) for box, shape in known if min(box[2:]) > 0]
    if len(boxes) < _FEW:
        return
    outside = sum(x + across > width + 1 or y + down > height + 1 for x, y, across, down, width, height in boxes)
    corners = all(x < r <= width + 1 and y < b <= height + 1 for x, y, r, b, width, height in boxes)
    shares = all(max(box[:4]) <= 1 for box in boxes)
    if shares or (corners and outside * _FEW > len(boxes)):
        form = "shares of the image's sides" if shares else "[left, top, right, bottom]"
        raise DataError(
            f"{document.name}: the bbox of all its {counted(len(boxes), 'box', 'boxes')} can only be {form}.",
            "Read as [left, top, width, height] in pixels, they would lie where nothing is.",
            "Write them in COCO's form.",
        )


def _kin(document: Document) -> dict[int, set[int]]:
    """For each category, by position, those that an object of it may be of as well: above, below, of the same name."""
    numbers: dict[str | int, int] = {}
    for number, category in enumerate(document.categories):
        numbers |= {category.name: number, category.identity: number}
    parents = {
        number: [numbers[one] for one in category.parents if one in numbers]
        for number, category in enumerate(document.categories)
        if category.parents
    }
    kin: dict[int, set[int]] = {}
    for number in parents:
        above, waiting = set[int](), [number]
        while waiting:
            waiting = [one for below in waiting for one in parents.get(below, ()) if one not in above]
            above.update(waiting)
        for one in above - {number}:
            kin.setdefault(number, set()).add(one)
            kin.setdefault(one, set()).add(number)
    spelled: dict[str, list[int]] = {}
    for number, category in enumerate(document.categories):
        spelled.setdefault(in_singular(category.name), []).append(number)
    for alike in spelled.values():
        for number in alike if len(alike) > 1 else ():
            kin.setdefault(number, set()).update(one for one in alike if one != number)
    return kin


def _tally(problems: dict[str, int], reason: str) -> None:
    problems[reason] = problems.get(reason, 0) + 1
