"""Pictures that a text shows itself, in Markdown or HTML, by the path that the record lists: their places.

``![a cat](images/cat.jpg)`` beside ``"images": ["images/cat.jpg"]`` is where that picture stands. A picture of
any other path stays text: pages are full of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from urllib.parse import unquote

from megatron_apriel.data.raw.documents import ImageValue
from megatron_apriel.data.raw.pictures.places import Pictures, Pieces, Place
from megatron_apriel.data.raw.problems import BadRecord

_SHOWN = re.compile(
    r"!\[[^\]\n]{0,2000}\]\(\s{0,20}<?(?P<markdown>[^()\s<>]{1,1000})>?(?:\s{1,20}[\"'][^\"'\n]{0,500}[\"'])?\s{0,20}\)"
    r"|<img\s(?:[^<>]{0,2000}\s)?src\s{0,20}=\s{0,20}(?P<quote>[\"'])(?P<html>[^\"'<>\n]{1,1000})(?P=quote)[^<>]{0,2000}>"
    r"|<(?:image|img|picture)\s{0,9}[:=]\s{0,9}(?P<tag>[^<>\n]{1,1000})>|\[(?:image|img|picture)\s{0,9}[:=]\s{0,9}(?P<bracket>[^\[\]\n]{1,1000})\]",
    re.IGNORECASE,
)


def place_shown(texts: Sequence[Pieces], pictures: Pictures) -> Pictures:
    """Put places where texts show the record's images by their paths.

    Args:
        texts: of the turns that may have images; they are changed.
        pictures: of the record.

    Returns:
        None of them if all are placed, else what was given.

    Raises:
        BadRecord: some of the images are shown and others are not.
    """
    names = {path: image for image in pictures.present if (path := _path_of(image))}
    last = Counter(PurePosixPath(path).name for path in names)
    by_name = {PurePosixPath(path).name: image for path, image in names.items() if last[PurePosixPath(path).name] == 1}
    if not names:
        return pictures
    shown: list[ImageValue] = []
    divided: list[Pieces] = []
    for text in texts:
        divided.append([])
        for piece in text:
            if isinstance(piece, Place):
                divided[-1].append(piece)
                continue
            end = 0
            for match in _SHOWN.finditer(piece):
                path = _plain(next(filter(None, match.group("markdown", "html", "tag", "bracket"))).strip())
                image = names.get(path, by_name.get(path))
                if image is not None:
                    divided[-1] += [piece[end : match.start()], Place(image)]
                    shown.append(image)
                    end = match.end()
            divided[-1].append(piece[end:])
    if not shown:
        return pictures
    if missing := [path for path, image in names.items() if image not in shown]:
        raise BadRecord(f"the text shows {_path_of(shown[0])} in its place, and {missing[0]} nowhere")
    if len(names) < len(pictures.present):
        raise BadRecord(
            f"the text shows {_path_of(shown[0])} in its place, and not all images of the record have paths"
        )
    for text, pieces in zip(texts, divided, strict=True):
        text[:] = [piece for piece in pieces if piece != ""]
    return Pictures()


def _path_of(image: ImageValue) -> str:
    """The path that a record gives an image, or ""; a text of bytes in base64 is none."""
    value = image.get("path") if isinstance(image, Mapping) else image
    return _plain(value) if isinstance(value, str) and len(value) <= 1000 and not value.startswith("data:") else ""


def _plain(path: str) -> str:
    return unquote(path).removeprefix("./")
