"""What the user says about a data set whose names are its own: ``--map THEIRS=OURS`` and ``--ignore PATH``.

A path is the names of fields from the record downwards, joined by dots; lists on the way are passed through, so
``messages.weight`` is that field of every turn. A field that is ignored is as if it were not there.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from re import compile as regular_expression

ROLE = "role:"
"""Before a role's name on the left of a ``--map``: ``role:Bot=assistant``."""

_HUMP = regular_expression(r"(?<=[a-z0-9])(?=[A-Z])")
_LONGEST_NAME = 64


@dataclass(frozen=True)
class Reading:
    """How the names of a data set are to be read.

    Attributes:
        fields: their path, as a tuple of names, and the field of ours that it is.
        roles: their roles, in small letters, and ours.
        ignored: paths that are meant to be unused.
    """

    fields: Mapping[tuple[str, ...], str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()

    @property
    def ignored_columns(self) -> frozenset[str]:
        """Fields of the record itself, which readers of columns leave out."""
        return frozenset(path for path in self.ignored if "." not in path)


def parse_reading(
    pairs: Sequence[str], ignored: Sequence[str], fields: Sequence[str], roles: Sequence[str], text_field: str = "text"
) -> Reading:
    """The words of the command line understood.

    Args:
        pairs: ``THEIRS=OURS`` each.
        ignored: paths.
        fields: names that ``OURS`` may have.
        roles: names that it may have for a role.
        text_field: their field of plain text.

    Raises:
        ValueError: with what is wrong.
    """
    mapped: dict[tuple[str, ...], str] = {} if text_field == "text" else {(text_field,): "text"}
    known_roles: dict[str, str] = {}
    for pair in pairs:
        theirs, equals, ours = pair.rpartition("=")
        if not equals or not theirs or not ours:
            raise ValueError(f"{pair!r} is not THEIRS=OURS, as in question=prompt or {ROLE}Bot=assistant")
        if theirs.startswith(ROLE):
            if ours not in roles:
                raise ValueError(f"{pair!r}: {ours!r} is no role; known: {', '.join(roles)}")
            known_roles[theirs.removeprefix(ROLE).lower()] = ours
        elif ours not in fields:
            near = difflib.get_close_matches(ours, fields, n=3)
            which = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(fields)}"
            raise ValueError(f"{pair!r}: {ours!r} is no field that is read; {which}")
        elif ours in mapped.values():
            raise ValueError(f"{pair!r}: {ours!r} is mapped twice")
        else:
            mapped[tuple(theirs.split("."))] = ours
    return Reading(mapped, known_roles, frozenset(path.removesuffix(".*") for path in ignored))


@lru_cache(4096)
def plain_name(name: str) -> str:
    """The name in small letters with underscores: ``imagePath``, ``Image-Path`` and ``image_path`` are one field."""
    if len(name) > _LONGEST_NAME:
        return name
    name = name.replace("-", "_").replace(" ", "_").replace("CoT", "Cot")  # one word, as in LongCoT
    return (name if "_" in name else _HUMP.sub("_", name)).lower()


def words_of(name: str) -> frozenset[str]:
    """Words that a field's name is made of."""
    return frozenset(plain_name(name).split("_")) if len(name) <= _LONGEST_NAME else frozenset()
