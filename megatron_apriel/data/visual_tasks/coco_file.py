"""The file of COCO-style instance annotations, read entry by entry and checked completely.

It is one JSON object: ``images`` (id, file_name, width, height), ``categories`` (id, name, supercategory) and
``annotations`` (image_id, category_id, bbox = [left, top, width, height] in pixels of the upright image, iscrowd).

COCO's annotators looked for every category in every image. Where that was too much (LVIS, Open Images), the set is
*federated*: an image says which categories were looked for and not found (``neg_category_ids``) and of which not all
objects have a box (``not_exhaustive_category_ids``); of the rest nothing is known. LVIS 1.0 names an image by its
``coco_url``.

A box that marks no single object says so, and each set calls that something else: a crowd, a group, to be ignored,
too difficult, a mere picture or reflection. :data:`MARKS` has the names, spelled in any way, in the entry itself or in
an object or list inside of it (``attributes``, ``extra``, ``tags``). So does a box that nobody verified: its score is
below 1, or it says that it was not.

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
    "isinside", "invalid", "isinvalid", "pseudo", "ispseudo", "pseudolabel",
})  # fmt: skip
"""Names of marks that a box is not of one object to be found or counted, in small letters alone. COCO, CrowdHuman,
mmdetection, Open Images, Pascal VOC, Objects365, WIDER FACE."""
_SURE = frozenset({"verified", "isverified", "annotatorverified", "humanverified", "valid", "isvalid"})
"""Names of what must not say no."""
_SCORES = frozenset({"score", "confidence"})
"""Names of numbers that are 1 where somebody looked: of detectors, of Open Images, of VisDrone."""
_PLACES = frozenset({"ignore", "isignore", "ignored", "isignored", "ignoreflag", "gtignore"})
"""Those of them that say of a place that nothing in it was marked."""
_GROUPS = frozenset({"isgroupof", "groupof", "isgroup", "isdepiction"})
"""Those of them that only federated sets have."""
_REGIONS = frozenset({
    "ignore", "ignored", "ignoredregion", "ignoredregions", "ignoreregion", "dontcare", "crowd", "group", "persongroup",
    "peoplegroup", "pedestriangroup", "ridergroup", "cargroup", "truckgroup", "busgroup", "traingroup", "bicyclegroup",
    "motorcyclegroup", "caravangroup", "trailergroup",
})  # fmt: skip
"""Names of categories whose boxes are places where objects were not marked one by one: KITTI, VisDrone, CityPersons,
Cityscapes."""
_NOT_ALL, _ABSENT, _FOUND = "not_exhaustive_category_ids", "neg_category_ids", "pos_category_ids"
_LISTS = {name.replace("_", ""): name for name in (_NOT_ALL, _ABSENT, _FOUND)}
"""Those lists of an image, by their names in small letters alone."""
_EXHAUSTIVE = frozenset({"exhaustive", "isexhaustive", "fullyannotated", "isfullyannotated"})
"""Names of what an image denies where some of its objects have no box."""
_LVIS = frozenset({"frequency", "synset"})
"""Fields of categories that only LVIS has, also in a file that lost its lists."""
_XYWH = (None, 1, "XYWH_ABS", "BoxMode.XYWH_ABS")
"""Detectron2's names of COCO's form of boxes."""

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
        if elements is not None and member in makers:
            lists.add(member)
            entries = _entries(elements, f"{name}: {member}")
            for entry, where in entries:
                kept[member].append(makers[member](entry, where))
                own = {"freebase_id", *(_LVIS if member == "categories" else ())}
                document.has_groups |= not own.isdisjoint(entry) or not _GROUPS.isdisjoint(map(_letters, entry))
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
    lists = {_LISTS[letters]: name for name in entry if (letters := _letters(name)) in _LISTS}
    federated = any(entry[name] is not None for name in lists.values())
    absent, not_all = (_identities(entry, lists.get(name, name), where) for name in (_ABSENT, _NOT_ALL))
    unmarked = not _marks(entry).isdisjoint(_PLACES) or any(
        _letters(name) in _EXHAUSTIVE and value is not None and _says_no(value) for name, value in entry.items()
    )
    return ImageEntry(identity, _file_names(entry, where), size, absent if federated else None, not_all, unmarked)


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
    if entry.get("bbox_mode") not in _XYWH:
        raise DataError(
            f"{where}: bbox_mode {shown(entry['bbox_mode'])} is another form than [left, top, width, height].",
            fix="Write the boxes in COCO's form, which is bbox_mode 1 (XYWH_ABS).",
        )
    marks = _marks(entry)
    return image, category, (box[0], box[1], box[2], box[3]), bool(marks), not marks.isdisjoint(_PLACES)


def _marks(entry: dict[str, Any]) -> set[str]:
    """The marks of an entry, or of what it holds, that do not clearly say no: unknown (-1) is no reason to rely on."""
    found = {
        letters
        for part in (entry, *(value for value in entry.values() if isinstance(value, dict)))
        for name, value in part.items()
        if (letters := _letters(name)) in MARKS | _SURE | _SCORES and _is_marked(letters, value)
    }
    tags = entry.get("tags")
    named = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    return found | {letters for tag in named if (letters := _letters(tag)) in MARKS}


def _is_marked(letters: str, value: Any) -> bool:
    if letters in _SCORES:
        return type(value) in (int, float) and value < 1
    if letters in _SURE:
        return value is not None and _says_no(value)
    return not _says_no(value)


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
