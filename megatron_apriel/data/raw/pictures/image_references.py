"""From an image as a record names it to its bytes: paths, data URLs, base64, embedded bytes.

Nothing is ever fetched from a network: a corpus must be the same tomorrow. Paths come out of data that somebody else
wrote, so they are confined to one directory, links followed; a record cannot make the tool read ``../../etc/passwd``.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS, ReadLimits
from megatron_apriel.inputs import TooLargeError, read_input

_FILE_ADDRESS = re.compile(r"file:(?://(?:localhost)?(?=/))?", re.IGNORECASE)
"""Before a path; another computer's name is none of them."""
_STANDARD = bytes.maketrans(b"-_", b"+/")
_LONGEST_LINE = 100_000  # in which an escaped letter of base64 stands, if it is escaped
_MORE = "--max-record allows more"
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"RIFF", b"II*\x00", b"MM\x00*", b"BM")


@dataclass(frozen=True)
class ImageLoader:
    """Reads the images of one record.

    Attributes:
        root: directory that paths are relative to and may not leave.
        attachments: images that came beside the record, by name; looked at before the disk.
        limits: of which the bytes of a record are also those of an image.
    """

    root: Path
    attachments: dict[str, bytes] = field(default_factory=dict)
    limits: ReadLimits = DEFAULT_LIMITS

    def load(self, value: str | bytes | Mapping[str, Any]) -> bytes:
        """The bytes of an image file. Raises BadRecord with the reason."""
        data = self._load(value)
        if len(data) > self.limits.record_bytes:
            raise BadRecord(f"an image has {len(data):,} bytes, more than {self.limits.record_bytes:,}; {_MORE}")
        return data

    @cached_property
    def _by_last_name(self) -> dict[str, bytes]:
        # Of several with one name in different folders, the first.
        return {PurePosixPath(name).name: data for name, data in reversed(self.attachments.items())}

    def _load(self, value: str | bytes | Mapping[str, Any]) -> bytes:
        if isinstance(value, bytes):
            return value
        if isinstance(value, str):
            return self._from_string(value)
        if value.get("bytes") is not None:
            data = value["bytes"]
            return data if isinstance(data, bytes) else _from_base64(data)
        for name in ("path", "url"):
            if isinstance(value.get(name), str) and value[name]:
                return self._from_string(value[name])
        raise BadRecord(f"an image has neither bytes nor path, only {', '.join(map(str, value)) or 'nothing'}")

    def _from_string(self, text: str) -> bytes:
        if text[:5].lower() == "data:":
            header, comma, body = text.partition(",")
            if not comma or not header.lower().endswith(";base64"):
                raise BadRecord(f"the data URL {text[:40]!r}... is not base64")
            return _from_base64(unquote(body) if "%" in body[:_LONGEST_LINE] else body)
        if (local := _FILE_ADDRESS.match(text)) is not None:
            return self._from_path(unquote(text[local.end() :]))
        if "://" in text[:32]:
            raise BadRecord(f"{_shortened(text)} is a URL: images are never fetched; download it and give its path")
        if self.attachments and (data := self._by_last_name.get(PurePosixPath(text).name)) is not None:
            return data
        return embedded if (embedded := _embedded_base64(text)) is not None else self._from_path(text)

    def _from_path(self, text: str) -> bytes:
        try:
            root = self.root.resolve()
            for name in _spellings(text):
                path = (root / name).resolve()
                if not path.is_relative_to(root):
                    raise BadRecord(
                        f"the image path {_shortened(text)} leads out of the image root {self.root}; "
                        "--image-root names another directory"
                    )
                if path.exists():
                    return read_input(path, self.limits.record_bytes)
            raise FileNotFoundError
        except FileNotFoundError:
            raise BadRecord(f"the image {_shortened(text)} does not exist under {self.root}") from None
        except TooLargeError as error:
            raise BadRecord(f"the image {_shortened(text)} cannot be read: {error.strerror}; {_MORE}") from None
        except (OSError, ValueError, RuntimeError) as error:  # a name too long, with a zero byte, in a loop of links
            raise BadRecord(f"the image {_shortened(text)} cannot be read: {error}") from None


def _spellings(text: str) -> list[str]:
    """A path as it is written, as its addresses write it, and as Windows does; the first one that is there is meant."""
    return list(dict.fromkeys((text, unquote(text), text.replace("\\", "/"))))


def _from_base64(text: Any) -> bytes:
    if not isinstance(text, str):
        raise BadRecord(f"the bytes of an image are a {type(text).__name__}, neither bytes nor base64")
    try:
        return _decoded(text)
    except (binascii.Error, ValueError) as error:
        raise BadRecord(f"the base64 of an image is damaged: {error}") from None


def _decoded(text: str) -> bytes:
    # Line ends are common in base64, and no part of it; addresses have two letters of their own, and no filling.
    data = text.encode("ascii").translate(_STANDARD, b" \t\n\r\x0b\x0c")
    return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)


def _embedded_base64(text: str) -> bytes | None:
    """The bytes, if a bare string is base64 of an image file; None if it is to be taken for a path."""
    if len(text) < 64:
        return None
    try:
        data = _decoded(text)
    except (binascii.Error, ValueError):
        return None
    return data if data.startswith(_BEGINNINGS) else None


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 120 else f"{text[:100]}...")
