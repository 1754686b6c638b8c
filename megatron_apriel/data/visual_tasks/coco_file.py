"""The file of COCO-style instance annotations, read entry by entry and checked completely.

It is one JSON object: ``images`` (id, file_name, width, height), ``categories`` (id, name, supercategory) and
``annotations`` (image_id, category_id, bbox = [left, top, width, height] in pixels of the upright image, iscrowd).

COCO's annotators looked for every category in every image. Where that was too much (LVIS, Open Images), the set is
*federated*: an image says which categories were looked for and not found (``neg_category_ids``) and of which not all
objects have a box (``not_exhaustive_category_ids``); of the rest nothing is known. LVIS 1.0 names an image by its
``coco_url``.

A box that marks no single object says so, and each set calls that something else: a crowd, a group, to be ignored,
too difficult, a mere picture or reflection. :data:`MARKS` has the names, spelled in any way, in the entry itself or in
its ``attributes`` or ``extra``.

Such files have hundreds of megabytes, nearly all of it polygons that nobody asks for here. Only one entry at a time is
held, and of each only what is asked for is kept.
"""

from __future__ import annotations

import functools
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

MARKS = frozenset({
    "iscrowd", "crowd", "ignore", "isignore", "ignored", "isignored", "ignoreflag", "gtignore", "isgroupof", "groupof",
    "isgroup", "difficult", "isdifficult", "isdepiction", "isfake", "isreflected", "uncertain", "isuncertain",
})  # fmt: skip
"""Names of marks that a box is not of one object to be found or counted, in small letters alone. COCO, CrowdHuman,
mmdetection, Open Images, Pascal VOC, Objects365."""
_PLACES = frozenset({"ignore", "isignore", "ignored", "isignored", "ignoreflag", "gtignore"})
"""Those of them that say of a place that nothing in it was marked."""
_GROUPS = frozenset({"isgroupof", "groupof", "isgroup", "isdepiction"})
"""Those of them that only federated sets have."""
_REGIONS = frozenset({
    "ignore", "ignored", "ignoredregion", "ignoredregions", "ignoreregion", "dontcare", "crowd", "group", "persongroup",
})  # fmt: skip
"""Names of categories whose boxes are places where objects were not marked one by one: KITTI, VisDrone, CityPersons."""
_NOT_ALL, _ABSENT, _FOUND = "not_exhaustive_category_ids", "neg_category_ids", "pos_category_ids"

Identity = int | str
"""Of an image; Open Images' are texts."""
Box = tuple[Identity, int, tuple[float, float, float, float], bool, bool]
"""Ids of image and category, bbox, whether it is of no single object, whether nothing in it was marked."""


@dataclass(frozen=True)
class ImageEntry:
    """One of ``images``.

    Attributes:
        identity: its id.
        file_names: what its file may be called, the likeliest first.
        size: (width, height).
        absent: ids of categories that were looked for and not found; None where the image says nothing of that.
        not_all: ids of categories of which not all objects have a box.
    """

    identity: Identity
    file_names: tuple[str, ...]
    size: tuple[int, int]
    absent: frozenset[int] | None
    not_all: frozenset[int]


@dataclass(frozen=True)
class Category:
    """One of ``categories``."""

    identity: int
    name: str
    supercategory: str

    @property
    def is_region(self) -> bool:
        """Its boxes are places where nothing was marked, not objects."""
        return _letters(self.name) in _REGIONS


@dataclass
class Document:
    """What a file says, each entry by itself correct.

    Attributes:
        name: of the file, as messages call it.
        images: in the order of the file; no id twice.
        categories: in the order of their ids; no id and no name twice.
        boxes: in the order of the file.
        has_groups: some box, or category, has a field that only Open Images has.
    """

    name: str
    images: list[ImageEntry] = field(default_factory=list)
    categories: list[Category] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)
    has_groups: bool = False

    @property
    def is_federated(self) -> bool:
        """Whether what an image does not list as absent may be there."""
        return self.has_groups or any(image.absent is not None for image in self.images)


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
            for entry, where in entries:
                kept[member].append(makers[member](entry, where))
                document.has_groups |= "freebase_id" in entry or not _GROUPS.isdisjoint(map(_letters, entry))
    for member in makers:
        if member not in lists:
            raise DataError(f"{name} has no list {member!r}; it has {listed(members, 8) or 'nothing'}.", _EXPECTED)
    document.categories.sort(key=lambda category: category.identity)
    identities = set[Identity]()
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
    identity = _get(entry, "id", (int, str), where)
    size = (_get(entry, "width", (int,), where), _get(entry, "height", (int,), where))
    federated = [name for name in (_NOT_ALL, _ABSENT, _FOUND) if entry.get(name) is not None]
    absent = _identities(entry, _ABSENT, where) if federated else None
    return ImageEntry(identity, _file_names(entry, where), size, absent, _identities(entry, _NOT_ALL, where))


def _file_names(entry: Any, where: str) -> tuple[str, ...]:
    """The file's name, or the end of its address: with the folder above it, and alone."""
    address = entry.get("coco_url")
    if entry.get("file_name") is not None or not isinstance(address, str):
        return (_get(entry, "file_name", (str,), where),)
    parts = [part for part in address.partition("://")[2].split("/")[1:] if part]
    if not parts:
        raise DataError(f"{where} has no 'file_name', and its coco_url {shown(address)} names no file.")
    return ("/".join(parts[-2:]), parts[-1])


def _identities(entry: Any, name: str, where: str) -> frozenset[int]:
    """A list of ids of categories; none where there is no such list."""
    given = entry.get(name)
    if given is None:
        return frozenset()
    if not isinstance(given, list) or not all(type(value) is int for value in given):
        raise DataError(f"{where}: {name} {shown(given)} is no list of ids of categories.")
    return frozenset(given)


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
    image, category = _get(entry, "image_id", (int, str), where), _get(entry, "category_id", (int,), where)
    box = _get(entry, "bbox", (list,), where)
    if len(box) != 4 or not all(type(value) in (int, float) and -_FAR < value < _FAR for value in box):
        raise DataError(f"{where}: bbox {shown(box)} is not [left, top, width, height] in pixels.")
    marks = _marks(entry)
    return image, category, (box[0], box[1], box[2], box[3]), bool(marks), not marks.isdisjoint(_PLACES)


def _marks(entry: dict[str, Any]) -> set[str]:
    """The marks of a box, or of its attributes, that do not clearly say no: unknown (-1) is no reason to rely on it."""
    return {
        _letters(name)
        for part in (entry, entry.get("attributes"), entry.get("extra"))
        for name, value in (part.items() if isinstance(part, dict) else ())
        if _letters(name) in MARKS and not _says_no(value)
    }


def _says_no(value: Any) -> bool:
    word = value.strip().lower() if isinstance(value, str) else value
    return word is None or word in ("", "0", "0.0", "false", "no", "none", 0)


@functools.lru_cache(maxsize=4096)
def _letters(name: str) -> str:
    """A name without what sets differ in: case, spaces and lines."""
    return "".join(character for character in name.lower() if character.isalnum())


def _get(entry: Any, name: str, kinds: tuple[type, ...], where: str) -> Any:
    """A required value of an entry; ``bool`` is no number here."""
    value = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(value, kinds) or isinstance(value, bool):
        found = "has none" if value is None else f"has {shown(value)}"
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise DataError(f"{where} needs {name!r} ({wanted}); it {found}.", fix="Correct the file or write it again.")
    return value
