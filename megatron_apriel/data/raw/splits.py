"""Which split of a data set a file of a directory belongs to: a test split is never mixed into train unasked.

Three things say it: ``configs`` in the card of a hub repository (``README.md``), ``split.yaml`` of Megatron Energon,
and words in names, as ``datasets`` reads them: ``train``, ``validation`` and ``test``, their short forms, and the name
before ``-00000-of-00002``. Where some files of a directory have a split, those without one are its train split.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_apriel.config.yaml_text import parse_yaml
from megatron_apriel.data.raw.split_names import SPLIT_OF_WORD
from megatron_apriel.errors import ConfigError, DataError, shown
from megatron_apriel.inputs import read_input

CARD, ENERGON = "README.md", Path(".nv-meta") / "split.yaml"
ALL_SPLITS = "all"
EXCLUDED = "excluded"
"""The split of files that a data set leaves out, which ``all`` does not mean."""

_BETWEEN = r"[-._ 0-9/=]"
_WORD = re.compile(rf"(?:^|{_BETWEEN})({'|'.join(SPLIT_OF_WORD)})(?={_BETWEEN}|$)")
_SHARD = re.compile(r"([\w.]+)-\d{4,6}-of-\d{4,6}\b")
_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---\s*$", re.DOTALL | re.MULTILINE)
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CARD_BYTES = 2**20


def splits_of(directory: Path, files: Sequence[Path]) -> dict[Path, str]:
    """The split of each file; empty if nothing distinguishes them."""
    described = {**_from_card(directory, files), **_from_energon(directory, files)}
    found = {file: described.get(file) or _from_name(file.relative_to(directory)) for file in files}
    if not any(found.values()):
        return {}
    return {file: split or _shard_name(file) or "train" for file, split in found.items()}


def _shard_name(file: Path) -> str:
    """The name before ``-00000-of-00002``, which is a split's where others are."""
    shard = _SHARD.match(file.name)
    return shard[1] if shard else ""


def _from_name(file: Path) -> str:
    """The split in the name of a file, or of the nearest directory that has one; "" if none does."""
    shard = _SHARD.match(file.name.lower())
    if shard and _WORD.search(shard[1]):
        return shard[1]
    for part in (file.name, *(parent.name for parent in file.parents)):
        if match := _WORD.search(part.lower()):
            return SPLIT_OF_WORD[match[1]]
    return ""


def _from_card(directory: Path, files: Sequence[Path]) -> dict[Path, str]:
    try:
        text = read_input(directory / CARD, _CARD_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    matter = _FRONT_MATTER.match(text)
    found: dict[Path, str] = {}
    for config in _list(_yaml(matter[1] if matter else ""), "configs"):
        entries = config.get("data_files") if isinstance(config, Mapping) else None
        for entry in entries if isinstance(entries, list) else [entries]:
            if isinstance(entry, str):
                continue
            if not isinstance(entry, Mapping) or not isinstance(entry.get("split"), str):
                continue
            paths = entry.get("path")
            for pattern in paths if isinstance(paths, list) else [paths]:
                matches = _pattern(pattern) if isinstance(pattern, str) else None
                for file in files if matches else ():
                    if matches and matches.fullmatch(file.relative_to(directory).as_posix()):
                        found.setdefault(file, entry["split"])
    return found


def _from_energon(directory: Path, files: Sequence[Path]) -> dict[Path, str]:
    """The splits of the directory, and of those inside it, that Megatron Energon describes."""
    found: dict[Path, str] = {}
    for place in dict.fromkeys([directory, *(file.parent for file in files)]):
        if not (place / ENERGON).is_file():
            continue
        try:
            value = _yaml(read_input(place / ENERGON, _CARD_BYTES).decode("utf-8"), strict=True)
        except (OSError, UnicodeDecodeError, ConfigError) as error:
            raise DataError(
                f"{place / ENERGON} cannot be read: {error}.",
                "It says which archives are for training and which for tests.",
                "Give the archives of one split as inputs.",
            ) from None
        parts = value.get("split_parts") if isinstance(value, Mapping) else None
        _exclude(place, value, files, found)
        for split, names in parts.items() if isinstance(parts, Mapping) else ():
            patterns = [_braces(str(name)) for name in names] if isinstance(names, list) else []
            for file in files:
                name = file.relative_to(place).as_posix() if file.is_relative_to(place) else ""
                if any(_in_braces(pattern, ranges, name) for pattern, ranges in patterns):
                    found.setdefault(file, {"val": "validation"}.get(str(split), str(split)))
    return found


def _exclude(place: Path, value: Any, files: Sequence[Path], found: dict[Path, str]) -> None:
    """Put archives that are to be left out into a split of that name. Raises DataError for samples of one."""
    for name in map(str, _list(value, "exclude")):
        patterns = _braces(name)
        left_out = [
            file
            for file in files
            if file.is_relative_to(place) and _in_braces(*patterns, file.relative_to(place).as_posix())
        ]
        if not left_out and any(name.startswith(f"{file.relative_to(place)}/") for file in files):
            raise DataError(
                f"{place / ENERGON} excludes {shown(name)}, a sample of an archive, which is not followed here.",
                "It would be learned though it is meant to be left out.",
                "Write the archive again without it, and take it out of the list.",
            )
        found.update(dict.fromkeys(left_out, EXCLUDED))


def _braces(name: str) -> tuple[re.Pattern[str], list[tuple[int, int]]]:
    """A name with ranges, as ``part_{0..9}.tar``: a pattern with a group for each, and their bounds."""
    ranges = [(int(begin), int(end)) for begin, end in _RANGE.findall(name)]
    outside = _RANGE.sub("\0", name).split("\0")
    return re.compile(r"(\d+)".join(map(re.escape, outside))), ranges


def _in_braces(pattern: re.Pattern[str], ranges: Sequence[tuple[int, int]], name: str) -> bool:
    match = pattern.fullmatch(name)
    return match is not None and all(
        begin <= int(number) <= end for number, (begin, end) in zip(match.groups(), ranges, strict=True)
    )


def _yaml(text: str, *, strict: bool = False) -> Any:
    try:
        return parse_yaml(text, "")[0] if text.strip() else {}
    except ConfigError:
        if strict:
            raise
        return {}


def _list(value: Any, name: str) -> list[Any]:
    inner = value.get(name) if isinstance(value, Mapping) else None
    return inner if isinstance(inner, list) else []


def _pattern(glob: str) -> re.Pattern[str]:
    pieces = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[!\w.-]+\])", glob.removeprefix("./"))
    return re.compile("".join(pieces.get(part) or _one_of(part) or re.escape(part) for part in parts))


def _one_of(part: str) -> str:
    """A class of characters of a glob, ``[0-4]``, as a pattern."""
    return part.replace("[!", "[^") if re.fullmatch(r"\[!?(?:\w-\w|[\w.])+\]", part) else ""
