"""Ports for what has to be told one before it listens there, and that nobody else gets meanwhile.

The system deals out ports of a range of its own to whoever asks for any: one that was free a moment ago may be another
process's when it is used. These lie below that range. And each is this process's until it ends: it holds a name for it
among the abstract Unix sockets, of which the kernel gives every name to one process at a time.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

_FIRST, _LAST = 10_000, 19_999
_held: list[socket.socket] = []


def own_port(number: int = 1) -> int:
    """A port that nothing listens at; the first of so many in a row."""
    for first in _places(number):
        ports = range(first, first + number)
        if all(_reserved(port) for port in ports) and all(map(_is_free, ports)):
            return first
    raise AssertionError(f"all ports from {_FIRST} to {_LAST} are in use")


def _places(number: int) -> Iterator[int]:
    """Where to look: processes begin at different places, so that few look at the same."""
    count = (_LAST + 1 - _FIRST) // number
    begin = os.getpid() * 41 + len(_held)
    yield from (_FIRST + (begin + place) % count * number for place in range(count))


def _reserved(port: int) -> bool:
    """Whether this process has it from now on, which it had not before."""
    name = socket.socket(socket.AF_UNIX)
    try:
        name.bind(f"\0megatron_apriel-port-{port}")
    except OSError:
        name.close()
        return False
    _held.append(name)
    return True


def _is_free(port: int) -> bool:
    try:
        with socket.create_server(("", port)):
            return True
    except OSError:
        return False
