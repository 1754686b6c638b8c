"""What lies in a directory: data, saved data sets, and files that are not read, which are named and never lost.

Repositories and tools put files beside their data that describe it: statistics, indexes, tables of what stands in an
archive as well. They are no records, and do not stop a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_apriel.data.raw.files.folder_samples import sample_names
from megatron_apriel.data.raw.files.saved_datasets import INFO_FILE, SPLITS_FILE, STATE_FILE
from megatron_apriel.errors import DataError

MANIFEST, RECORDS = "manifest.json", "records.jsonl"
"""What ``make_visual_tasks.py`` writes; the first describes the second, and is no record."""
DESCRIPTIONS = (
    "dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "sizes.json", "wids-meta.json",
    "shardindex.json", "croissant.json", "_metadata.json", "config.json",
)  # fmt: skip
"""What ``datasets``, WebDataset and hubs write beside data."""

_DEPTH = 100
"""Directories in directories that are searched."""
_ARCHIVES = (".tar", ".tar.gz", ".tgz")


@dataclass
class Listing:
    """What a directory holds, in a fixed order.

    Attributes:
        files: that hold records.
        folders: directories of images with captions beside them, where nothing else holds records.
        saved: directories of ``datasets.save_to_disk``.
        passed: all other files; hidden ones are not counted.
    """

    files: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    saved: list[Path] = field(default_factory=list)
    passed: list[Path] = field(default_factory=list)


def list_directory(directory: Path, is_read: Callable[[str], bool]) -> Listing:
    """What lies in a directory and in those inside it; each is searched once, whatever links lead to it.

    Args:
        directory: to be searched.
        is_read: whether files of this name are read.

    Raises:
        DataError: directories lie in one another too deep.
    """
    listing = Listing()
    _search(directory, is_read, listing, set())
    if listing.files or listing.saved:
        # Records name the images beside them, whose .txt may be anything: boxes, or what was read in them.
        listing.passed += [entry for folder in listing.folders for entry in sorted(folder.iterdir()) if entry.is_file()]
        listing.folders = []
    return listing


def _search(directory: Path, is_read: Callable[[str], bool], listing: Listing, seen: set[Path]) -> None:
    place = directory.resolve()
    if place in seen:
        return
    seen.add(place)
    if is_saved(directory):
        listing.saved.append(directory)
        return
    if len(place.parts) > _DEPTH:
        raise DataError(
            f"{directory}: directories are searched to a depth of {_DEPTH}.", fix="Give the files as inputs."
        )
    entries = [entry for entry in sorted(directory.iterdir()) if not entry.name.startswith(".")]
    names = {entry.name for entry in entries}
    members = _sample_members(entries, is_read)
    if members:
        listing.folders.append(directory)
    for entry in entries:
        if entry.is_dir():
            _search(entry, is_read, listing, seen)
        elif entry.name in members:
            continue
        elif is_read(entry.name) and not (entry.is_file() and _describes_others(entry, names, listing.folders)):
            listing.files.append(entry)
        else:
            listing.passed.append(entry)


def is_saved(directory: Path) -> bool:
    """Whether ``save_to_disk`` wrote the directory."""
    whole = (directory / STATE_FILE).is_file() and (directory / INFO_FILE).is_file()
    return whole or (directory / SPLITS_FILE).is_file()


def _sample_members(entries: Sequence[Path], is_read: Callable[[str], bool]) -> set[str]:
    """Names of the files that are samples: images, captions and what describes them, where nothing else is read."""
    samples = sample_names(entry.name for entry in entries if entry.is_file())
    members = {name for names in samples.values() for name in names}
    others = any(is_read(entry.name) and entry.name not in members for entry in entries if entry.is_file())
    return set() if others else members


def _describes_others(entry: Path, names: set[str], folders: Sequence[Path]) -> bool:
    name = entry.name
    if name in DESCRIPTIONS or (name == MANIFEST and RECORDS in names):
        return True
    # img2dataset writes 00000.parquet, or .csv or .json, and 00000_stats.json about 00000.tar or the directory 00000
    stem = name.partition(".")[0].removesuffix("_stats")
    if entry.with_name(stem) in folders:
        return True
    return not name.endswith(_ARCHIVES) and any(f"{stem}{ending}" in names for ending in _ARCHIVES)
