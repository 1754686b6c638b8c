"""How files of pictures, films, sounds and documents are known: by the ends of their names, and by how they begin."""

from __future__ import annotations

import base64
import binascii
import re
from pathlib import PurePosixPath
from typing import Any

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp")
"""Of pictures that are read."""
OTHER_IMAGE_SUFFIXES = (
    ".heic", ".heif", ".avif", ".jp2", ".jxl", ".ppm", ".pgm", ".tga", ".psd", ".exr", ".dng", ".dcm", ".nii", ".ply",
    ".pcd", ".glb",
)  # fmt: skip
"""Of pictures that are not, of doctors' and in three dimensions, too."""
FILM_SUFFIXES = (
    ".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv",
    ".wav", ".mp3", ".flac", ".ogg", ".m4a", ".opus", ".aac", ".wma", ".aiff", ".oga", ".amr", ".mid",
)  # fmt: skip
"""Of films and sounds."""
PAGE_SUFFIXES = (".pdf", ".djvu", ".doc", ".docx", ".ppt", ".pptx", ".xls", ".xlsx", ".odt", ".epub")
"""Of documents."""
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF", b"II*\x00", b"MM\x00*", b"BM")
_FILMS = (b"fLaC", b"ID3", b"OggS", b"\x1a\x45\xdf\xa3")
_BRAND = b"ftyp"
"""From the fifth byte of films (MP4, MOV), and of pictures (HEIC, AVIF)."""
_DOCUMENTS = (b"%PDF-",)
_SHORTEST = 24  # characters of base64 that are looked at; short words could be base64 as well
_LOOKED_AT = 64


_CONTAINER = re.compile(r"(?:[\w.-]+(?::\d{1,5})?/){1,8}[\w.-]+(?P<tag>:[\w.-]+)?(?P<digest>@sha256:[0-9a-f]+)?")
_OF_CONTAINERS = re.compile(r"(?:^|[/._-])(?:docker|ghcr|quay|gcr|swe\w{0,20}|x86_64|amd64|arm64)(?=[/._-])")
_LONGEST_REFERENCE = 300


def names_container(value: Any) -> bool:
    """Whether a text refers to an image of containers, as sets of agents' work have it, and not to a picture."""
    if not isinstance(value, str) or len(value) > _LONGEST_REFERENCE or (found := _CONTAINER.fullmatch(value)) is None:
        return False
    if PurePosixPath(value).suffix.lower() in (*IMAGE_SUFFIXES, *OTHER_IMAGE_SUFFIXES):
        return False
    return bool(found["tag"] or found["digest"] or _OF_CONTAINERS.search(value))


def kind_of_bytes(data: bytes) -> str:
    """What a file is that begins with ``data``, in words for a message; "" where that is not known."""
    if data.startswith(_PICTURES):
        return "a picture"
    if data.startswith(_FILMS) or data[4:8] == _BRAND:
        return "a film or a sound"
    return "a document (PDF)" if data.startswith(_DOCUMENTS) else ""


def kind_of_base64(text: str) -> str:
    """The same of a text that may be base64, alone or in a ``data:`` address."""
    header, comma, _ = text[:_LOOKED_AT].partition(",")
    if comma and header.startswith("data:"):
        kind = header.removeprefix("data:").partition("/")[0]
        return {"image": "a picture", "video": "a film or a sound", "audio": "a film or a sound"}.get(kind, "")
    begins = text[:_LOOKED_AT]
    if len(text) < _SHORTEST or begins.startswith("BM"):
        return ""
    begins = begins[: len(begins) // 4 * 4]
    try:
        data = base64.b64decode(begins.translate(str.maketrans("-_", "+/")), validate=True)
    except (binascii.Error, ValueError):
        return ""
    return "" if data.startswith(b"BM") else kind_of_bytes(data)
