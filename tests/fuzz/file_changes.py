"""Mutations of directories: files that are missing, renamed, exchanged or of another kind, and JSON files in them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

from .byte_changes import change_bytes
from .json_changes import change_value, write_json


def change_json(random: Random, data: bytes, names: Sequence[str] = ()) -> tuple[bytes, str]:
    """A JSON file with a value changed; its bytes where it is none, and now and then anyway."""
    if random.random() < 0.85:
        try:
            document = json.loads(data)
            changed, what = change_value(random, document, names)
            return write_json(changed, indent=random.choice((None, 2))).encode("utf-8", "surrogatepass"), what
        except (ValueError, RecursionError):
            pass
    return change_bytes(random, data)


def change_files(random: Random, directory: Path) -> str:
    """Something is wrong with which files there are."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and not path.is_symlink())
    if not files:
        return "no file is left to change"
    file, other = random.choice(files), random.choice(files)
    name = str(file.relative_to(directory))
    match random.randrange(9):
        case 0:
            file.unlink()
            return f"remove {name}"
        case 1:
            new = random.choice((file.name.upper(), file.name + ".bak", "x" + file.name, other.name, file.stem))
            file.rename(file.with_name(new))
            return f"rename {name} to {new}"
        case 2:
            file.write_bytes(other.read_bytes() if other != file and other.stat().st_size < _LARGE else b"")
            return f"{name} holds what {other.name} holds"
        case 3:
            file.write_bytes(b"")
            return f"empty {name}"
        case 4:
            file.unlink()
            file.mkdir()
            return f"{name} is a directory"
        case 5:
            file.unlink()
            file.symlink_to(random.choice(("gone", file.name, "/dev/null", "/dev/zero", ".")))
            return f"{name} is a link to {file.readlink()}"
        case 6:
            file.unlink()
            os.mkfifo(file)
            return f"{name} is a pipe"
        case 7:
            other = file.with_name(random.choice(_STRANGERS))
            if not other.exists() and file.stat().st_size < _LARGE:
                other.write_bytes(file.read_bytes())
            return f"a copy of {name} under another name"
        case _:
            size = file.stat().st_size
            with file.open("r+b") as stream:
                stream.truncate(random.choice((0, size // 2, max(0, size - 1), size + 1, 2 * size, 2**27)))
            return f"{name} has another size"


_LARGE = 2**26  # only another size has made it so, and it holds nothing

_STRANGERS = (
    "model.safetensors", "model-00001-of-00002.safetensors", "model-1-of-1.safetensors", "consolidated.safetensors",
    "consolidated-00001-of-00001.safetensors", "params.json", "config.json", "run.json", ".metadata", "tekken.json",
    "tokenizer.json",
    "model.safetensors.index.json", "generation_config.json", "a\nb.json", "corpus.json", "images.bin", "__0_0.distcp",
    "x" * 250,
)  # fmt: skip


class Changes:
    """Applies mutations to files of a directory, each by the way that fits its name, and lists them.

    What changes which files there are is kept for :meth:`finish`: a mutator that opened a pipe would wait as well.
    """

    def __init__(self, random: Random, directory: Path) -> None:
        self.random, self.directory, self.done = random, directory, list[str]()
        self._of_files = 0

    def file(self, name: str, change: Callable[[bytes], tuple[bytes, str]]) -> None:
        """Replace the bytes of one file, if it is still there."""
        file = self.directory / name
        if file.is_symlink() or not file.is_file() or file.stat().st_size > _LARGE:
            return
        data, what = change(file.read_bytes())
        file.write_bytes(data)
        self.done.append(f"{name}: {what}")

    def files(self) -> None:
        """Change which files there are, in the end."""
        self._of_files += 1

    def finish(self) -> str:
        """Do what was kept for the end; returns all that was done."""
        self.done += [change_files(self.random, self.directory) for _ in range(self._of_files)]
        return "; ".join(self.done)


def copy_honest(source: Path, directory: Path) -> None:
    """Copy a directory of honest files into a case's."""
    shutil.copytree(source, directory, dirs_exist_ok=True)


def digest_of(value: Any) -> str:
    """SHA-256 of bytes, as files that hold digests of others write it."""
    import hashlib

    return hashlib.sha256(value).hexdigest()
