"""WebDataset tars through preparation: every sample a document or counted, links and sparse members never misread."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from random import Random

from ..byte_changes import change_bytes, edge
from ..case import Wrong
from ..json_changes import write_json
from ..records import prepared
from .images import changed_image, honest_images
from .records import RawFiles

BLOCK = 512
_FIELDS = {
    "name": (0, 100), "mode": (100, 8), "size": (124, 12), "mtime": (136, 12), "checksum": (148, 8), "type": (156, 1),
    "link": (157, 100),
    "magic": (257, 8), "prefix": (345, 155), "sparse": (386, 100),
}  # fmt: skip
_TYPES = b"0123456789\0LKxgXSVNDAM"


class Tars(RawFiles):
    """Tars of any dialect, plain or gzip, with members of every type."""

    name = "tars"
    about = "raw records as WebDataset tars: plain, gzip, sparse, PAX"

    def open(self, directory: Path) -> None:
        super().open(directory)
        self.images = honest_images()

    def mutate(self, random: Random, directory: Path, changes: int) -> str:
        inside = random.randint(0, changes)
        members, said = self._members(random, inside)
        form = random.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
        data = _tar(random, members, form, strange=inside > 0)
        for _ in range(changes - inside):
            data, what = _changed_tar(random, data) if random.random() < 0.75 else change_bytes(random, data)
            said += f"; {what}"
        name = random.choice(("samples.tar", "samples.tar.gz", "samples.tgz"))
        if random.random() < 0.4:
            data = gzip.compress(data, mtime=0)
            if changes and random.random() < 0.3:
                data, what = change_bytes(random, data)
                said += f"; packed: {what}"
        (directory / name).write_bytes(data)
        return said

    def _members(self, random: Random, changes: int) -> tuple[list[tuple[str, bytes]], str]:
        records, said = self.records(random, changes // 2)
        members = []
        for number, record in enumerate(records):
            if isinstance(record, dict) and random.random() < 0.5:
                record = {name: value for name, value in record.items() if name not in ("images", "image")}
            if isinstance(record, dict) and isinstance(record.get("text"), str) and random.random() < 0.3:
                members.append((f"{number:04}.txt", record["text"].encode("utf-8", "surrogatepass")))
            else:
                members.append((f"{number:04}.json", write_json(record).encode("utf-8", "surrogatepass")))
            if "<image>" in json.dumps(record, default=str) or random.random() < 0.1:
                name = random.choice(sorted(self.images))
                data, what = changed_image(random, name, self.images, max(0, changes - 2))
                members.append((f"{number:04}.{name.rpartition('.')[2]}", data))
                said += f"; image: {what}"
        for _ in range(changes if members else 0):
            place = random.randrange(len(members))
            name, data = members[place]
            match random.randrange(7):
                case 0:
                    members.insert(place, (name, data))
                case 1:
                    members.append(members.pop(place))
                case 2:
                    members[place] = (random.choice(_NAMES) + name, data)
                case 3:
                    members[place] = (name.replace(".", random.choice(("", "..", ".x.", "/.", "\n.", "."))), data)
                case 4:
                    members[place] = (name, b"")
                case 5:
                    members[place] = (random.choice(_NAMES), data)
            said += f"; member {place}"
        return members, said

    def check(self, directory: Path) -> None:
        (file,) = (path for path in directory.iterdir() if path.name != "corpus")
        result = prepared([file], directory / "corpus")
        samples = _samples(file.read_bytes())
        counted = result.summary.problems.records
        if counted != len(samples):
            raise Wrong(f"{counted} samples were counted, and tarfile finds {len(samples)}")


_NAMES = ("../", "/", "./", "a/", "a//", ".hidden", "x" * 200 + "/", "é/", "\udcff/", "a\nb", "\x1b[2J", ".", "..",
"a.b/", "0001", "a/.b.json", " ")  # fmt: skip


def _samples(data: bytes) -> Sequence[str]:
    """Keys of the samples, by tarfile's own reading of the whole archive in memory."""
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise Wrong(f"a file was read that cannot be decompressed: {error}") from None
    keys: list[str] = []
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                if member.isdir():
                    continue
                path = PurePosixPath(member.name)
                key = str(path.with_name(path.name.partition(".")[0] or path.name)) if path.name else member.name
                if not keys or keys[-1] != key:
                    keys.append(key)
    except tarfile.TarError as error:
        raise Wrong(f"a tar was read that tarfile refuses: {error}") from None
    return keys


def _tar(random: Random, members: list[tuple[str, bytes]], form: int, strange: bool) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, errors="surrogateescape") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if form == tarfile.PAX_FORMAT and strange and random.random() < 0.3:
                info.pax_headers = {random.choice(_PAX): random.choice(_VALUES)}
            try:
                tar.addfile(info, io.BytesIO(data))
                if strange and random.random() < 0.15:
                    tar.addfile(_other_member(random, name))
            except (ValueError, UnicodeError):  # a name that this dialect cannot hold
                continue
    return buffer.getvalue()


_PAX = ("path", "linkpath", "size", "mtime", "GNU.sparse.size", "GNU.sparse.map", "GNU.sparse.major",
"GNU.sparse.realsize",
        "GNU.sparse.numblocks", "GNU.sparse.name", "hdrcharset", "uid", "comment", "SCHILY.xattr.x", "é")  # fmt: skip
_VALUES = (
    "0",
    "1",
    "-1",
    "9" * 30,
    "9" * 5000,
    "x",
    "",
    "a" * 5000,
    "../../x.json",
    "0,5,9,3",
    "0,99999999999",
    "1,2,3",
    "1e3",
    "BINARY",
    "é",
    "0001.json",
)


def _other_member(random: Random, name: str) -> tarfile.TarInfo:
    """A member that is no file, or one of its own kind."""
    other = tarfile.TarInfo(random.choice((name, name + ".link", "0000.png", "z.json")))
    other.type = random.choice(
        (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.CONTTYPE)
    )
    other.linkname = random.choice((name, "/etc/passwd", "..", ""))
    return other


def _headers(data: bytes) -> list[int]:
    """Where member headers begin."""
    places, place = [], 0
    while place + BLOCK <= len(data) and data[place : place + BLOCK].strip(b"\0"):
        places.append(place)
        try:
            size = int(data[place + 124 : place + 136].rstrip(b"\0 ") or b"0", 8)
        except ValueError:
            break
        place += BLOCK + -(-size // BLOCK) * BLOCK
    return places


def _sealed(header: bytearray) -> bytes:
    """The header with a right checksum."""
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _changed_tar(random: Random, data: bytes) -> tuple[bytes, str]:
    """Headers with changed fields and right checksums; members moved, repeated, or with something else between them."""
    places = _headers(data)
    if not places:
        return change_bytes(random, data)
    place = random.choice(places)
    header = bytearray(data[place : place + BLOCK])
    kind = random.random()
    if kind < 0.55:
        name = random.choice(sorted(_FIELDS))
        offset, width = _FIELDS[name]
        if name == "type":
            header[offset] = random.choice(_TYPES)
        elif name == "size":
            size = random.choice(
                (
                    b"%011o" % (edge(random, 33)),
                    b"-0000000001",
                    b"\x80" + (edge(random, 63)).to_bytes(11, "big"),
                    b"\xff" * 12,
                    b" " * 12,
                    b"7" * 12,
                    b"abc",
                )
            )
            header[offset : offset + width] = size.ljust(width, b"\0")[:width]
        else:
            header[offset : offset + width] = change_bytes(random, bytes(header[offset : offset + width]))[0][
                :width
            ].ljust(width, b"\0")
        sealed = bytes(header) if name == "checksum" else _sealed(header)
        return data[:place] + sealed + data[place + BLOCK :], f"{name} of the header at {place}"
    if kind < 0.65:
        return data[:place] + _sparse(random, header) + data[place + BLOCK :], f"a sparse member at {place}"
    if kind < 0.75:
        return data[:place] + _long_name(random) + data[place:], f"a header of its own before {place}"
    if kind < 0.85:
        between = random.choice((b"\0" * BLOCK, b"\0" * 2 * BLOCK, b"x" * BLOCK, b"\0" * 17, data[:BLOCK]))
        return data[:place] + between + data[place:], f"a block between, at {place}"
    end = places[-1]
    return random.choice(
        (data[:end], data + data, data + b"\0" * 10 * BLOCK, data.rstrip(b"\0"), data + b"end")
    ), "another end"


def _sparse(random: Random, header: bytearray) -> bytes:
    """The header of an old GNU sparse member: pieces of the file with holes between them."""
    header[156] = ord("S")
    header[257:265] = b"ustar  \0"
    for number in range(4):
        start = 386 + 24 * number
        header[start : start + 24] = b"%011o\0%011o\0" % (
            edge(random, 33),
            random.choice((0, 10, 100, edge(random, 33))),
        )
    header[482] = random.choice((0, 0, 1))
    header[483:495] = b"%011o\0" % random.choice((0, 100, 2**20, 2**31, 2**33 - 1))
    return _sealed(header)


def _long_name(random: Random) -> bytes:
    """A member that describes the next one: GNU's long name, or PAX records."""
    kind = random.choice(b"LKxgX")
    body = random.choice(
        (
            b"0009.json\0",
            b"a" * 3000,
            b"\xff\0",
            b"",
            b"20 path=0009.json x\n",
            *(_pax_record(random) for _ in range(4)),
        )
    )
    header = bytearray(BLOCK)
    header[:9] = b"././@Long"
    header[124:136] = b"%011o\0" % random.choice((len(body), len(body), len(body) + 1, edge(random, 33)))
    header[156] = kind
    header[257:265] = b"ustar\00000"
    return _sealed(header) + body + b"\0" * (-len(body) % BLOCK)


def _pax_record(random: Random) -> bytes:
    body = f" {random.choice(_PAX)}={random.choice(_VALUES)}\n".encode()
    length = len(body) + len(str(len(body)))
    length += len(str(length)) - len(str(len(body)))
    return f"{random.choice((length, length, length, 0, -1, 10**9, length - 1))}".encode() + body
