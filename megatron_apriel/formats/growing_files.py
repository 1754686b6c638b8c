"""Files that grow by a line at a time, written by one process and read by others meanwhile.

A process that is killed leaves at most one line cut off at the end. Readers take whole lines only; whoever writes on
takes the rest of a line away first, or the next line would be lost with it.
"""

from __future__ import annotations

import os
from pathlib import Path

from megatron_apriel.inputs import read_input

_BLOCK = 65536


def whole_lines(path: Path) -> list[bytes]:
    """All lines that are whole, without their ends; none where there is no file. Raises OSError."""
    try:
        text = read_input(path)
    except FileNotFoundError:
        return []
    return text.split(b"\n")[:-1]


def cut_torn_line(path: Path) -> None:
    """Take away what stands behind the last end of a line."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        place = end
        while place > 0:
            start = max(place - _BLOCK, 0)
            file.seek(start)
            found = file.read(place - start).rfind(b"\n")
            if found >= 0:
                place = start + found + 1
                break
            place = start
        if place < end:
            file.truncate(place)


def in_ranges(numbers: list[int]) -> str:
    """Ascending numbers of lines as a person reads them: ``2, 5-7``."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)
