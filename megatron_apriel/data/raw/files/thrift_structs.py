"""Structs of Thrift's compact protocol, in which Parquet writes its footer and the headers of its pages.

A struct is a row of fields, each with its number and its type, so that a reader can pass over what it does not know. So
does Arrow, which reads the same bytes; both must find the same numbers, or what is checked here is not what Arrow
unpacks. Hence a number beyond its type, a field that is there twice, and a known field or list of another type than
parquet.thrift gives it, all of which readers take in different ways, are refused.

Nothing grows: a value takes a byte or more, depth is bounded, and only what was asked for is kept.
"""

from __future__ import annotations

from typing import Any, BinaryIO

INT16, INT32, INT64, BYTES, STRUCT = 4, 5, 6, 8, 12
_TRUE, _FALSE, _LIST = 1, 2, 9
_BITS = {INT16: 16, INT32: 32, INT64: 64}
_DEPTH = 16
"""Structs and lists in each other; a footer has eight."""
_MOST_ENTRIES = 1_000_000
"""Of a list; Arrow's own limit."""

type Fields = dict[int, Kind]
"""The known fields of a struct, by number."""
type Kind = int | Fields | list[Kind]
"""Of a value: one of the types above, a struct with its known fields, or a list with the kind of its entries."""


class DamagedStruct(ValueError):
    """Bytes that are no such struct."""


def read_struct(file: BinaryIO, fields: Fields, what: str) -> dict[int, Any]:
    """The struct that begins at the file's place, which is moved behind it; messages call it ``what``.

    Returns the known fields that are there, by number: numbers as int, structs as dict, lists of structs as list. All
    others are passed over.

    Raises:
        DamagedStruct: the bytes are no struct, or one in which a known field has another type.
    """
    try:
        return _struct(file, fields, 0)
    except DamagedStruct as error:
        raise DamagedStruct(f"{what} is damaged: {error}") from None


def _struct(file: BinaryIO, fields: Fields, depth: int) -> dict[int, Any]:
    found: dict[int, Any] = {}
    seen = set[int]()
    number = 0
    while declared := (byte := _byte(file)) & 0x0F:
        number = number + (byte >> 4) if byte >> 4 else _number(file, INT16)
        if number in seen or number >> 15 > 0:
            raise DamagedStruct(f"field {number} is there twice or too high")
        seen.add(number)
        if (kind := fields.get(number)) is None:
            if declared not in (_TRUE, _FALSE):  # which is the value itself
                _pass_over(file, declared, depth + 1)
        elif declared != _declared(kind):
            raise DamagedStruct(f"field {number} has the type {declared}")
        else:
            found[number] = _value(file, kind, depth + 1)
    return found


def _declared(kind: Kind) -> int:
    if isinstance(kind, int):
        return kind
    return _LIST if isinstance(kind, list) else STRUCT


def _value(file: BinaryIO, kind: Kind, depth: int) -> Any:
    """A value of a known kind; None where nothing of it is kept."""
    if isinstance(kind, dict):
        _check(depth)
        return _struct(file, kind, depth)
    if isinstance(kind, list):
        declared, entries = _list_header(file, depth)
        if entries and declared != _declared(kind[0]):
            raise DamagedStruct(f"a list has entries of the type {declared}")
        if isinstance(kind[0], dict):
            return [_value(file, kind[0], depth + 1) for _ in range(entries)]
        for _ in range(entries):
            _pass_over(file, declared, depth + 1)
        return None
    if kind in _BITS:
        return _number(file, kind)
    return _pass_over(file, kind, depth)


def _pass_over(file: BinaryIO, declared: int, depth: int) -> None:
    """A value of any type: 1, 2 truth, which takes a byte in a list, 7 double, 9 list, 10 set, 11 map."""
    match declared:
        case 1 | 2 | 3:
            _byte(file)
        case 4 | 5 | 6:
            _unsigned(file)
        case 7:
            file.seek(8, 1)
        case 8:
            if (size := _unsigned(file)) >= 1 << 31:
                raise DamagedStruct(f"a text has {size:,} bytes")
            file.seek(size, 1)
        case 9 | 10:
            declared, entries = _list_header(file, depth)
            for _ in range(entries):
                _pass_over(file, declared, depth + 1)
        case 11:
            _check(depth)
            if entries := _entries(_unsigned(file)):
                key, value = divmod(_byte(file), 16)
                for _ in range(entries):
                    _pass_over(file, key, depth + 1)
                    _pass_over(file, value, depth + 1)
        case 12:
            _check(depth)
            _struct(file, {}, depth)
        case _:
            raise DamagedStruct(f"a value has the type {declared}")


def _list_header(file: BinaryIO, depth: int) -> tuple[int, int]:
    """Type and number of a list's entries."""
    _check(depth)
    entries, declared = divmod(_byte(file), 16)
    return declared, _entries(_unsigned(file) if entries == 15 else entries)


def _entries(number: int) -> int:
    if number > _MOST_ENTRIES:
        raise DamagedStruct(f"a list has {number:,} entries")
    return number


def _check(depth: int) -> None:
    if depth > _DEPTH:
        raise DamagedStruct("it is nested too deeply")


def _byte(file: BinaryIO) -> int:
    if not (byte := file.read(1)):
        raise DamagedStruct("the bytes end in the middle of it")
    return byte[0]


def _unsigned(file: BinaryIO) -> int:
    """A number of seven bits a byte, the lowest first; the high bit says that more follow."""
    value = 0
    for shift in range(0, 70, 7):
        byte = _byte(file)
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
    raise DamagedStruct("a number has no end")


def _number(file: BinaryIO, kind: int) -> int:
    """A signed number, of which the lowest bit is the sign."""
    value = _unsigned(file)
    if value >> _BITS[kind]:
        raise DamagedStruct(f"a number of {_BITS[kind]} bits has {value.bit_length()}")
    return value >> 1 ^ -(value & 1)
