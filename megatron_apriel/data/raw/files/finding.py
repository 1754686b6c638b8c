"""Which raw files the given files and directories hold, each with what reads it, and which are passed over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_apriel.data.raw.file_kinds import IMAGE_SUFFIXES
from megatron_apriel.data.raw.files.compressed import PACKINGS
from megatron_apriel.data.raw.files.folders import Listing, list_directory
from megatron_apriel.data.raw.files.readers import (
    ImageFolder,
    JsonRecords,
    Parquet,
    RawInput,
    SavedDataset,
    TextTable,
    WebDataset,
)
from megatron_apriel.data.raw.files.saved_datasets import SPLITS_FILE, split_names
from megatron_apriel.data.raw.files.splits import ALL_SPLITS, EXCLUDED, splits_of
from megatron_apriel.data.raw.problems import names_shown
from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS, ReadLimits
from megatron_apriel.errors import DataError
from megatron_apriel.inputs import open_input, what_was_meant

JSON = tuple(f"{name}{packed}" for packed in PACKINGS for name in (".jsonl", ".ndjson", ".json"))
TABLES = tuple(f"{name}{packed}" for packed in PACKINGS for name in (".csv", ".tsv"))
PARQUET = (".parquet",)
TARS = (".tar", ".tar.gz", ".tgz")


_KNOWN = (
    "Known: .jsonl, .ndjson, .json, .csv, .tsv, each also with .gz, .zst, .xz or .bz2 behind it; .parquet; .tar,"
    " .tar.gz, .tgz; and directories of datasets.save_to_disk."
)
_UNREAD = (
    (
        IMAGE_SUFFIXES,
        (
            "Pictures alone are no records: each needs its caption beside it (a.jpg and a.txt), or a file of records"
            " that names it, with --image-root for the folder.",
            _KNOWN,
        ),
    ),
    ((".zip", ".7z", ".rar", ".lz4"), ("Such archives are not opened.", "Unpack it, and give the directory.")),
    (
        (".arrow", ".feather", ".orc", ".avro", ".xlsx", ".xls", ".sqlite", ".db"),
        (_KNOWN, "Write it as Parquet or as JSON lines, as pandas and datasets do."),
    ),
    (
        (".txt", ".text", ".md", ".rst"),
        (
            "Plain text does not say where a document ends: that may be a file, a paragraph or a line.",
            'Make each document a line of a .jsonl file, as {"text": "..."}; docs/data.md has a command for it.',
        ),
    ),
)
"""Kinds of files that people have their data in: why they are not read, and what is read instead."""


@dataclass
class Inputs:
    """What the given files and directories hold.

    Attributes:
        readable: to be read, in a fixed order.
        passed: files of the directories that are not read.
    """

    readable: list[RawInput] = field(default_factory=list)
    passed: list[Path] = field(default_factory=list)


def find_inputs(
    inputs: Sequence[str | Path], split: str = "", limits: ReadLimits = DEFAULT_LIMITS, subset: str = ""
) -> Inputs:
    """What the given files and directories hold.

    Args:
        inputs: files; directories written by ``save_to_disk``; other directories, which are searched for files of the
            known kinds in alphabetical order. Hidden entries are passed over, and so is a directory that was already
            searched under another name.
        split: of a data set that has several; ``train+test`` for two, ``all`` for all.
        limits: on what is read of them.
        subset: of a hub repository whose card has several; ``+`` and ``all`` as with splits.

    Raises:
        DataError: a path that does not exist, is a pipe or a device, is of no known kind, holds nothing, or has not
            the split or subset, or several and none was asked for.
    """
    result, chosen = Inputs(), False
    for path in map(Path, inputs):
        if path.is_dir():
            found = list_directory(path, lambda name: _reader_of(name) is not None)
            chosen |= _read_directory(path, found, split, subset, limits, result)
            if not found.files and not found.folders and not found.saved:
                raise DataError(f"{path} holds no file that can be read.", *_instead_of(found.passed))
            continue
        _check_openable(path)
        reader = _reader_of(path.name)
        if reader is None:
            raise DataError(f"{path}: unknown kind of file.", *_instead_of([path]))
        result.readable.append(reader(path, limits))
    if subset and not any(Path(path).is_dir() for path in inputs):
        raise DataError(
            f"subset {subset!r} was asked for, and no input is a directory with a card.",
            fix="Leave --subset out, and give the files of that subset as inputs.",
        )
    if split and not chosen:
        raise DataError(
            f"split {split!r} was asked for, and no input has splits: neither a saved DatasetDict nor a directory "
            "whose files are named for them.",
            fix="Leave --split out, and give the files of that split as inputs.",
        )
    return result


def refuse_twins(readable: Sequence[RawInput]) -> None:
    """Raise DataError where a directory holds one name in two forms, as ``train.jsonl`` and ``train.parquet``.

    One is most likely made of the other, and its documents would be learned twice. Inputs that the user named are not
    looked at.
    """
    seen: dict[Path, Path] = {}
    for path in (given.path for given in readable if given.found):
        stem = path.with_name(path.name[: -len(_suffix_of(path.name))])
        if (first := seen.setdefault(stem, path)) is not path:
            raise DataError(
                f"{first} and {path.name} have one name and two forms.",
                "One is most likely made of the other, and its documents would be learned twice.",
                "Move one of them away; to read both, give them as inputs by their names.",
            )


def _suffix_of(name: str) -> str:
    """The ending by which a file of a known kind is known."""
    fits = [suffix for suffix in (*JSON, *TABLES, *PARQUET, *TARS) if name.lower().endswith(suffix)]
    return max(fits, key=len, default="")


def _read_directory(path: Path, found: Listing, split: str, subset: str, limits: ReadLimits, result: Inputs) -> bool:
    """Add what a directory holds; whether it had splits to choose from."""
    splits = splits_of(path, [*found.files, *found.folders], subset)
    names = tuple(dict.fromkeys(split for split in splits.values() if split != EXCLUDED))
    wanted = _wanted(path, names, split)
    chosen = bool(splits and split)
    for entry in sorted([*found.files, *found.folders, *found.saved]):
        if entry in found.saved:
            chosen |= _read_saved(entry, split, limits, result)
        elif splits and splits[entry] not in wanted:
            result.passed.append(entry)
        elif entry in found.folders:
            result.readable.append(ImageFolder(entry, limits))
        else:
            _check_openable(entry)
            reader = _reader_of(entry.name)
            assert reader is not None, "the listing was made by it"
            result.readable.append(reader(entry, limits))
            result.readable[-1].found = True
    result.passed += found.passed
    return chosen


def _read_saved(path: Path, split: str, limits: ReadLimits, result: Inputs) -> bool:
    if not (path / SPLITS_FILE).is_file():
        result.readable.append(SavedDataset(path, limits=limits))
        return False
    splits = _splits(path)
    result.readable += [SavedDataset(path, one, limits) for one in _wanted(path, splits, split)]
    return bool(split)


def _wanted(path: Path, splits: Sequence[str], split: str) -> list[str]:
    """Those of the splits that are to be read. Raises DataError where there are several and none was asked for."""
    wanted = [one for name in split.split("+") for one in (splits if name == ALL_SPLITS else [name])]
    if splits and not split and len(splits) == 1:
        return list(splits)
    if splits and (not split or any(one not in splits for one in wanted)):
        raise DataError(
            f"{path} has the splits {names_shown(splits)}, and split {split!r} was asked for.",
            "Splits are kept apart: what a model is tested on must not be trained on.",
            f"Choose with --split {'train' if 'train' in splits else splits[0]}; for several, {ALL_SPLITS!r} or names "
            "with + between.",
        )
    return wanted


def _check_openable(path: Path) -> None:
    try:
        open_input(path).close()
    except FileNotFoundError:
        raise DataError(f"input {path} does not exist.", fix=what_was_meant(path, "dataset")) from None
    except OSError as error:
        raise DataError(f"input {path} cannot be read: {error.strerror}.") from None


def _instead_of(files: Sequence[Path]) -> tuple[str, str]:
    """Why files are not read, and what is to be given instead; by the first of ``_UNREAD`` that one of them is."""
    suffixes = {file.suffix.lower() for file in files if file.stem.lower() != "readme"}
    return next((instead for kind, instead in _UNREAD if suffixes.intersection(kind)), ("", _KNOWN))


def _reader_of(name: str) -> type[JsonRecords | TextTable | Parquet | WebDataset] | None:
    readers: tuple[tuple[tuple[str, ...], type[JsonRecords | TextTable | Parquet | WebDataset]], ...] = (
        (JSON, JsonRecords),
        (TABLES, TextTable),
        (PARQUET, Parquet),
        (TARS, WebDataset),
    )
    return next((reader for suffixes, reader in readers if name.lower().endswith(suffixes)), None)


def _splits(directory: Path) -> list[str]:
    try:
        return split_names(directory)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{directory / SPLITS_FILE} cannot be read: {error}.",
            "It names the splits of the data set.",
            "Save the data set again.",
        ) from None
