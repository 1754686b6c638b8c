"""What the card of a hub repository says of its files: subsets (``configs`` in ``README.md``) and their splits.

Subsets of one repository often hold each other, as ``all`` beside one for each language. Read together, such documents
would be learned twice, so one is chosen, as ``datasets`` has it: the one that is asked for, else the default one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_apriel.config.yaml_text import parse_yaml
from megatron_apriel.data.raw.problems import names_shown
from megatron_apriel.errors import ConfigError, DataError
from megatron_apriel.inputs import read_input

CARD = "README.md"
ALL_SUBSETS = "all"
_DEFAULT = "default"
_CARD_BYTES = 2**20
_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---\s*$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Subset:
    """A subset and those of the files that are its.

    Attributes:
        name: as in ``load_dataset(repository, name)``.
        default: it is read where none is asked for.
        splits: the split of each of its files; "" where the card names none.
    """

    name: str
    default: bool
    splits: Mapping[Path, str]


def subsets_of(directory: Path, files: Sequence[Path]) -> list[Subset]:
    """The subsets that the card describes and of which a file is there."""
    try:
        text = read_input(directory / CARD, _CARD_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    matter = _FRONT_MATTER.match(text)
    try:
        card = parse_yaml(matter[1], "")[0] if matter and matter[1].strip() else {}
    except ConfigError:
        return []
    configs = card.get("configs") if isinstance(card, Mapping) else None
    found = []
    for number, config in enumerate(configs if isinstance(configs, list) else []):
        if isinstance(config, Mapping) and (splits := dict(_matches(config, directory, files))):
            name = str(config.get("config_name") or number)
            found.append(Subset(name, config.get("default") is True or name == _DEFAULT, splits))
    return found


def chosen_subsets(subsets: Sequence[Subset], wanted: str, place: Path) -> list[Subset]:
    """The subsets that are to be read.

    Args:
        subsets: of a directory.
        wanted: names with ``+`` between, ``all``, or "" for the default one.
        place: the directory, named in messages.

    Raises:
        DataError: there are several and none was asked for, or one was that is not there.
    """
    names = [subset.name for subset in subsets]
    asked = [one for name in wanted.split("+") for one in (names if name == ALL_SUBSETS else [name])] if wanted else []
    if len(subsets) > 1 and not wanted:
        asked = [subset.name for subset in subsets if subset.default][:1]
    if (len(subsets) > 1 or wanted) and (not asked or any(one not in names for one in asked)):
        raise DataError(
            f"{place} has {f'the subsets {names_shown(names)}' if names else 'no card with subsets'}, and subset "
            f"{wanted!r} was asked for.",
            "Subsets may hold one another: documents in two of them would be learned twice.",
            f"Choose with --subset {names[0]}; for several, {ALL_SUBSETS!r} or names with + between."
            if names
            else "Leave --subset out.",
        )
    return [subset for subset in subsets if subset.name in asked] or list(subsets)


def _matches(config: Mapping[str, Any], directory: Path, files: Sequence[Path]) -> Iterator[tuple[Path, str]]:
    """The files of a subset, each with its split, the first that it matches."""
    entries, below = config.get("data_files"), config.get("data_dir")
    if entries is None and isinstance(below, str):
        entries = "**"
    prefix = f"{below.strip('/')}/" if isinstance(below, str) and below.strip("./") else ""
    seen: set[Path] = set()
    for entry in entries if isinstance(entries, list) else [entries]:
        split: Any = ""
        paths: Any = entry
        if isinstance(entry, Mapping):
            split, paths = entry.get("split"), entry.get("path")
        if not isinstance(split, str):
            continue
        for glob in paths if isinstance(paths, list) else [paths]:
            pattern = _pattern(prefix + glob.removeprefix("./")) if isinstance(glob, str) else None
            for file in files if pattern else ():
                if pattern and file not in seen and pattern.fullmatch(file.relative_to(directory).as_posix()):
                    seen.add(file)
                    yield file, split


def _pattern(glob: str) -> re.Pattern[str]:
    pieces = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[!\w.-]+\])", glob)
    return re.compile("".join(pieces.get(part) or _one_of(part) or re.escape(part) for part in parts))


def _one_of(part: str) -> str:
    """A class of characters of a glob, ``[0-4]``, as a pattern."""
    return part.replace("[!", "[^") if re.fullmatch(r"\[!?(?:\w-\w|[\w.])+\]", part) else ""
