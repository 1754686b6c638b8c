"""How a file that somebody gave is opened: only a regular one, and no more of it than expected.

A pipe among a data set's files would be waited for until the job is killed, and a device such as ``/dev/zero`` never
ends. Whoever reads an input opens it here; what is refused is an ``OSError``, so that the reader's own message for a
file that cannot be read names it. Of a path that does not exist, it says what may have been meant.

This file imports nothing of the project.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import stat
from io import BufferedReader
from itertools import islice
from pathlib import Path
from typing import Literal

SMALL_FILE_BYTES = 64 * 2**20
"""Most of a file that is read whole: configurations, indexes, tables of names. Published ones have a few MiB."""

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NotAFileError(OSError):
    """A pipe, socket or device where a file is expected."""

    def __init__(self, path: str | Path, mode: int) -> None:
        self._made_of = path, mode
        kind = _KINDS.get(stat.S_IFMT(mode), "no file")
        super().__init__(errno.EINVAL, f"it is {kind}, and only regular files are read", str(path))

    def __reduce__(self) -> tuple[type[NotAFileError], tuple[str | Path, int]]:
        return NotAFileError, self._made_of  # OSError's own way gives its three arguments


class TooLargeError(OSError):
    """A file that is larger than any of its kind should be."""

    def __init__(self, path: str | Path, size: int, most: int) -> None:
        self._made_of = path, size, most
        super().__init__(errno.EFBIG, f"it has {size:,} bytes, and at most {most:,} are read of it", str(path))

    def __reduce__(self) -> tuple[type[TooLargeError], tuple[str | Path, int, int]]:
        return TooLargeError, self._made_of


def open_input(path: str | Path, buffering: int = -1) -> BufferedReader:
    """Open a regular file to read its bytes; links are followed.

    Args:
        path: of the file.
        buffering: as of :func:`open`; 0 for none.

    Raises:
        NotAFileError: a pipe, socket or device; none of them is opened, so none is waited for.
        OSError: as of :func:`open`.
    """
    return open(path, "rb", buffering=buffering, opener=_open_regular)  # type: ignore[return-value]


def read_input(path: str | Path, most: int = SMALL_FILE_BYTES) -> bytes:
    """All bytes of a regular file of at most ``most`` bytes.

    Raises:
        TooLargeError: it has more.
        OSError: as of :func:`open_input`.
    """
    with open_input(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > most:
            raise TooLargeError(path, size, most)
        data = file.read(most + 1)
    if len(data) > most:  # some file systems tell no size
        raise TooLargeError(path, len(data), most)
    return data


_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_OF_A_FILE = re.compile(r"\.[A-Za-z]\w*$")
_MOST_NEIGHBOURS = 10_000


def what_was_meant(path: str | Path, hub: Literal["", "model", "dataset"] = "") -> str:
    """What a path that does not exist may have meant, in a sentence or two; empty where nothing is likely, or it does.

    Args:
        path: as it was given.
        hub: what people name there by its name at a hub, from which nothing is downloaded here.
    """
    path = Path(path)
    if path.exists():
        return ""
    named = str(path)
    if _ADDRESS.match(named):
        return "It is an address, and nothing is downloaded from one: give a path."
    if (near := _nearest(path)) is not None:
        return f"Did you mean {near}?"
    if hub and _HUB_NAME.fullmatch(named) and not _OF_A_FILE.search(named) and not path.parent.exists():
        kind = "--repo-type dataset " if hub == "dataset" else ""
        return (
            "Nothing is downloaded. If this is its name at Hugging Face, download it and give that directory:"
            f" hf download {kind}{path} --local-dir {path.name}"
        )
    return ""


def _nearest(path: Path) -> Path | None:
    """The path that exists and has another name, much alike, in the place of the first one that does not."""
    missing = next((part for part in (*reversed(path.parents), path) if not part.exists()), path)
    try:
        with os.scandir(missing.parent) as entries:
            names = [entry.name for entry in islice(entries, _MOST_NEIGHBOURS) if not entry.name.startswith(".")]
    except OSError:
        return None
    alike = difflib.get_close_matches(missing.name, names, cutoff=0.75)
    fits = (missing.parent / name / path.relative_to(missing) for name in alike)
    return next((near for near in fits if near.exists()), None)


def _open_regular(path: str, flags: int) -> int:
    _check_kind(path, Path(path).stat().st_mode)
    # The name may mean something else by now; opened without waiting, a pipe is seen to be one.
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    try:
        _check_kind(path, os.fstat(descriptor).st_mode)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _check_kind(path: str | Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise NotAFileError(path, mode)
