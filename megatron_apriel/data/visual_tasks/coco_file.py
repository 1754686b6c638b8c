"""The file of COCO-style instance annotations, read entry by entry and checked completely.

It is one JSON object: ``images`` (id, file_name, width, height), ``categories`` (id, name, supercategory) and
``annotations`` (image_id, category_id, bbox = [left, top, width, height] in pixels of the upright image, iscrowd).

Such files have hundreds of megabytes, nearly all of it polygons that nobody asks for here. Only one entry at a time is
held, and of each only what is asked for is kept.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from megatron_apriel.data.raw.json_arrays import BrokenArray, is_array, object_members
from megatron_apriel.data.raw.problems import printable as writable
from megatron_apriel.data.raw.read_limits import LimitExceeded, ReadLimits
from megatron_apriel.errors import DataError, listed, printable, shown
from megatron_apriel.formats.json_files import unique_keys
from megatron_apriel.inputs import open_input

ENTRY_LIMITS = ReadLimits(record_bytes=4 * 2**20)
"""On one entry; the largest of published files, an outline of a crowd, has some hundred kilobytes."""

_FAR = 1e9  # pixels; whatever is so far away is no place in an image
_EXPECTED = "Expected are COCO instances: one object with the lists images, annotations and categories."

Box = tuple[int, int, tuple[float, float, float, float], bool]
"""Ids of image and category, bbox, crowd."""


@dataclass(frozen=True)
class ImageEntry:
    """One of ``images``; ``size`` is (width, height)."""

    identity: int
    file_name: str
    size: tuple[int, int]


@dataclass(frozen=True)
class Category:
    """One of ``categories``."""

    identity: int
    name: str
    supercategory: str


@dataclass
class Document:
    """What a file says, each entry by itself correct.

    Attributes:
        name: of the file, as messages call it.
        images: in the order of the file; no id twice.
        categories: in the order of their ids; no id and no name twice.
        boxes: in the order of the file.
    """

    name: str
    images: list[ImageEntry] = field(default_factory=list)
    categories: list[Category] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)


def read_document(path: Path) -> Document:
    """Read an annotation file. Raises DataError if it is missing, damaged or not of this form."""
    name = printable(path)
    try:
        with open_input(path) as stream:
            if is_array(cast(io.BufferedReader, stream)):
                raise DataError(f"{name} holds a list.", _EXPECTED)
            stream.seek(0)
            return _document(cast(io.BufferedReader, stream), name)
    except FileNotFoundError:
        raise DataError(f"the annotations {name} do not exist.") from None
    except OSError as error:
        raise DataError(f"the annotations {name} cannot be read: {error.strerror}.") from None
    except BrokenArray as error:
        raise DataError(f"the annotations {name} are not JSON: {error}.", fix="Copy or download them again.") from None
    except LimitExceeded as error:
        raise DataError(
            f"the annotations {name} cannot be read: {error}.", "An entry describes one object of one image."
        ) from None


def _document(stream: io.BufferedIOBase, name: str) -> Document:
    document = Document(name)
    kept: dict[str, list[Any]] = {
        "images": document.images, "annotations": document.boxes, "categories": document.categories,
    }  # fmt: skip
    makers = {"images": _image, "annotations": _box, "categories": _category}
    members, lists = list[str](), set[str]()
    for member, elements in object_members(stream, ENTRY_LIMITS):
        members.append(member)
        if elements is not None and member in makers:
            lists.add(member)
            entries = _entries(elements, f"{name}: {member}")
            kept[member] += [makers[member](entry, where) for entry, where in entries]
    for member in makers:
        if member not in lists:
            raise DataError(f"{name} has no list {member!r}; it has {listed(members, 8) or 'nothing'}.", _EXPECTED)
    document.categories.sort(key=lambda category: category.identity)
    identities = set[int]()
    for number, image in enumerate(document.images):
        if image.identity in identities:
            raise DataError(
                f"{name}: images[{number}]: the id {shown(image.identity)} is another image's too.",
                fix="Give each its own.",
            )
        identities.add(image.identity)
    for key, values in (
        ("id", [category.identity for category in document.categories]),
        ("name", [category.name for category in document.categories]),
    ):
        if repeated := [value for value, count in Counter(values).items() if count > 1]:
            raise DataError(f"{name}: two categories have the {key} {shown(repeated[0])}.", fix="Give each its own.")
    return document


def _entries(elements: Iterator[bytes], place: str) -> Iterator[tuple[Any, str]]:
    """Each entry with the words for where it stands."""
    for number, element in enumerate(elements):
        where = f"{place}[{number}]"
        try:
            entry = json.loads(element.decode("utf-8"), object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} cannot be read: {error}.", fix="Correct the file or write it again.") from None
        yield entry, where


def _image(entry: Any, where: str) -> ImageEntry:
    identity = _get(entry, "id", (int,), where)
    size = (_get(entry, "width", (int,), where), _get(entry, "height", (int,), where))
    return ImageEntry(identity, _get(entry, "file_name", (str,), where), size)


def _category(entry: Any, where: str) -> Category:
    identity, name = _get(entry, "id", (int,), where), _get(entry, "name", (str,), where)
    if writable(name) != name:
        raise DataError(f"{where}: the name {shown(name)} holds half of a surrogate pair.")
    given = entry.get("supercategory")
    if given is not None and not isinstance(given, str):
        raise DataError(
            f"{where}: the supercategory {shown(given)} is no text.", fix="Correct the file or leave it out."
        )
    return Category(identity, name, given or f"category {identity}")


def _box(entry: Any, where: str) -> Box:
    image, category = _get(entry, "image_id", (int,), where), _get(entry, "category_id", (int,), where)
    box = _get(entry, "bbox", (list,), where)
    if len(box) != 4 or not all(type(value) in (int, float) and -_FAR < value < _FAR for value in box):
        raise DataError(f"{where}: bbox {shown(box)} is not [left, top, width, height] in pixels.")
    return image, category, (box[0], box[1], box[2], box[3]), bool(entry.get("iscrowd"))


def _get(entry: Any, name: str, kinds: tuple[type, ...], where: str) -> Any:
    """A required value of an entry; ``bool`` is no number here."""
    value = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(value, kinds) or isinstance(value, bool):
        found = "has none" if value is None else f"has {shown(value)}"
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise DataError(f"{where} needs {name!r} ({wanted}); it {found}.", fix="Correct the file or write it again.")
    return value
