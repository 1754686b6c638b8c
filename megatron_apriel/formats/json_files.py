"""JSON files of a model: read strictly (bounded, no key twice, numbers that are numbers), written for people.

Python's reader keeps the last of two equal keys, where another program keeps the first; it takes ``NaN`` and turns
``1e999`` into infinity, which no program could read back; and it reads lists in one another as deep as its stack
goes, deeper than they could be written or compared. All of that is refused here.
"""

from __future__ import annotations

import json
import math
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from megatron_apriel.errors import CheckpointError, printable, shown
from megatron_apriel.inputs import read_input

MOST_BYTES = 8 * 2**20
"""Of a file that describes a model. Published configs have a few KiB, an index of ten thousand tensors one MiB."""
MOST_DEEP = 50
"""Lists and objects in one another."""

_TOO_DEEP = f"lists and objects lie in one another more than {MOST_DEEP} deep"


def parse_json(data: bytes, finite: bool = True) -> Any:
    """The value of a JSON text in UTF-8.

    Args:
        data: the text.
        finite: whether infinity and NaN, as Python writes them, are refused.

    Raises:
        ValueError: with the reason, for a message.
    """
    numbers: dict[str, Any] = {"parse_float": _finite, "parse_constant": _no_number} if finite else {}
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique_keys, **numbers)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    level = _inside([[value]])
    for _ in range(MOST_DEEP):
        level = _inside(level)
    if level:
        raise ValueError(_TOO_DEEP)
    if b"\\u" in data:
        _check_writable(value)
    return value


def _check_writable(value: Any) -> None:
    """Refuse half of a surrogate pair, which an escape can say and no file in UTF-8 can hold."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{shown(error.object[error.start])} is half of a letter (a surrogate without its pair)"
        ) from None


def _inside(level: list[Any]) -> list[Any]:
    """The lists and objects that lie directly in those of ``level``."""
    parts = chain.from_iterable(outer.values() if type(outer) is dict else outer for outer in level)
    return [part for part in parts if type(part) in (dict, list)]  # json makes no others, and millions are looked at


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these pairs (``object_pairs_hook`` of json). Raises ValueError if a key is there twice."""
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        repeated = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{shown(repeated)} is there twice")
    return table


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


_PURPOSE = "Without it, the model's shape is not known."


def read_json(file: Path, purpose: str = _PURPOSE, fix: str = "", *, finite: bool = True) -> dict[str, Any]:
    """The JSON object in a file of a model.

    Args:
        file: at most ``MOST_BYTES`` long.
        purpose, fix: what the file is for, and what to do where it is missing.
        finite: as of :func:`parse_json`.

    Raises:
        CheckpointError: the file is missing, cannot be read, or holds something else.
    """
    name = printable(file)
    try:
        value = parse_json(read_input(file, MOST_BYTES), finite)
    except FileNotFoundError:
        raise CheckpointError(f"{name} does not exist.", purpose, fix) from None
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise CheckpointError(f"{name} cannot be read: it is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{name} holds a {type(value).__name__}, not an object.")
    return value


def write_json(file: Path, value: Any) -> None:
    """Write an object as people read it: indented, in its own order, letters as they are."""
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
