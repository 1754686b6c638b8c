"""Samples of a WebDataset tar, read once from its beginning to its end.

``tarfile`` believes what headers say: an extended header of any declared size is read into memory, holes of sparse
members are filled with zeros, damage is taken for the archive's end, and every header is kept for as long as the
archive is open. Here a header is looked at before it is believed, and members are read only where they are used.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path, PurePosixPath
from typing import Any, Self

from megatron_apriel.data.raw.file_kinds import IMAGE_SUFFIXES
from megatron_apriel.data.raw.files.compressed import READ_ERRORS, unzipped
from megatron_apriel.data.raw.files.tar_records import DOCUMENT_SUFFIXES, TarSample
from megatron_apriel.data.raw.read_limits import ReadLimits

# tarfile meets damaged numbers with a ValueError, a damaged sparse member with an IndexError, and follows extended
# headers by recursion.
TAR_ERRORS = (tarfile.TarError, ValueError, IndexError, RecursionError, *READ_ERRORS)
"""What reading raises where an archive is damaged."""

_USED = (*IMAGE_SUFFIXES, *DOCUMENT_SUFFIXES)
_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_HEADER_BYTES = 64 * 2**10
"""Most of an extended header: names are 4 KiB at most, extended attributes of files on Linux 64 KiB."""
_GLOBAL_FIELDS = 100
"""Most fields that an archive may set for all its members, each of which gets a copy; git writes one."""
_MEMBERS = 10_000
"""Most members of a sample; its images and one text are a few."""
_DIGITS = 300
"""Most digits in a row in an extended header; a part of a file's name has 255 letters at most."""
_PADDING_BYTES = 64 * 2**20
"""Most zeros behind the archive's end; tools pad to whole tape records of some 10 KiB."""
_SKIP_BYTES = 2**20
_DIGEST_BYTES = 12
"""Of a sample's name, kept to know it again."""


def tar_samples(path: Path, limits: ReadLimits) -> Iterator[TarSample]:
    """The samples of an archive in order.

    Raises one of ``TAR_ERRORS`` where it is damaged or ends too early, LimitExceeded where it grows beyond the limits.
    """
    with unzipped(path, limits) as file:
        stream = _Forward(file)
        with tarfile.TarFile(fileobj=stream, mode="r", tarinfo=_SoundHeader) as tar:  # type: ignore[arg-type]
            yield from _samples(tar, stream, limits.record_bytes)
        padding = 0
        while block := stream.read(_SKIP_BYTES):
            padding += len(block)
            if block.strip(b"\0"):
                raise tarfile.ReadError("something follows the archive's end: archives cannot be joined by appending")
            if padding > _PADDING_BYTES:
                raise tarfile.ReadError(f"more than {_PADDING_BYTES:,} zeros follow the archive's end")


def _samples(tar: tarfile.TarFile, stream: _Forward, most: int) -> Iterator[TarSample]:
    key, members, problem, size, number = "", dict[str, bytes | None](), "", 0, 0
    seen: set[bytes] = set()
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # or it keeps the header of every member
        if member.isdir():
            continue
        path = PurePosixPath(member.name)
        if _is_about_the_archive(path):
            continue
        own = str(path.with_name(path.name.partition(".")[0] or path.name))
        if own != key:
            if members:
                yield TarSample(key, members, problem)
            key, members, problem, size, number = own, {}, "", 0, 0
            digest = blake2b(own.encode("utf-8", "surrogateescape"), digest_size=_DIGEST_BYTES).digest()
            if digest in seen:
                problem = f"an earlier sample of the archive is called {own}, too: names of samples are there once"
            seen.add(digest)
        if (number := number + 1) > _MEMBERS:
            raise tarfile.ReadError(f"a sample has more than {_MEMBERS:,} members")
        if member.name in members and not problem:
            problem = f"{member.name} is there twice: two samples of one name"
        members[member.name] = data = b"" if member.isfile() else None  # a link's bytes are in another place
        if data is None or problem or not member.name.lower().endswith(_USED):
            continue
        if member.size < 0:
            raise tarfile.ReadError(f"a member of {member.size} bytes")
        size += member.size
        if member.issparse():
            problem = f"{member.name} is a sparse member, whose holes may be of any size; pack it without --sparse"
        elif size > most:
            problem = f"its members have {size:,} bytes and more, over {most:,}; --max-record allows more"
        if problem:
            members = dict.fromkeys(members, b"")
            continue
        stream.seek(member.offset_data)
        members[member.name] = data = stream.read(member.size)
        if len(data) != member.size:
            raise tarfile.ReadError("unexpected end of data")
    if members:
        yield TarSample(key, members, problem)


def _is_about_the_archive(path: PurePosixPath) -> bool:
    """Whether a member is called ``__x__``, as WebDataset calls what describes an archive, or was added by macOS."""
    if path.name.startswith("._") or path.name == ".DS_Store":
        return True
    return any(
        name.startswith("__") and name.endswith("__") and len(name) > 4
        for name in (path.name, path.name.partition(".")[0])
    )


class _Forward:
    """A stream that is read in one direction: seeking passes over bytes, and a few can be looked at ahead."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream, self._place, self._ahead = stream, 0, b""
        self._can_jump = isinstance(stream.raw, io.FileIO)

    def tell(self) -> int:
        return self._place

    def peek(self, size: int) -> bytes:
        """The next bytes, which :meth:`read` gives again."""
        self._ahead += self._stream.read(max(0, size - len(self._ahead)))
        return self._ahead[:size]

    def read(self, size: int) -> bytes:
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        data += self._stream.read(size - len(data))
        self._place += len(data)
        return data

    def seek(self, place: int) -> None:
        if place < self._place:
            raise tarfile.ReadError("a header leads back to what was read already")
        if self._can_jump and place - self._place > len(self._ahead):
            self._stream.seek(place)
            self._place, self._ahead = place, b""
        while self._place < place and self.read(min(place - self._place, _SKIP_BYTES)):
            pass


class _SoundHeader(tarfile.TarInfo):
    """A member's header. Where it is damaged, or missing before the mark of the archive's end, it is an error.

    ``tarfile`` takes both for the end, and the members behind them would be lost without a word.
    """

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise  # the mark of the end
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"{error} at byte {archive.offset}, before the archive's end") from None

    def _proc_member(self, archive: Any) -> Any:
        """What follows the first 512 bytes of a header, by its type: the place that tarfile keeps for subclasses."""
        if self.type in (*_EXTENDED, *_LONG_NAMES):
            if self.size > _HEADER_BYTES:
                raise tarfile.ReadError(f"an extended header of {self.size:,} bytes, more than {_HEADER_BYTES:,}")
            if self.type in _EXTENDED:
                _check_fields(archive.fileobj.peek(self.size))
            if len(archive.pax_headers) > _GLOBAL_FIELDS:
                raise tarfile.ReadError(f"more than {_GLOBAL_FIELDS} fields for all members")
        return super()._proc_member(archive)  # type: ignore[misc]


def _check_fields(header: bytes) -> None:
    """Raise ReadError for an extended header that is not records of "length field=value" and nothing else.

    ``tarfile`` searches it by patterns whose time, and keeps fields whose size, grow with the square of its length.
    """
    place = 0
    while place < len(header) and header[place]:
        match = re.compile(rb"([1-9][0-9]{0,5}) [^=\n]{1,1000}=").match(header, place)
        end = place + int(match[1]) if match else 0
        if match is None or end < match.end() or header[end - 1 : end] != b"\n":
            raise tarfile.ReadError("a damaged extended header")
        place = end
    if max(map(len, re.findall(rb"[0-9]+", header)), default=0) > _DIGITS:
        raise tarfile.ReadError("an extended header with a number without end")
