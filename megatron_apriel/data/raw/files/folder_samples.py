"""A directory of images with their captions beside them, as samples of an archive that was not packed.

img2dataset writes such directories (``00000/000000000.jpg``, ``.txt`` and ``.json``), and so do people who caption
images: what is alike up to its first dot belongs together. Other files of the directory belong to no sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from megatron_apriel.data.raw.file_kinds import IMAGE_SUFFIXES
from megatron_apriel.data.raw.files.tar_records import CAPTION_SUFFIXES, DOCUMENT_SUFFIXES, TarSample
from megatron_apriel.data.raw.read_limits import ReadLimits
from megatron_apriel.inputs import read_input

_RECORD = ".json"


def sample_names(names: Iterable[str]) -> dict[str, list[str]]:
    """The names of a directory's files by sample; none at all where no image has a caption, or not all a record."""
    samples: dict[str, list[str]] = {}
    for name in sorted(names):
        if name.lower().endswith((*IMAGE_SUFFIXES, *DOCUMENT_SUFFIXES)):
            samples.setdefault(name.partition(".")[0], []).append(name)
    pictured = {
        key: members for key, members in samples.items() if any(one.lower().endswith(IMAGE_SUFFIXES) for one in members)
    }
    captioned = any(one.lower().endswith(CAPTION_SUFFIXES) for members in pictured.values() for one in members)
    described = all(any(one.lower().endswith(_RECORD) for one in members) for members in pictured.values())
    return pictured if captioned or described else {}


def folder_samples(directory: Path, limits: ReadLimits) -> Iterator[TarSample]:
    """The samples of a directory by name. A file that cannot be read is its sample's problem."""
    for key, names in sample_names(entry.name for entry in directory.iterdir()).items():
        members: dict[str, bytes | None] = dict.fromkeys(names, b"")
        problem = ""
        for name in names:
            try:
                members[name] = read_input(directory / name, limits.record_bytes)
            except OSError as error:
                problem = f"{name} cannot be read: {error.strerror or error}"
                break
        yield TarSample(key, members, problem)
