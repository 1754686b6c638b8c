"""Mutations of bytes that know nothing of a format: flips, cuts, repeats, moves, numbers at the edge of a range."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from random import Random

EDGES = (0, 1, 2, 7, 8, 127, 128, 255, 256, 2**15 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1,
         2**63, 2**64 - 1)  # fmt: skip
"""Numbers at which counters wrap and lengths stop to make sense."""


def change_bytes(random: Random, data: bytes, others: Sequence[bytes] = ()) -> tuple[bytes, str]:
    """One mutation of ``data``, and what it was; ``others`` are of the same kind and lend parts of themselves."""
    if not data:
        return random.randbytes(random.randint(1, 16)), "fill what was empty"
    if others and random.random() < 0.1:
        return _splice(random, data, random.choice(others))
    kinds = (_flip, _flip, _byte, _number, _number, _cut, _remove, _repeat, _move, _insert, _zero)
    return random.choice(kinds)(random, data)


def _span(random: Random, data: bytes, most: int = 64) -> tuple[int, int]:
    start = random.randrange(len(data))
    length = random.randint(1, most) if random.random() < 0.8 else random.randint(1, len(data))
    return start, min(len(data), start + length)


def _flip(random: Random, data: bytes) -> tuple[bytes, str]:
    place, bit = random.randrange(len(data)), random.randrange(8)
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :], f"flip bit {bit} of byte {place}"


def _byte(random: Random, data: bytes) -> tuple[bytes, str]:
    place, value = random.randrange(len(data)), random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
    return data[:place] + bytes([value]) + data[place + 1 :], f"set byte {place} to {value}"


def _number(random: Random, data: bytes) -> tuple[bytes, str]:
    form = random.choice(["<H", ">H", "<I", ">I", "<I", ">I", "<Q", ">Q"])
    width = struct.calcsize(form)
    place = random.randrange(max(1, len(data) - width + 1))
    value = edge(random, 8 * width)
    return data[:place] + struct.pack(form, value) + data[place + width :], f"write {value} ({form}) at {place}"


def edge(random: Random, bits: int) -> int:
    """An unsigned number of so many bits, most often at the edge of some range."""
    value = random.choice(EDGES) if random.random() < 0.8 else random.getrandbits(bits)
    return (value + random.choice((0, 0, 0, -1, 1))) % 2**bits


def _cut(random: Random, data: bytes) -> tuple[bytes, str]:
    place = random.randrange(len(data)) if random.random() < 0.5 else max(0, len(data) - random.randint(1, 32))
    return data[:place], f"cut off at {place} of {len(data)}"


def _remove(random: Random, data: bytes) -> tuple[bytes, str]:
    start, stop = _span(random, data)
    return data[:start] + data[stop:], f"remove bytes {start} to {stop}"


def _repeat(random: Random, data: bytes) -> tuple[bytes, str]:
    start, stop = _span(random, data)
    times = random.choice((1, 1, 2, 20, 1000))
    times = min(times, max(1, 2**20 // (stop - start)))
    return data[:stop] + data[start:stop] * times + data[stop:], f"repeat bytes {start} to {stop} {times} times"


def _move(random: Random, data: bytes) -> tuple[bytes, str]:
    start, stop = _span(random, data)
    rest = data[:start] + data[stop:]
    place = random.randint(0, len(rest))
    return rest[:place] + data[start:stop] + rest[place:], f"move bytes {start} to {stop} to {place}"


def _insert(random: Random, data: bytes) -> tuple[bytes, str]:
    place, new = random.randint(0, len(data)), random.randbytes(random.choice((1, 1, 2, 4, 8, 64)))
    return data[:place] + new + data[place:], f"insert {len(new)} random bytes at {place}"


def _zero(random: Random, data: bytes) -> tuple[bytes, str]:
    start, stop = _span(random, data)
    value = random.choice((0, 0, 0xFF))
    return data[:start] + bytes([value]) * (stop - start) + data[stop:], f"fill bytes {start} to {stop} with {value}"


def _splice(random: Random, data: bytes, other: bytes) -> tuple[bytes, str]:
    place = random.randint(0, len(data))
    start = random.choice((min(place, len(other)), random.randint(0, len(other))))
    return data[:place] + other[start:], f"go on with another file's byte {start} from {place}"
