"""The images of a record and the places where they stand: markers in texts, parts, indices, positions.

A record names its images in one field and their places elsewhere. Places are found first, then the images are dealt
to them: in order to ``<image>`` and to empty image parts, by number to ``<image_1>`` and to parts with an index. Where
a record has images and no place at all they stand before the first question, as its makers' own readers put them.
A place without an image, and an image without a place, is a bad record.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from megatron_apriel.data.raw.documents import ImageValue
from megatron_apriel.data.raw.fields.meanings import (
    IMAGE_BYTES,
    IMAGE_FORM,
    IMAGE_INSIDE,
    IMAGE_PATH,
    IMAGES,
    PICTURE_FILES,
)
from megatron_apriel.data.raw.fields.ordering import check_order
from megatron_apriel.data.raw.fields.taken import Fields, is_hollow, is_nothing, kind_of
from megatron_apriel.data.raw.file_kinds import IMAGE_SUFFIXES, names_container
from megatron_apriel.data.raw.json_text import parsed_json
from megatron_apriel.data.raw.pictures.markers import (
    IMAGE_MARKER,
    LOOSELY_NUMBERED,
    NUMBERED_MARKER,
    OTHER_MARKER,
    PLAIN_MARKER,
    check_filled,
    loose_markers,
)
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.quantities import counted

_NAMED_MARKER = re.compile(
    rf"<(?:img|image)>([^<>\n]{{1,300}}(?:{'|'.join(map(re.escape, IMAGE_SUFFIXES))}))</(?:img|image)>", re.IGNORECASE
)
"""As Qwen-VL writes it: the image's path itself."""
_NUMBERED_FIELD = re.compile(r"(?:image|img|picture)_?(\d{1,3})(?:_path)?")
_FORM = re.compile(r"base64|url|file|image(?:/[\w.+-]+)?|image_url|jpe?g|png|gif|webp", re.IGNORECASE)
_OTHER_FORM = re.compile(r"(?:video|audio|text|application)/.+")
_FIELDS = (*IMAGES.names, *PICTURE_FILES.names)


@dataclass
class Place:
    """Where an image stands: its own, or the record's of this index, or the record's next one."""

    image: ImageValue | None = None
    index: int | None = None


@dataclass
class Pictures:
    """A record's images.

    Attributes:
        images: as they are listed; None for an empty entry, which counts for indices only.
        numbers: images by the number that markers give, where the record numbers them itself.
    """

    images: list[ImageValue | None] = field(default_factory=list)
    numbers: dict[int, ImageValue] = field(default_factory=dict)

    @property
    def present(self) -> list[ImageValue]:
        return [image for image in self.images if image is not None]

    def numbered(self, numbers: list[int]) -> dict[int, ImageValue | None]:
        """The images by those numbers of markers, which count from 0 if 0 is among them, and from 1 otherwise."""
        if self.numbers:
            return dict(self.numbers)
        return dict(enumerate(self.images, start=0 if 0 in numbers else 1))


def pictures_of(record: Fields, most_values: int) -> Pictures:
    """The images that a record, or a turn, lists. Raises BadRecord."""
    for name in _FIELDS:
        value = record.peek(name)
        if is_nothing(value) or names_container(value) or (name in PICTURE_FILES.names and not _names_images(value)):
            continue
        listed, named = _listed(value, record.path(name), most_values)
        check_order(record.kept(list(listed.values()), record.path(name)), record.path(name))
        images = [clean_image(one, record, record.path(name)) for one in listed.values()]
        if any(image is not None for image in images):
            for other in _FIELDS:
                if other == name or other not in record:
                    record.take(other)
            numbers = {key: image for key, image in zip(listed, images, strict=True) if image is not None}
            return Pictures(images, numbers if named else {})
    for name in IMAGES.names:
        if is_hollow(record.peek(name)):
            record.take(name)
    by_number = {
        number: image
        for number, name in sorted(_numbered(record).items())
        if (image := clean_image(record.take(name), record, record.path(name))) is not None
    }
    return Pictures(list(by_number.values()), by_number)


def names_pictures(record: Fields) -> bool:
    """Whether a field of images says anything, be it wrong."""
    files = [name for name in PICTURE_FILES.names if _names_images(record.peek(name) or [0])]
    return any(
        not (is_hollow(one := record.peek(name)) or names_container(one))
        for name in (*IMAGES.names, *files, *_numbered(record).values())
    )


def _numbered(record: Fields) -> dict[int, str]:
    return {int(found[1]): name for name in record.names() if (found := _NUMBERED_FIELD.fullmatch(name))}


def clean_image(value: Any, owner: Fields, path: str) -> ImageValue | None:
    """An image's bytes, text, or object of bytes and path; None for an empty entry.

    Raises:
        BadRecord: of a kind that is no image.
    """
    if is_nothing(value):
        return None
    if isinstance(value, str | bytes):
        return value
    if not isinstance(value, Mapping):
        raise BadRecord(f"an image is {kind_of(value)}; known: path, data URL, base64, bytes, bytes and path")
    fields = owner.inner(value, "image", path)
    data = fields.take(*IMAGE_BYTES.names)
    place = fields.take(*(IMAGE_PATH.names[:1] if data is not None else IMAGE_PATH.names))
    for name in IMAGE_FORM.names:
        form = fields.peek(name)
        if isinstance(form, str) and _OTHER_FORM.fullmatch(form):
            raise BadRecord(f"field {fields.path(name)!r} is {form!r}, which is no image")
        if is_nothing(form) or is_image_form(form):
            fields.take(name)
    for name in IMAGE_PATH.names:
        if name not in fields:
            fields.take(name)
    if data is None and place is None:
        for name in IMAGE_INSIDE.names:
            if isinstance(inside := fields.peek(name), Mapping):
                return clean_image(inside if fields.take(name) else None, fields, fields.path(name))
        if all(is_nothing(one) for one in value.values()):
            return None
        raise BadRecord(f"an image has neither bytes nor path, only {', '.join(map(str, value))}")
    for what, one, kinds in (("bytes", data, str | bytes), ("path", place, str)):
        if one is not None and not isinstance(one, kinds):
            raise BadRecord(f"the {what} of an image is {kind_of(one)}")
    return place if data is None else {"bytes": data, "path": place}


def is_image_form(value: Any) -> bool:
    """Whether a value is a word for the form that an image is given in: its kind, base64, URL."""
    return isinstance(value, str) and _FORM.fullmatch(value) is not None


def _listed(value: Any, path: str, most_values: int) -> tuple[dict[int, Any], bool]:
    """The entries of a field of images by number, and whether it names the numbers itself."""
    if isinstance(value, str) and value.startswith("["):
        value = parsed_json(value, most_values, f"field {path!r}")
    if isinstance(value, Mapping):
        numbers = [_number(NUMBERED_MARKER.fullmatch(str(key))) for key in value]
        if value and None not in numbers:  # {"<image_00>": path, ...}
            named = zip(numbers, value.values(), strict=True)
            return {number: one for number, one in named if number is not None}, True
        value = rows_of(value) or value
    return dict(enumerate(value if isinstance(value, list) else [value])), False


def rows_of(value: Any) -> list[Any]:
    """An object of lists of one length as the list of objects that it was; datasets writes them so. Else nothing.

    Raises:
        BadRecord: lists of several lengths.
    """
    if not isinstance(value, Mapping) or not value:
        return []
    columns = {str(name): column for name, column in value.items() if column is not None}
    if not columns or not all(isinstance(column, list) for column in columns.values()):
        return []
    if len(lengths := {len(column) for column in columns.values()}) > 1:
        raise BadRecord(f"an object of lists of several lengths: {', '.join(map(str, sorted(lengths)))}")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _names_images(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return all(isinstance(one, str) and PurePosixPath(one[-80:]).suffix.lower() in IMAGE_SUFFIXES for one in names)


def _number(match: re.Match[str] | None) -> int | None:
    return None if match is None else _number_in(match)


def _number_in(match: re.Match[str]) -> int:
    """The number of a numbered marker, whichever spelling it has."""
    return int(match[match.lastindex or 0])


Pieces = list[str | Place]
"""A text with the places of its images."""


def find_places(texts: list[Pieces], pictures: Pictures, *, markers: bool) -> None:
    """Put places for the markers in the texts, and the record's images into all places.

    Args:
        texts: of the turns that may have images; they are changed.
        pictures: of the record.
        markers: whether ``<image>`` is a marker even where the record has no image.

    Raises:
        BadRecord: places and images that do not fit.
    """
    places = [piece for text in texts for piece in text if isinstance(piece, Place)]
    empty = [place for place in places if place.image is None and place.index is None]
    indexed = [place for place in places if place.index is not None]
    if indexed:
        _deal_by_index(indexed, empty, pictures)
        return
    given = sum(place.image is not None for place in places)
    if not empty and (pictures.present or markers):
        if _split_numbered(texts, pictures):
            return
        empty = _split_all(texts, others=bool(pictures.present))
    waiting = pictures.present
    if len(empty) != len(waiting):
        raise BadRecord(
            f"{counted(len(empty) + given, 'place')} for images ({IMAGE_MARKER} or image parts), but "
            f"{counted(len(waiting) + given, 'image')}"
        )
    for place, image in zip(empty, waiting, strict=True):
        place.image = image


def _split_all(texts: list[Pieces], *, others: bool) -> list[Place]:
    """Places for ``<image>``, or for ``others`` where that one stands nowhere."""
    plain = not others or any(IMAGE_MARKER in piece for piece in _strings(texts))
    return _split(PLAIN_MARKER if plain else OTHER_MARKER, texts)


def _split(pattern: re.Pattern[str], texts: list[Pieces]) -> list[Place]:
    """Places for whatever a pattern without groups finds."""
    found: list[Place] = []

    def split(string: str) -> Iterator[str | Place]:
        check_filled(string)
        for number, between in enumerate(pattern.split(string)):
            if number:
                found.append(Place())
                yield found[-1]
            yield between

    _divide(texts, split)
    return found


def _split_numbered(texts: list[Pieces], pictures: Pictures) -> bool:
    """Places for numbered markers, where there are no others, filled by number; whether there were any."""
    strings = list(_strings(texts))
    if any(IMAGE_MARKER in piece for piece in strings):
        return False
    pattern = NUMBERED_MARKER if any(map(NUMBERED_MARKER.search, strings)) else LOOSELY_NUMBERED
    if pattern is LOOSELY_NUMBERED and any(map(OTHER_MARKER.search, strings)):
        return False
    numbers = [_number_in(match) for piece in strings for match in pattern.finditer(piece)]
    if not numbers or not pictures.present:
        return False
    images = pictures.numbered(numbers)
    if missing := [number for number in numbers if images.get(number) is None]:
        raise BadRecord(f"a marker names image {missing[0]}; the record has {counted(len(pictures.present), 'image')}")
    if unseen := [number for number, image in images.items() if image is not None and number not in numbers]:
        raise BadRecord(f"no marker names image {unseen[0]} of {counted(len(pictures.present), 'image')}")

    def split(string: str) -> Iterator[str | Place]:
        end = 0
        for match in pattern.finditer(string):
            yield string[end : match.start()]
            yield Place(images[_number_in(match)])
            end = match.end()
        yield string[end:]

    _divide(texts, split)
    return True


def _divide(texts: list[Pieces], split: Callable[[str], Iterable[str | Place]]) -> None:
    """Put what ``split`` makes of it in place of each string, empty strings left out."""
    for text in texts:
        divided = [split(piece) if isinstance(piece, str) else [piece] for piece in text]
        text[:] = [piece for pieces in divided for piece in pieces if piece != ""]


def _deal_by_index(indexed: list[Place], empty: list[Place], pictures: Pictures) -> None:
    if empty:
        raise BadRecord("some image parts have an index and others have none")
    for place in indexed:
        assert place.index is not None, "they were chosen so"
        if not 0 <= place.index < len(pictures.images) or pictures.images[place.index] is None:
            raise BadRecord(
                f"an image part has index {place.index}; the record has {counted(len(pictures.images), 'image')}"
            )
        place.image = pictures.images[place.index]
    named = {place.index for place in indexed}
    for number, image in enumerate(pictures.images):
        if image is not None and number not in named:
            raise BadRecord(f"no image part has index {number} of {counted(len(pictures.images), 'image')}")


def in_front(count: int) -> Pieces:
    """Places for images that a record has and puts nowhere, each on a line of its own."""
    return [piece for _ in range(count) for piece in (Place(), "\n")]


def split_named(pieces: Pieces) -> None:
    """Put places for the markers that hold an image's path."""

    def split(string: str) -> Iterator[str | Place]:
        for number, between in enumerate(_NAMED_MARKER.split(string)):
            yield Place(between) if number % 2 else between

    _divide([pieces], split)


def split_loose(texts: list[Pieces], pictures: Pictures) -> None:
    """Put places for words that are markers where texts have as many of them as the record has images."""
    placed = any(isinstance(piece, Place) for text in texts for piece in text)
    pattern = None if placed else loose_markers(_strings(texts), len(pictures.present))
    if pattern is not None:
        _split(pattern, texts)


def _strings(texts: list[Pieces]) -> Iterator[str]:
    return (piece for text in texts for piece in text if isinstance(piece, str))
