"""A sample of a WebDataset tar as a record: one ``.json`` or ``.txt``, its images, and whatever else lies beside them.

Members whose names are alike up to their first dot are one sample. Images that the record does not name are its images
in the order of the numbers in their names: ``page_2`` comes before ``page_10``, wherever they stand in the archive.
Where names are no numbers nothing says which image is first, so more than one is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from megatron_apriel.data.raw.fields.meanings import CAPTIONS, IMAGES, PICTURE_FILES
from megatron_apriel.data.raw.fields.taken import is_nothing
from megatron_apriel.data.raw.file_kinds import FILM_SUFFIXES, IMAGE_SUFFIXES, OTHER_IMAGE_SUFFIXES
from megatron_apriel.data.raw.json_text import parsed_json
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS, ReadLimits
from megatron_apriel.data.raw.records.conversion import recognise

CAPTION_SUFFIXES = (".txt", ".caption")
"""Of a text beside its image; the second is that of kohya's scripts."""
DOCUMENT_SUFFIXES = (".json", *CAPTION_SUFFIXES)
_PAGES = (".pdf", ".djvu")
_NUMBER = re.compile(r"\d+")
_LONGEST_LINE = 100_000  # characters that are looked at
_FIGURE = r"-?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_BOX = re.compile(
    rf"\d+(?: {_FIGURE}){{4,}}"  # YOLO: a category and shares of the sides
    rf"|{_FIGURE}(?:[, ] ?{_FIGURE}){{5,}},?"  # MOT, VisDrone: numbers and nothing else
    rf"|{_FIGURE}(?:[, ]{_FIGURE}){{7}}[, ].*"  # ICDAR, DOTA: four corners, then words
    rf"|[\w-]+(?: {_FIGURE}){{10,}}"  # KITTI
)
_HEADER_OF_BOXES = re.compile(r"(?:imagesource|gsd):.*")
"""Of DOTA."""


@dataclass(frozen=True)
class TarSample:
    """Members of a tar that share a key.

    Attributes:
        key: their name up to its first dot.
        members: names and bytes; None for a link, which has no bytes of its own.
        problem: why some of them were not read, or "".
    """

    key: str
    members: dict[str, bytes | None]
    problem: str = ""


@dataclass(frozen=True)
class SampleRecord:
    """The record of a sample.

    Attributes:
        value: as JSON.
        images: by name.
        unused: endings of the members that are of no use.
    """

    value: dict[str, Any]
    images: dict[str, bytes]
    unused: tuple[str, ...]


def sample_record(sample: TarSample, limits: ReadLimits = DEFAULT_LIMITS) -> SampleRecord:
    """The record of a tar's sample, and its images.

    A ``.txt`` is the caption of all images; beside a ``.json`` that is no document without it, as well. Raises
    BadRecord for a sample of which something would be left out, and UnicodeDecodeError for a caption.
    """
    data = {name: content for name, content in sample.members.items() if content is not None}
    if links := sample.members.keys() - data.keys():
        raise BadRecord(f"{', '.join(sorted(links))}: a link to another member, whose bytes are not in the sample")
    images = {name: content for name, content in data.items() if name.lower().endswith(IMAGE_SUFFIXES)}
    documents, captions = (
        [name for name in data if name.lower().endswith(ends)] for ends in (DOCUMENT_SUFFIXES[:1], CAPTION_SUFFIXES)
    )
    for several in (documents, captions):
        if len(several) > 1:
            raise BadRecord(f"{' and '.join(several)} are one sample: a sample is what is alike up to its first dot")
    others = [name for name in data if name not in (*images, *documents, *captions)]
    for name in others:
        if name.lower().endswith((*FILM_SUFFIXES, *OTHER_IMAGE_SUFFIXES)):
            raise BadRecord(f"{name} is a film, a sound or a picture of a kind that is not read")
        if name.lower().endswith(_PAGES) and not images:
            raise BadRecord(f"{name} is a document whose pages are not read: the words would be learned without them")
    value = _json_of(data[documents[0]], limits) if documents else {}
    unused = [_ending(name, sample.key) for name in others]
    if captions:
        if others and not documents:
            raise BadRecord(f"a caption beside {', '.join(others)}, which may be its image and is of no known kind")
        text = data[captions[0]].decode("utf-8")
        if _holds_boxes(text):
            raise BadRecord(f"{captions[0]} holds the boxes of an image (as YOLO, KITTI or DOTA have), not its caption")
        if recognise(value) is None:
            value = {**value, "text": text}
        elif text.strip() not in _texts(value):
            raise BadRecord(
                f"{captions[0]} holds another text than {documents[0]}, and none of them is the one to learn"
            )
    elif not documents:
        raise BadRecord(f"no .json and no .txt among {', '.join(sample.members)}")
    listed = any(_lists_images(value.get(name)) for name in IMAGES.names)
    if images and not listed and not any(_all_beside(value.get(name), images) for name in PICTURE_FILES.names):
        value = {**value, "images": _in_order(images, sample.key)}
    return SampleRecord(value, images, tuple(unused))


def _holds_boxes(text: str) -> bool:
    """Whether every line of a text beside an image is a box of an annotation file."""
    lines = [line.strip().removeprefix("\ufeff") for line in text.splitlines()]
    boxes = [line for line in lines if line and not _HEADER_OF_BOXES.fullmatch(line)]
    return bool(boxes) and all(_BOX.fullmatch(line[:_LONGEST_LINE]) for line in boxes)


def _json_of(data: bytes, limits: ReadLimits) -> dict[str, Any]:
    """The .json of a sample: an object, or a list of turns, as Megatron Energon has it."""
    value = parsed_json(data, limits.record_values)
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        value = {"conversations": value}
    if not isinstance(value, dict):
        raise BadRecord(f"a JSON {type(value).__name__}, not an object")
    return value


def _in_order(images: dict[str, bytes], key: str) -> list[bytes]:
    """The images by the numbers in the rest of their names. Raises BadRecord if nothing says which is first."""
    if len(images) == 1:
        return list(images.values())
    rest = {name: PurePosixPath(name).name[len(PurePosixPath(key).name) :].rpartition(".")[0] for name in images}
    numbers = {name: tuple(map(int, _NUMBER.findall(one))) for name, one in rest.items()}
    if len({_NUMBER.sub("#", one) for one in rest.values()}) > 1 or len(set(numbers.values())) != len(images):
        raise BadRecord(
            f"nothing says the order of {', '.join(images)}: number them, or name them in the field 'images' of the "
            ".json"
        )
    return [images[name] for name in sorted(images, key=numbers.__getitem__)]


def _lists_images(value: Any) -> bool:
    return bool(_names(value)) or (isinstance(value, dict) and not is_nothing(value))


def _all_beside(value: Any, images: dict[str, bytes]) -> bool:
    """Whether a value names images of the sample, and no other file."""
    beside = {PurePosixPath(name).name for name in images}
    return bool(names := _names(value)) and all(
        isinstance(one, str) and PurePosixPath(one).name in beside for one in names
    )


def _names(value: Any) -> Sequence[Any]:
    return [one for one in (value if isinstance(value, list) else [value]) if not is_nothing(one)]


def _texts(value: dict[str, Any]) -> set[str]:
    """Texts that a .txt beside the .json repeats: its text or caption, without white space around."""
    found = (value.get(name) for name in ("text", *CAPTIONS.names))
    return {one.strip() for one in found if isinstance(one, str)}


def _ending(name: str, key: str) -> str:
    return "*" + PurePosixPath(name).name[len(PurePosixPath(key).name) :]
