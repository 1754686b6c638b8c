"""The order of objects in a list by what they say of it themselves: numbers, times, or which of them each follows.

Files have turns, images and calls in the order that is meant, nearly always. Where the objects number themselves, all
of them, in another order, or name another one than stands before them as the one they follow, nothing says which of
the two is meant, and the record is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from megatron_apriel.data.raw.fields.envelopes import OURS
from megatron_apriel.data.raw.fields.meanings import FOLLOWS, IDENTITIES, NUMBERS, ROLE
from megatron_apriel.data.raw.fields.taken import is_nothing
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.reading import plain_name

_NUMBERED = re.compile(r"(\D{0,40})(\d{1,15})")
"""A number, perhaps behind a word: ``7``, ``turn_7``. Longer numbers are identities."""
_OF_IMAGES = re.compile(
    r"(?:image|img|picture|photo|page|frame|slide|figure)s?_(?:orders?|ordering|index|indices|indexes|idxs?|positions?"
    r"|numbers?|nums?|nos?|ranks?|seq|sequence|timestamps?|(?P<identities>ids?))"
)
"""Names of lists beside the images that number them."""
_LONGEST_TIME = 40
_LONGEST_COUNT = 8


def check_order(values: list[Any], path: str, names: Sequence[str] = NUMBERS.names, *, counted: bool = True) -> None:
    """Raise BadRecord for objects that say, all of them, that they come in another order than they stand.

    Args:
        values: a list of a record.
        path: of it.
        names: of the numbers and times.
        counted: whether ids that only count are numbers as well.
    """
    objects = [
        {plain_name(str(name)): (name, one) for name, one in value.items()}
        for value in values
        if isinstance(value, Mapping)
    ]
    if len(objects) < 2 or len(objects) != len(values):
        return
    for plain, (name, _) in objects[0].items():
        given = [_of(one, plain) for one in objects]
        ranks = _ranks(given) if plain in names else _count(given) if counted and plain in IDENTITIES.names else None
        if ranks is not None and ranks != sorted(ranks):
            raise BadRecord(
                f"field {f'{path}.{name}'!r} numbers them otherwise than they stand; sort them, or --ignore "
                f"{path}.{name}"
            )
    _check_followed(objects, path)


def check_numbered(path: str, name: str, value: Any, count: int) -> None:
    """Raise BadRecord for a list beside the images of a record that numbers them in another order than they stand.

    Args:
        path: of the field.
        name: its own name, plain.
        value: of it.
        count: of the record's images.
    """
    named = _OF_IMAGES.fullmatch(name)
    if named is None or not isinstance(value, list) or len(value) != count or count < 2:
        return
    ranks = _count(value) if named["identities"] else _ranks(value)
    if ranks is not None and ranks != sorted(ranks):
        raise BadRecord(f"field {path!r} numbers the images otherwise than they stand; sort them, or --ignore {path}")


def _check_followed(objects: Sequence[Mapping[str, Any]], path: str) -> None:
    """Refuse objects that name another one than stands before them as the one they follow: branches of a tree."""
    parent = next((name for name in FOLLOWS.names if any(not is_nothing(_of(one, name)) for one in objects)), "")
    own = next((name for name in IDENTITIES.names if all(_is_identity(_of(one, name)) for one in objects)), "")
    if not parent or not own:
        return
    known = [_of(one, own) for one in objects]
    followed = [_of(one, parent) for one in objects]
    for number, one in enumerate(followed):
        if is_nothing(one) or one not in known or (number and one == known[number - 1]):
            continue
        if number and one == followed[number - 1] and _are_results(objects[number - 1 : number + 1]):
            continue  # of parallel calls
        named = objects[number].get(parent, (parent,))[0]
        raise BadRecord(
            f"field {f'{path}.{named}'!r} says that one follows {one!r}, which is not the one before it: give one "
            f"path of a tree, in order, or --ignore {path}.{named}"
        )


def _of(fields: Mapping[str, Any], name: str) -> Any:
    return fields.get(name, ("", None))[1]


def _is_identity(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool) and not is_nothing(value)


def _are_results(objects: Sequence[Mapping[str, Any]]) -> bool:
    roles = [next((_of(one, name) for name in ROLE.names if name in one), None) for one in objects]
    return all(isinstance(role, str) and OURS.get(plain_name(role)) == "tool_result" for role in roles)


def _ranks(values: Sequence[Any]) -> list[Any] | None:
    """Values that can be compared, one for each that is given: numbers or times. None where they are something else."""
    if all(type(value) in (int, float) for value in values) or all(isinstance(value, datetime) for value in values):
        return list(values)
    if not all(isinstance(value, str) and len(value) <= _LONGEST_TIME for value in values):
        return None
    found = [_NUMBERED.fullmatch(value.strip()) for value in values]
    if len({match[1] for match in found if match}) == 1 and None not in found:
        return [int(match[2]) for match in found if match]
    with suppress(ValueError):
        times = [datetime.fromisoformat(value.strip()) for value in values]
        if len({time.tzinfo is None for time in times}) == 1:
            return list(times)
    return None


def _count(identities: Sequence[Any]) -> list[int] | None:
    """Identities that are nothing but a count from 0 or 1."""
    digits = [str(one) for one in identities if isinstance(one, str | int) and not isinstance(one, bool)]
    if len(digits) != len(identities) or not all(one.isdecimal() and len(one) < _LONGEST_COUNT for one in digits):
        return None
    numbers = list(map(int, digits))
    first = min(numbers)
    return numbers if first < 2 and sorted(numbers) == list(range(first, first + len(numbers))) else None
