"""JSON text of somebody else's turned into values, of which there may be only so many.

``[[],[],...`` takes twenty times the memory of its text once it is parsed. Values are therefore counted before: roughly
first, which is enough for nearly every text, and exactly, outside of strings, where there are many commas.
"""

from __future__ import annotations

import json
import re
from typing import Any

from megatron_apriel.data.raw.problems import BadRecord

_TOKENS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[{,]', re.DOTALL)
"""Strings, which are passed over, and what stands before each further value; nothing here is tried twice."""


def parsed_json(text: str | bytes, most_values: int, what: str = "") -> Any:
    """The value of a JSON text.

    Args:
        text: or its bytes in UTF-8.
        most_values: that it may hold.
        what: begins the message of an error.

    Raises:
        BadRecord: not UTF-8, not JSON, nested too deeply, more values, or two of one name in an object.
    """
    begin = f"{what} is " if what else ""
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        if has_more_values(text, most_values):
            raise BadRecord(f"{begin}JSON of more than {most_values:,} values; --max-record allows more")
        return json.loads(text, object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        raise BadRecord(f"{begin}not valid UTF-8: {error}") from None
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"{begin}not valid JSON: {error}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose names are there once: of two values of one name nothing says which is meant."""
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise ValueError(f"the name {twice!r} is there twice in one object")
    return result


def has_more_values(text: str, most: int) -> bool:
    """Whether a JSON text holds more than ``most`` values; looks no further than that."""
    if len(text) < most or text.count(",") + text.count("[") + text.count("{") < most:
        return False
    number = 1
    for token in _TOKENS.finditer(text):
        number += text[token.start()] != '"'
        if number > most:
            return True
    return False
