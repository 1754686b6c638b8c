"""COCO-style instance annotations: which objects are where in which image.

The file is one JSON object: ``images`` (id, file_name, width, height), ``categories`` (id, name, supercategory) and
``annotations`` (image_id, category_id, bbox = [left, top, width, height] in pixels of the upright image, iscrowd). It
is checked completely before it is used; what it says of images that are not there is counted, not guessed.

Kept are arrays with one row per box, and one row per *group*, all boxes of one category in one image. A group may only
be counted, or asked for, if the annotators did so: no box of it marks a crowd, and none is tiny. A category that is in
an image only as a crowd or tiny is neither present nor absent there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_apriel.data.problems import printable
from megatron_apriel.errors import DataError

TINY = 0.03
"""Shorter side of a box, as a share of the image's, below which the object is hardly visible."""

_FAR = 1e9  # pixels; whatever is so far away is no place in an image

BoxRow = tuple[int, int, float, float, float, float, bool]
"""Image, category, left, top, right, bottom (shares of the image's sides), crowd."""


@dataclass(frozen=True)
class Annotations:
    """Boxes of the usable images.

    Attributes:
        images: number of the raw image of each annotated image.
        categories: names, in the order of their ids.
        supercategory: number of each category's supercategory.
        box_image, box_category: int32 [boxes], positions in ``images`` and ``categories``.
        boxes: float32 [boxes, 4], left, top, right, bottom as shares of the image's sides.
        crowd: bool [boxes], a crowd or a box that could not be used.
        problems: what was passed over, and how often.
    """

    images: npt.NDArray[np.int64]
    categories: tuple[str, ...]
    supercategory: npt.NDArray[np.int32]
    box_image: npt.NDArray[np.int32]
    box_category: npt.NDArray[np.int32]
    boxes: npt.NDArray[np.float32]
    crowd: npt.NDArray[np.bool_]
    problems: dict[str, int]

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


@dataclass(frozen=True)
class Groups:
    """All boxes of one category in one image, one row each.

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


def read_annotations(path: Path, names: Mapping[str, int], sizes: Mapping[int, tuple[int, int]]) -> Annotations:
    """Read and check an annotation file.

    Args:
        path: the JSON file.
        names: number of each usable raw image, by its path relative to the folder.
        sizes: (width, height) of each, upright.

    Raises:
        DataError: the file is missing, damaged, not of this form, or says nothing of any usable image.
    """
    document = _document(path)
    problems: dict[str, int] = {}
    categories, positions = _categories(document, path)
    images, places, shapes = _images(document, path, names, sizes, problems)
    if not images:
        listed = ", ".join(f"{reason}: {count}" for reason, count in problems.items())
        raise DataError(
            f"{path} describes {len(document['images'])} images, none of them usable here ({listed or 'none'}).",
            "An image is found by its file_name, relative to the folder of images.",
            "Give the folder that these annotations belong to with --images, or the annotations of these images.",
        )
    rows = _rows(document, path, places, positions, shapes, problems)
    rows.sort(key=lambda row: row[0])
    supers = [str(entry.get("supercategory") or f"category {entry['id']}") for entry in _sorted(document)]
    numbers = {name: number for number, name in enumerate(sorted(set(supers)))}
    return Annotations(
        images=np.array(images, dtype=np.int64),
        categories=tuple(categories),
        supercategory=np.array([numbers[name] for name in supers], dtype=np.int32),
        box_image=np.array([row[0] for row in rows], dtype=np.int32),
        box_category=np.array([row[1] for row in rows], dtype=np.int32),
        boxes=np.array([row[2:6] for row in rows], dtype=np.float32).reshape(-1, 4),
        crowd=np.array([row[6] for row in rows], dtype=bool),
        problems=problems,
    )


def _document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"the annotations {path} do not exist.") from None
    except OSError as error:
        raise DataError(f"the annotations {path} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"the annotations {path} are not JSON: {error}.", fix="Copy or download them again.") from None
    expected = "COCO instances: one object with the lists images, annotations and categories."
    if not isinstance(document, dict):
        raise DataError(f"{path} holds a {type(document).__name__}.", f"Expected are {expected}")
    for name in ("images", "annotations", "categories"):
        if not isinstance(document.get(name), list):
            found = ", ".join(map(str, list(document)[:8])) or "nothing"
            raise DataError(f"{path} has no list {name!r}; it has {found}.", f"Expected are {expected}")
    return document


def _get(entry: Any, name: str, kinds: tuple[type, ...], where: str) -> Any:
    """A required value of an entry; ``bool`` is no number here."""
    value = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(value, kinds) or isinstance(value, bool):
        found = "has none" if value is None else f"has {str(value)[:40]!r}"
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise DataError(f"{where} needs {name!r} ({wanted}); it {found}.", fix="Mend the file or write it again.")
    return value


def _sorted(document: dict[str, Any]) -> list[dict[str, Any]]:
    return sorted(document["categories"], key=lambda entry: entry["id"])


def _categories(document: dict[str, Any], path: Path) -> tuple[list[str], dict[int, int]]:
    for number, entry in enumerate(document["categories"]):
        _get(entry, "id", (int,), f"{path}: categories[{number}]")
        name = _get(entry, "name", (str,), f"{path}: categories[{number}]")
        if printable(name) != name:
            raise DataError(f"{path}: categories[{number}]: the name {name!r} holds half of a surrogate pair.")
    entries = _sorted(document)
    for key in ("id", "name"):
        values = [entry[key] for entry in entries]
        repeated = sorted({value for value in values if values.count(value) > 1})
        if repeated:
            raise DataError(f"{path}: two categories have the {key} {repeated[0]!r}.", fix="Give each its own.")
    return [entry["name"] for entry in entries], {entry["id"]: number for number, entry in enumerate(entries)}


def _images(
    document: dict[str, Any],
    path: Path,
    names: Mapping[str, int],
    sizes: Mapping[int, tuple[int, int]],
    problems: dict[str, int],
) -> tuple[list[int], dict[int, int | None], list[tuple[int, int]]]:
    """Raw image numbers, position of each image id (None: passed over), and sizes of those used."""
    images: list[int] = []
    shapes: list[tuple[int, int]] = []
    places: dict[int, int | None] = {}
    entries = []
    for number, entry in enumerate(document["images"]):
        where = f"{path}: images[{number}]"
        identity = _get(entry, "id", (int,), where)
        if identity in places:
            raise DataError(f"{where}: the id {identity} is another image's too.", fix="Give each its own.")
        places[identity] = None
        size = (_get(entry, "width", (int,), where), _get(entry, "height", (int,), where))
        entries.append((_get(entry, "file_name", (str,), where), identity, size))
    for name, identity, size in sorted(entries):
        raw = names.get(name)
        if raw is not None and images[-1:] == [raw]:
            # Nothing could be said to be absent: one entry does not know the other's boxes.
            raise DataError(
                f"{path}: two images have the file_name {name!r}.", fix="Give all its boxes to one of them."
            )
        if raw is None:
            _tally(problems, "images without a usable file")
        elif sizes[raw] != size:
            _tally(problems, "images whose upright file has another size than the annotations say")
        else:
            places[identity] = len(images)
            images.append(raw)
            shapes.append(size)
    return images, places, shapes


def _rows(
    document: dict[str, Any],
    path: Path,
    places: Mapping[int, int | None],
    positions: Mapping[int, int],
    shapes: list[tuple[int, int]],
    problems: dict[str, int],
) -> list[BoxRow]:
    rows: list[BoxRow] = []
    for number, entry in enumerate(document["annotations"]):
        where = f"{path}: annotations[{number}]"
        identity = _get(entry, "image_id", (int,), where)
        category = _get(entry, "category_id", (int,), where)
        box = _get(entry, "bbox", (list,), where)
        if len(box) != 4 or not all(type(value) in (int, float) and -_FAR < value < _FAR for value in box):
            raise DataError(f"{where}: bbox {str(box)[:60]} is not [left, top, width, height] in pixels.")
        if category not in positions:
            raise DataError(f"{where}: no category has the id {category}.", fix="Add it to the list categories.")
        if identity not in places:
            _tally(problems, "boxes of images that are not listed")
            continue
        place = places[identity]
        if place is None:
            continue  # its image was counted
        width, height = shapes[place]
        corners = (box[0], box[1], box[0] + box[2], box[1] + box[3])
        left, right = (min(max(corners[k], 0), width) / width for k in (0, 2))
        top, bottom = (min(max(corners[k], 0), height) / height for k in (1, 3))
        crowd = bool(entry.get("iscrowd"))
        if right <= left or bottom <= top:
            # Something of this category may be there, but not where it is said to be: like a crowd, never asked for.
            _tally(problems, "boxes that are empty or outside of their image")
            crowd = True
        elif min(corners[0], corners[1]) < -1 or corners[2] > width + 1 or corners[3] > height + 1:
            _tally(problems, "boxes cut to their image")
        rows.append((place, positions[category], left, top, right, bottom, crowd))
    return rows


def _tally(problems: dict[str, int], reason: str) -> None:
    problems[reason] = problems.get(reason, 0) + 1
