"""The file of COCO-style instance annotations, read entry by entry and checked completely.

It is one JSON object: ``images`` (id, file_name, width, height), ``categories`` (id, name, supercategory) and
``annotations`` (image_id, category_id, bbox = [left, top, width, height] in pixels of the upright image, iscrowd).

COCO's annotators looked for every category in every image. Where that was too much (LVIS, Open Images), the set is
*federated*: an image says which categories were looked for and not found (``neg_category_ids``) and of which not all
objects have a box (``not_exhaustive_category_ids``); of the rest nothing is known. LVIS 1.0 names an image by its
``coco_url``.

What marks say of a box, an image or a category: :mod:`coco_marks`. Numbers may be written as fractions or texts, as
tables and VIA do, and names of files with the folder that they were in.

Such files have hundreds of megabytes, nearly all of it polygons that nobody asks for here. Only one entry at a time is
held, and of each only what is asked for is kept.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from megatron_apriel.data.raw.files.json_arrays import BrokenArray, is_array, object_members
from megatron_apriel.data.raw.problems import printable as writable
from megatron_apriel.data.raw.read_limits import LimitExceeded, ReadLimits
from megatron_apriel.data.visual_tasks.coco_marks import (
    GROUPS,
    PLACES,
    has_mark,
    holds_nothing,
    is_region,
    is_unmarked,
    letters_of,
    marks_of,
)
from megatron_apriel.errors import DataError, listed, printable, shown
from megatron_apriel.formats.json_files import unique_keys
from megatron_apriel.inputs import open_input

ENTRY_LIMITS = ReadLimits(record_bytes=4 * 2**20)
"""On one entry; the largest of published files, an outline of a crowd, has some hundred kilobytes."""

_FAR = 1e9  # pixels; whatever is so far away is no place in an image
_EXPECTED = "Expected are COCO instances: one object with the lists images, annotations and categories."

_NOT_ALL, _ABSENT, _FOUND = "not_exhaustive_category_ids", "neg_category_ids", "pos_category_ids"
_LISTS = {
    **dict.fromkeys(
        ("notexhaustivecategoryids", "nonexhaustivecategoryids", "notexhaustivecategories", "nonexhaustivecategories"),
        _NOT_ALL,
    ),
    **dict.fromkeys(("negcategoryids", "negativecategoryids", "negcategories", "negativecategories"), _ABSENT),
    **dict.fromkeys(
        ("poscategoryids", "positivecategoryids", "poscategories", "positivecategories", "verifiedcategoryids",
         "annotatedcategoryids", "annotatedcategories", "labeledcategoryids", "labeledcategories"),
        _FOUND,
    ),
}  # fmt: skip
"""Those lists of an image, by what sets call them, in small letters alone."""
_LVIS = frozenset({"frequency", "synset"})
"""Fields of categories that only LVIS has, also in a file that lost its lists."""
_XYWH = (None, 1, "XYWH_ABS", "BoxMode.XYWH_ABS", "xywh", "XYWH", "coco", "COCO", "ltwh", "tlwh")
"""Names of COCO's form of boxes, Detectron2's and others."""
_FORMS = frozenset({"bboxmode", "boxmode", "bboxformat", "boxformat", "bboxtype"})
_SHARES = frozenset({"normalized", "isnormalized", "normalised", "relative", "isrelative"})
"""Names of what says that boxes are in shares of the image's sides."""
_LONGEST_NUMBER = 15  # digits; longer texts are names

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
        unmarked: it is to be ignored, or says that some of its objects have no box.
    """

    identity: Identity
    file_names: tuple[str, ...]
    size: tuple[int, int]
    absent: frozenset[int] | None
    not_all: frozenset[int]
    unmarked: bool = False


@dataclass(frozen=True)
class Category:
    """One of ``categories``.

    Attributes:
        identity: its id.
        name: as questions call it.
        supercategory: what it is a kind of.
        parents: names and ids of categories that it is a kind of.
        countless: its boxes are none of single objects: stuff, background, what is to be ignored.
    """

    identity: int
    name: str
    supercategory: str
    parents: tuple[str | int, ...] = ()
    countless: bool = False

    @property
    def is_region(self) -> bool:
        """Its boxes are places where nothing was marked, not objects."""
        return is_region(self.name)


@dataclass
class Document:
    """What a file says, each entry by itself correct.

    Attributes:
        name: of the file, as messages call it.
        images: in the order of the file; no id twice.
        categories: in the order of their ids; no id and no name twice.
        boxes: in the order of the file.
        has_groups: some box, or category, has a field that only Open Images or LVIS has.
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
        if isinstance(elements, bytes):
            _check_whole(elements, member, f"{name}: {member}")
            continue
        if member == "videos":
            _check_videos(elements, f"{name}: {member}")
        if member in makers:
            lists.add(member)
            entries = _entries(elements, f"{name}: {member}")
            for entry, where in entries:
                kept[member].append(makers[member](entry, where))
                own = {"freebase_id", *(_LVIS if member == "categories" else ())}
                document.has_groups |= not own.isdisjoint(entry) or not GROUPS.isdisjoint(map(letters_of, entry))
    for member in makers:
        if member not in lists:
            raise DataError(f"{name} has no list {member!r}; it has {listed(members, 8) or 'nothing'}.", _EXPECTED)
    _leave_out_roots(document)
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


def _leave_out_roots(document: Document) -> None:
    """Leave out categories without a box whose name another one has: Roboflow may call the root of its tree so."""
    boxed = {box[1] for box in document.boxes}
    names = Counter(category.name for category in document.categories)
    kept = [one for one in document.categories if names[one.name] == 1 or one.identity in boxed]
    roots = names - Counter(one.name for one in kept)
    if all(any(one.name == root for one in kept) for root in roots):
        # Where others say that they are of that kind, they mean the root.
        document.categories[:] = [
            replace(one, parents=tuple(parent for parent in one.parents if parent not in roots)) for one in kept
        ]


def _check_whole(value: bytes, member: str, place: str) -> None:
    """Raise DataError where the file says of all its boxes that they are in another form."""
    try:
        entry = json.loads(value)
    except (ValueError, RecursionError):
        return  # nothing else is asked of it
    _check_form(entry if isinstance(entry, dict) else {member: entry}, place)


def _check_form(entry: Mapping[str, Any], where: str) -> None:
    """Raise DataError where an entry says that boxes are no pixels of left, top, width and height."""
    for name, value in entry.items():
        if (letters_of(name) in _FORMS and value not in _XYWH) or (letters_of(name) in _SHARES and value):
            raise DataError(
                f"{where}: {name} {shown(value)} is another form than [left, top, width, height] in pixels.",
                fix="Write the boxes in COCO's form, which is bbox_mode 1 (XYWH_ABS).",
            )


def _check_videos(elements: Iterator[bytes], place: str) -> None:
    """Raise DataError where videos, not their images, say what was looked for (TAO)."""
    for entry, where in _entries(elements, place):
        if isinstance(entry, dict) and (found := [name for name in entry if letters_of(name) in _LISTS]):
            raise DataError(
                f"{where} has {found[0]}: it says of a whole film what was looked for.",
                fix="Give these lists to each of its images.",
            )


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
    identity = _identity(entry, "id", where)
    size = (_whole(entry, "width", where), _whole(entry, "height", where))
    lists = {_LISTS[letters]: name for name in entry if (letters := letters_of(name)) in _LISTS}
    federated = any(entry[name] is not None for name in lists.values())
    absent, not_all = (_identities(entry, lists.get(name, name), where) for name in (_ABSENT, _NOT_ALL))
    names = _file_names(entry, where)
    return ImageEntry(identity, names, size, absent if federated else None, not_all, is_unmarked(entry))


def _file_names(entry: Any, where: str) -> tuple[str, ...]:
    """The file's name, then what is left of it without the folders that it was in; or the end of its address."""
    given = entry.get("file_name")
    if given is None and isinstance(entry.get("coco_url"), str):
        given = entry["coco_url"]
    elif not isinstance(given, str):
        given = _get(entry, "file_name", (str,), where)
    path = given.partition("://")[2].partition("/")[2] if "://" in given else given
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    if not parts:
        raise DataError(f"{where} has the file_name or coco_url {shown(given)}, which names no file.")
    ends = ("/".join(parts[number:]) for number in range(len(parts)))
    return tuple(dict.fromkeys((path, *ends)))


def _identities(entry: Any, name: str, where: str) -> frozenset[int]:
    """A list of ids of categories; none where there is no such list."""
    given = entry.get(name)
    if given is None:
        return frozenset()
    numbers = [_whole_number(value) for value in given] if isinstance(given, list) else [None]
    if None in numbers:
        raise DataError(f"{where}: {name} {shown(given)} is no list of ids of categories.")
    return frozenset(number for number in numbers if number is not None)


def _category(entry: Any, where: str) -> Category:
    identity, name = _whole(entry, "id", where), _get(entry, "name", (str,), where)
    if writable(name) != name:
        raise DataError(f"{where}: the name {shown(name)} holds half of a surrogate pair.")
    given = entry.get("supercategory")
    if given is not None and not isinstance(given, str):
        raise DataError(
            f"{where}: the supercategory {shown(given)} is no text.", fix="Correct the file or leave it out."
        )
    listed = (entry.get(key) for key in ("parent", "parent_id", "parents", "parent_ids"))
    parents = [one for value in listed for one in (value if isinstance(value, list) else [value])]
    known = tuple(one for one in (given, *parents) if type(one) in (int, str) and one not in ("", name))
    stuff = entry.get("isthing") in (0, False) and entry.get("isthing") is not None
    countless = stuff or holds_nothing(name) or has_mark(entry)
    return Category(identity, name, given or f"category {identity}", known, countless)


def _box(entry: Any, where: str) -> Box:
    image, category = _identity(entry, "image_id", where), _whole(entry, "category_id", where)
    box = _get(entry, "bbox", (list,), where)
    if len(box) != 4 or not all(type(value) in (int, float) and -_FAR < value < _FAR for value in box):
        raise DataError(f"{where}: bbox {shown(box)} is not [left, top, width, height] in pixels.")
    _check_form(entry, where)
    marks = marks_of(entry)
    return image, category, (box[0], box[1], box[2], box[3]), bool(marks), not marks.isdisjoint(PLACES)


def _identity(entry: Any, name: str, where: str) -> Identity:
    """An id of an image: a number, however it is written, or a name."""
    number = _whole_number(entry.get(name)) if isinstance(entry, dict) else None
    return _get(entry, name, (int, str), where) if number is None else number


def _whole(entry: Any, name: str, where: str) -> int:
    value = entry.get(name) if isinstance(entry, dict) else None
    number = _whole_number(value)
    return _get(entry, name, (int,), where) if number is None else number


def _whole_number(value: Any) -> int | None:
    """A whole number, as tables (1.0) and VIA ("1") also write it; else None."""
    if isinstance(value, str):
        plain = value.isdecimal() and value.isascii() and len(value) <= _LONGEST_NUMBER
        return int(value) if plain and str(int(value)) == value else None
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < _FAR else None
    return value if type(value) is int else None


def _get(entry: Any, name: str, kinds: tuple[type, ...], where: str) -> Any:
    """A required value of an entry; ``bool`` is no number here."""
    value = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(value, kinds) or isinstance(value, bool):
        found = "has none" if value is None else f"has {shown(value)}"
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise DataError(f"{where} needs {name!r} ({wanted}); it {found}.", fix="Correct the file or write it again.")
    return value
