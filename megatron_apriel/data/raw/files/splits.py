"""Which split of a data set a file of a directory belongs to: a test split is never mixed into train unasked.

Three things say it: ``configs`` in the card of a hub repository (``README.md``), ``split.yaml`` of Megatron Energon,
and words in names, as ``datasets`` reads them: ``train``, ``validation`` and ``test``, their short forms, and the name
before ``-00000-of-00002``. Where some files of a directory have a split, those without one are its train split.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from megatron_apriel.data.raw.files.cards import chosen_subsets, subsets_of
from megatron_apriel.data.raw.files.energon import EXCLUDED, energon_splits
from megatron_apriel.data.raw.split_names import SPLIT_OF_WORD

ALL_SPLITS = "all"

_BETWEEN = r"[-._ 0-9/=]"
_WORD = re.compile(rf"(?:^|{_BETWEEN})({'|'.join(SPLIT_OF_WORD)})(?={_BETWEEN}|$)")
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_SHARD = re.compile(r"([\w.]+)-\d{4,6}-of-\d{4,6}\b")


def splits_of(directory: Path, files: Sequence[Path], subset: str = "") -> dict[Path, str]:
    """The split of each file; empty if nothing distinguishes them.

    Args:
        directory: they lie in.
        files: of the directory.
        subset: of a repository whose card has several; see ``chosen_subsets`` of ``cards.py``.

    Raises:
        DataError: what describes the directory cannot be read, or has not that subset.
    """
    subsets = subsets_of(directory, files)
    chosen = chosen_subsets(subsets, subset, directory)
    carded = {file: split for one in reversed(chosen) for file, split in one.splits.items()}
    others = set(files) - set(carded) if subsets else set()  # what the card does not name is no part of the data set
    described = {**carded, **energon_splits(directory, files), **dict.fromkeys(others, EXCLUDED)}
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
        if match := _WORD.search(_HUMP.sub("_", part).lower()):
            return SPLIT_OF_WORD[match[1]]
    return ""
