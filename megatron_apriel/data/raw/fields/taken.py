"""The fields of a record, taken one by one: what nobody takes can be listed at the end.

Reading a dictionary with ``get`` passes over whatever the reader does not know. Here every object of a record (the
record, its turns, their parts and calls) is a :class:`Fields`; readers take what they understand, and what is left is
refused where it is known to change the lesson, and counted otherwise (``leftovers``). So nothing is read past.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from megatron_apriel.data.raw.json_text import parsed_json
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.reading import Reading, plain_name
from megatron_apriel.errors import shown

_VALUES = 100_000
"""Most of a JSON text into which a path leads."""


def is_nothing(value: Any) -> bool:
    """Whether a value says nothing: null, an empty text, list or object, or NaN, as tables have them for "absent"."""
    return is_null(value) or (isinstance(value, str | bytes | list | tuple | Mapping) and not value)


def is_null(value: Any) -> bool:
    """Whether a value is null, or NaN, which writers of tables put in its place."""
    return value is None or (isinstance(value, float) and value != value)


def is_hollow(value: Any, says_nothing: Callable[[Any], bool] = is_nothing) -> bool:
    """Whether a value says nothing, or is an object or a list of such: what a row lacks of a table's united fields."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Mapping | list):
            waiting += one.values() if isinstance(one, Mapping) else one
        elif not says_nothing(one):
            return False
    return True


@dataclass(frozen=True)
class Leftover:
    """A field that nobody took.

    Attributes:
        level: kind of object it stands in: record, turn, part, ...
        path: dotted, from the record downwards.
        name: its own name, plain.
        value: of it.
        counted: whether a reader said that it is to be counted, whatever its name.
    """

    level: str
    path: str
    name: str
    value: Any
    counted: bool = False


class Fields:
    """One object of a record.

    Attributes:
        level: kind of object: record, turn, part, call, image, setting.
        reading: what the user says about names.
    """

    def __init__(self, value: Mapping[Any, Any], reading: Reading, level: str = "record", path: str = "") -> None:
        self.level, self.reading, self._path = level, reading, path
        self._value = value = _opened(value, reading, path)
        self._taken: set[Any] = set()
        self._counted: set[Any] = set()
        self._inner: list[Fields] = []
        self._keys: dict[str, Any] = {}
        self._deep: dict[str, tuple[str, ...]] = {}
        hidden: set[str] = set()
        if reading.fields:
            own = tuple(path.split(".")) if path else ()
            for theirs, ours in reading.fields.items():
                if theirs[: len(own)] == own and len(theirs) > len(own):
                    rest = theirs[len(own) :]
                    hidden.update(rest[:1] if len(rest) == 1 else ())
                    if _walk(value, rest) is not None:
                        self._deep[ours] = rest
        for key in value:
            name = str(key)
            if name in hidden or (reading.ignored and self._path_of(name) in reading.ignored):
                continue
            plain = plain_name(name)
            if plain not in self._keys or name == plain:
                self._keys[plain] = key

    def __contains__(self, name: str) -> bool:
        """Whether the field is there and says something."""
        return not is_nothing(self.peek(name))

    def names(self) -> tuple[str, ...]:
        """Plain names of all fields that are not ignored."""
        return tuple(dict.fromkeys((*self._deep, *self._keys)))

    def peek(self, name: str) -> Any:
        """A field's value, without taking it."""
        if name in self._deep:
            return _walk(self._value, self._deep[name])
        return self._value[self._keys[name]] if name in self._keys else None

    def take(self, *names: str) -> Any:
        """The first of the fields that says something, or None; what says nothing is taken as well."""
        found = None
        for name in names:
            if name not in self._keys and name not in self._deep:
                continue  # nearly all are absent
            value = self.peek(name)
            if is_nothing(value):
                self._mark(name)
            elif found is None:
                self._mark(name)
                found = value
        return found

    def count(self, name: str) -> None:
        """Leave a field that was looked at to be counted as not used, and not to be refused."""
        if name in self._keys:
            self._counted.add(self._keys[name])

    def kept(self, values: list[Any], path: str) -> list[Any]:
        """Objects that stand under ``path`` without their fields that are ignored."""
        ignored = self.reading.ignored
        if not any(one.startswith(f"{path}.") for one in ignored):
            return values
        return [
            {name: one for name, one in value.items() if f"{path}.{name}" not in ignored}
            if isinstance(value, Mapping)
            else value
            for value in values
        ]

    def again(self) -> Fields:
        """The same object with nothing taken."""
        return Fields(self._value, self.reading, self.level, self._path)

    def taken_name(self, *names: str) -> str:
        """Path of the first of the fields that says something, for messages and for what stands inside it."""
        for name in names:
            if name in self:
                return self.path(name)
        return self.path(names[0])

    def path(self, name: str) -> str:
        """Dotted path of a field under the name that the file has for it."""
        if name in self._deep:
            return ".".join(filter(None, (self._path, *self._deep[name])))
        return self._path_of(str(self._keys.get(name, name)))

    def inner(self, value: Mapping[Any, Any], level: str, path: str) -> Fields:
        """An object inside this one; what is left of it counts as left of this one."""
        fields = Fields(value, self.reading, level, path)
        self._inner.append(fields)
        return fields

    def untaken(self) -> tuple[str, ...]:
        """Plain names of the fields that nobody took yet."""
        return tuple(name for name, key in self._keys.items() if key not in self._taken)

    def leftovers(self) -> Iterator[Leftover]:
        """What nobody took, here and in the objects inside."""
        deep = [rest for ours, rest in self._deep.items() if rest in self._taken]
        for key, value in self._value.items():
            if key in self._taken or is_null(value):
                continue
            path = self._path_of(str(key))
            if path in self.reading.ignored:
                continue
            inside = [rest[1:] for rest in deep if rest[0] == key]
            if inside:
                value = _without(value, inside)
                if is_nothing(value):
                    continue
            yield Leftover(self.level, path, plain_name(str(key)), value, key in self._counted)
        for fields in self._inner:
            yield from fields.leftovers()

    def _path_of(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def _mark(self, name: str) -> None:
        if name in self._deep:
            rest = self._deep[name]
            self._taken.add(rest[0] if len(rest) == 1 else rest)
        elif name in self._keys:
            self._taken.add(self._keys[name])


def _opened(value: Mapping[Any, Any], reading: Reading, path: str) -> Mapping[Any, Any]:
    """The object with objects in place of their JSON texts, where a path that the user maps leads into them."""
    own = tuple(path.split(".")) if path else ()
    opened: dict[Any, Any] = {}
    for theirs in reading.fields:
        name = theirs[len(own)] if theirs[: len(own)] == own and len(theirs) > len(own) + 1 else None
        text = value.get(name)
        if isinstance(text, str) and text.lstrip().startswith("{"):
            with suppress(BadRecord):  # then it is a text like others
                opened[name] = parsed_json(text, _VALUES)
    return {**value, **opened} if opened else value


def leaves(leftover: Leftover, ignored: frozenset[str]) -> Iterator[tuple[str, str, Any]]:
    """Path, plain name and value of every field inside a leftover that holds no further fields; lists are one value.

    Nesting is followed without recursion: what nobody reads may be nested as deeply as JSON may.
    """
    waiting: list[tuple[str, str, Any]] = [(leftover.path, leftover.name, leftover.value)]
    while waiting:
        path, name, value = waiting.pop()
        if value is None or path in ignored:
            continue
        if isinstance(value, Mapping) and value:
            waiting += [(f"{path}.{key}", plain_name(str(key)), inner) for key, inner in value.items()]
            continue
        if isinstance(value, list):
            objects = [one for one in value if isinstance(one, Mapping | list) and one]
            if objects:
                waiting += [(path, name, one) for one in objects]
                if len(objects) == len(value):
                    continue
        yield path, name, value


def text_of(value: Any, what: str) -> str:
    """The value if it is a text that can be written down; raises BadRecord."""
    if not isinstance(value, str):
        raise BadRecord(f"{what} is missing" if value is None else f"{what} is {kind_of(value)}, not a string")
    check_text(value, what)
    return value


class DoubtfulNumber(float):
    """A number of a table's column of fractions that may have had another spelling: 1 and 1.0 are one there."""


class DoubtfulText(str):
    """What ``datasets`` wrote of a text or a number: 7 and "7" are one in its JSON columns. Where a text must stand,
    it is right."""


def check_text(value: Any, what: str) -> None:
    """Raise BadRecord for a tree of values that has no one spelling as JSON text."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, DoubtfulText) and one is not value:
            raise BadRecord(
                f"{what} holds {shown(one)} out of a JSON column of datasets, where a text and a number are the "
                "same: which one stood there is not known; give the file that datasets read"
            )
        if isinstance(one, str):
            try:
                one.encode("utf-8")
            except UnicodeEncodeError as error:
                raise BadRecord(f"{what} holds half of a surrogate pair, which is no character: {error}") from None
        elif isinstance(one, Mapping):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            waiting += one
        elif isinstance(one, DoubtfulNumber):
            raise BadRecord(
                f"{what} holds {one!r} out of a table's column of fractions, where 1 and 1.0 are the same: which one "
                "stood there is not known; store such values as JSON text"
            )
        elif isinstance(one, float) and one - one != 0:
            raise BadRecord(f"{what} holds NaN or an infinity, which JSON does not have")
        elif not (one is None or isinstance(one, int | float)):
            raise BadRecord(
                f"{what} holds {kind_of(one)}, which JSON does not have: a table's writer changed what stood there; "
                "store such values as JSON text"
            )


def kind_of(value: Any) -> str:
    """What a value is, in words for a message."""
    name = type(value).__name__
    return f"a timestamp ({name})" if name == "datetime" else f"a {name}"


def described(field: tuple[str, Any]) -> str:
    """A field's name, with the kind of its value where JSON does not have it."""
    name, value = field
    plain = value is None or isinstance(value, str | int | float | list | Mapping)
    return name if plain else f"{name} ({kind_of(value)})"


def _walk(value: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        if not isinstance(value, Mapping) or name not in value:
            return None
        value = value[name]
    return value


def _without(value: Any, paths: list[tuple[str, ...]]) -> Any:
    if () in paths or not isinstance(value, Mapping):
        return None
    return {
        key: _without(inner, below) if (below := [path[1:] for path in paths if path[0] == key]) else inner
        for key, inner in value.items()
        if (key,) not in paths
    }
