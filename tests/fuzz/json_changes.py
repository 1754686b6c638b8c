"""Mutations of values as JSON and YAML hold them, and writing the result, with repeated keys and endless numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

_LONG_NUMBER = "@@ a number of 5000 digits @@"
_DEEP = "@@ deep @@"

TEXTS = (
    "", " ", "0", "-1", "1e400", "nan", "null", "true", "\x00", "\x1b[2J\x1b]0;x\x07", "a\nb\rc\td", "\ud800",
    "\udcff\udfff",
    "\u202e\u2066\ufeff", "\u0130", "é", "e\u0301", "\U0001f600" * 3, "../../etc/passwd", "/etc/passwd", "~root/x",
    "a/../b",
    ".", "..", "/", "a\\b", "a" * 300, "${HOME}", "${", "{{ 7 * 7 }}", "{% raw %}", "%s%n", "<image>", "[IMG]", "</s>",
    "<|end|>", "http://localhost:1/x", "file:///etc/passwd", "data:image/png;base64,AAAA", "data:,", "\\", "'", '"',
    "#", "&a",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 7, 255, 256, 2**15, 2**16, 2**24 + 1, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**62, 2**63 - 1, 2**63,
    -(2**63), -(2**63) - 1, 2**64, 10**18, 10**30, 10**308, 10**400, 0.0, -0.0, 0.5, -0.5, 1.0, 1e-320, 1e-45, 1e30,
    1.7e308,
    -1.7e308, float("nan"), float("inf"), float("-inf"), True, False,
)  # fmt: skip


class Again(str):
    """A key that may stand in an object beside the same key."""

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


def write_json(value: Any, **options: Any) -> str:
    """``value`` as JSON text, with what Python's own writer cannot say put in its place."""
    text = json.dumps(value, **options)
    text = text.replace(json.dumps(_LONG_NUMBER), "9" * 5000)
    return text.replace(json.dumps(_DEEP), "[" * 3000 + "]" * 3000)


def strange(random: Random, near: Any = None) -> Any:
    """A value that nobody expects; often of the kind of ``near``, and beside it."""
    if isinstance(near, bool):
        near = int(near)
    kind = random.random()
    if kind < 0.25 and isinstance(near, int | float):
        try:
            return random.choice(
                (near + 1, near - 1, -near, near * 2, near // 2, float(near), str(near), [near], near * 10**6)
            )
        except (OverflowError, ValueError):
            return 0
    if kind < 0.25 and isinstance(near, str):
        place = random.randint(0, len(near))
        return random.choice((near + "x", near[:-1], near.upper(), near * 2,
        near[:place] + random.choice(TEXTS) + near[place:],
                              [near], {"a": near}))  # fmt: skip
    if kind < 0.25 and isinstance(near, list):
        return random.choice(
            (near * 2, near[::-1], near[1:], [near], {str(place): inner for place, inner in enumerate(near)}, near[:1])
        )
    if kind < 0.5:
        return random.choice(NUMBERS)
    if kind < 0.75:
        return random.choice(TEXTS)
    return copied(
        random.choice(
            (None, None, [], {}, [[]], [None], {"": None}, [0] * 100, _LONG_NUMBER, _DEEP, {"a": {"a": {"a": {}}}})
        )
    )


def change_value(random: Random, document: Any, names: Sequence[str] = ()) -> tuple[Any, str]:
    """One mutation of a document of objects, lists and plain values, and what it was.

    Args:
        random: decides.
        document: is not changed.
        names: further keys that the reader may know.
    """
    document = copied(document)
    places = list(_places(document, ()))
    if not places or random.random() < 0.01:
        return strange(random, document), "replace the whole"
    # Shallow places as often as deep ones, of which there are many more.
    depth = random.choice(sorted({len(path) for path, _, _ in places}))
    path, holder, key = random.choice([place for place in places if len(place[0]) == depth])
    where = ".".join(map(str, path))[:120]
    value = holder[key]
    kind = random.random()
    if kind < 0.45:
        holder[key] = strange(random, value)
        return document, f"{where} = {holder[key]!r:.80}"
    if kind < 0.6:
        if isinstance(holder, dict):
            del holder[key]
        else:
            holder.pop(key)
        return document, f"remove {where}"
    if kind < 0.7:
        other_path, other, other_key = random.choice(places)
        if path[: len(other_path)] != other_path and other_path[: len(path)] != path:
            holder[key], other[other_key] = other[other_key], value
            return document, f"exchange {where} and {'.'.join(map(str, other_path))[:120]}"
    if kind < 0.8:
        _, other, donor = random.choice(places)
        holder[key] = copied(other[donor])
        return document, f"{where} becomes a copy of another value"
    if isinstance(holder, list):
        times = random.choice((1, 1, 1, 2, 50))
        holder[key:key] = [copied(value) for _ in range(times)]
        return document, f"repeat {where} {times} times"
    known = [*names, *(str(other) for _, inner, other in places if isinstance(inner, dict))]
    if kind < 0.88:
        new = random.choice((random.choice(known), random.choice(TEXTS), str(key).upper(), f"{key}_", f"_{key}"))
        items = [(new if name == key else name, inner) for name, inner in holder.items()]
        holder.clear()
        holder.update(items)
        return document, f"rename {where} to {new!r:.80}"
    if kind < 0.94:
        holder[Again(key)] = strange(random, value)
        return document, f"{where} twice"
    new = random.choice((random.choice(known), random.choice(TEXTS)))
    holder.setdefault(new, strange(random))
    return document, f"add {new!r:.80} beside {where}"


def copied(value: Any) -> Any:
    """A copy in which nothing stands in two places, as ``copy.deepcopy`` keeps it: exchanged, it could hold itself."""
    if isinstance(value, dict):
        return {key: copied(inner) for key, inner in value.items()}
    return [copied(inner) for inner in value] if isinstance(value, list | tuple) else value


def _places(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    items: Any = ()
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield (*path, key), value, key
        yield from _places(inner, (*path, key))
