"""What Megatron Energon's metadata say of archives: their splits, what is left out, and which member is which field.

They lie in ``.nv-meta`` beside the archives. ``split.yaml`` is followed. ``dataset.yaml`` may name members by a
``field_map`` or by code of its own: that is followed where it says what is read here anyway, and refused elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_apriel.config.yaml_text import parse_yaml
from megatron_apriel.data.raw.fields.meanings import CAPTIONS, CONVERSATIONS, IMAGES, TEXT, TEXTS, TURN_LISTS
from megatron_apriel.data.raw.file_kinds import IMAGE_SUFFIXES
from megatron_apriel.errors import ConfigError, DataError, shown
from megatron_apriel.inputs import read_input

_META = Path(".nv-meta")
SPLITS, FIELDS = (_META / "split.yaml", _META / "split.json"), _META / "dataset.yaml"
EXCLUDED = "excluded"
"""The split of files that a data set leaves out, which ``all`` does not mean."""

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")
_ARCHIVES = (".tar", ".tar.gz", ".tgz")
_MOST_BYTES = 2**20
_READ_ANYWAY = (
    (IMAGES.names, tuple(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)),
    ((*CAPTIONS.names, *TEXT.names), ("txt",)),
    ((*TURN_LISTS.names, *CONVERSATIONS.names, *TEXTS.names), ("json",)),
)
"""Energon's fields, and the endings of the members that are read as such where nobody says so."""


def energon_splits(directory: Path, files: Sequence[Path]) -> dict[Path, str]:
    """The splits of the directory, and of those inside it, as their ``split.yaml`` or ``split.json`` has them.

    Args:
        directory: that is read.
        files: of the directory.

    Raises:
        DataError: metadata that cannot be read, exclude single samples, or map fields otherwise than they are read.
    """
    found: dict[Path, str] = {}
    for place in dict.fromkeys([directory, *(file.parent for file in files)]):
        _check_fields(place)
        splits = place / next((one for one in SPLITS if (place / one).is_file()), SPLITS[0])
        value = _metadata(splits, "It says which archives are for training and which for tests.")
        parts = value.get("split_parts") if isinstance(value, Mapping) else None
        _exclude(splits, value, files, found)
        for split, names in parts.items() if isinstance(parts, Mapping) else ():
            patterns = [_braces(str(name)) for name in names] if isinstance(names, list) else []
            for file in files:
                name = file.relative_to(place).as_posix() if file.is_relative_to(place) else ""
                if any(_in_braces(pattern, ranges, name) for pattern, ranges in patterns):
                    found.setdefault(file, {"val": "validation"}.get(str(split), str(split)))
        for file in files if parts else ():
            if file.is_relative_to(place) and file.name.lower().endswith(_ARCHIVES):
                found.setdefault(file, EXCLUDED)  # Energon reads what is listed
    return found


def _metadata(file: Path, says: str) -> Any:
    """The file's content; an empty object where there is none."""
    if not file.is_file():
        return {}
    try:
        text = read_input(file, _MOST_BYTES).decode("utf-8")
        return parse_yaml(text, "")[0] if text.strip() else {}
    except (OSError, UnicodeDecodeError, ConfigError) as error:
        raise DataError(f"{file} cannot be read: {error}.", says, "Give the archives of one split as inputs.") from None


def _check_fields(place: Path) -> None:
    """Raise DataError where members are meant as other fields than they are read as."""
    value = _metadata(place / FIELDS, "It says what the members of the archives are.")
    fields = value.get("field_map") if isinstance(value, Mapping) else None
    other = [
        f"{name}: {member}"
        for name, member in (fields.items() if isinstance(fields, Mapping) else ())
        if not any(name in names and _endings(member) <= set(endings) for names, endings in _READ_ANYWAY)
    ]
    loader = value.get("sample_loader") if isinstance(value, Mapping) else None
    if other or loader:
        said = f"field_map {shown(', '.join(other))}" if other else f"sample_loader {shown(str(loader))}"
        raise DataError(
            f"{place / FIELDS} has the {said}, which is not followed here.",
            "Read by their endings alone (a .json or .txt, and images), samples could mean another thing.",
            "If they mean just that, give the archives as inputs by their names; else write each sample's .json anew.",
        )


def _endings(member: Any) -> set[str]:
    """Endings that a field may have, as ``jpg`` or ``jpg;png``."""
    return set(re.split("[;,]", member.lower())) if isinstance(member, str) else {"?"}


def _exclude(splits: Path, value: Any, files: Sequence[Path], found: dict[Path, str]) -> None:
    """Put archives that are to be left out into a split of that name. Raises DataError for samples of one."""
    place = splits.parent.parent
    for name in map(str, _list(value, "exclude")):
        patterns = _braces(name)
        left_out = [
            file
            for file in files
            if file.is_relative_to(place) and _in_braces(*patterns, file.relative_to(place).as_posix())
        ]
        if not left_out and any(name.startswith(f"{file.relative_to(place)}/") for file in files):
            raise DataError(
                f"{splits} excludes {shown(name)}, a sample of an archive, which is not followed here.",
                "It would be learned though it is meant to be left out.",
                "Write the archive again without it, and take it out of the list.",
            )
        found.update(dict.fromkeys(left_out, EXCLUDED))


def _braces(name: str) -> tuple[re.Pattern[str], list[tuple[int, int]]]:
    """A name with braces, as ``part_{0..9}.tar`` or ``{a,b}.tar``: a pattern, and the bounds of its groups."""
    ranges: list[tuple[int, int]] = []
    pattern, end = "", 0
    for found in _BRACES.finditer(name):
        pattern, end = pattern + re.escape(name[end : found.start()]), found.end()
        if found[3] is None:
            ranges.append((int(found[1]), int(found[2])))
            pattern += r"(\d+)"
        else:
            pattern += f"(?:{'|'.join(map(re.escape, found[3].split(',')))})"
    return re.compile(pattern + re.escape(name[end:])), ranges


def _in_braces(pattern: re.Pattern[str], ranges: Sequence[tuple[int, int]], name: str) -> bool:
    match = pattern.fullmatch(name)
    return match is not None and all(
        begin <= int(number) <= end for number, (begin, end) in zip(match.groups(), ranges, strict=True)
    )


def _list(value: Any, name: str) -> list[Any]:
    inner = value.get(name) if isinstance(value, Mapping) else None
    return inner if isinstance(inner, list) else []
