"""Tables for a person, in which names are shown letter by letter, and which are as wide as there is room.

rich reads square brackets as styles and ``:name:`` as a picture, and prints control characters as they are. In a table
of this kind every heading, title and cell is plain text, made printable.

rich makes a table that is too wide fit by breaking its headings and numbers anywhere. Here lines break between words,
and long words, such as paths, behind their ``/``, ``_``, ``-`` and ``.``. Where that is not enough, the columns that
have no room follow in a part of their own below, with the first ones, which say what a row is about, repeated. A table
in which none does stays in one piece.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import rich.console
import rich.table
from rich.cells import cell_len
from rich.console import RenderableType
from rich.text import Text

from megatron_apriel.errors import printable

_LONGEST_WORD = 24
"""Letters of a word, such as a path, behind which it may be broken."""
_PARTS = re.compile(r"[^/]*/+|[^/]+"), re.compile(r"[^_.-]*[_.-]+|[^_.-]+")
"""Of a word, each with the separators behind it: names of a path, and where one is too long, its words."""


class Table(rich.table.Table):
    """rich's table of plain text; a cell of several lines is given as a list of them.

    Args:
        headings: of the first columns.
        title: above it.
        about: how many columns at the left say what a row is about.
        options: of rich's.
    """

    def __init__(self, *headings: str, title: str | None = None, about: int = 1, **options: Any) -> None:
        super().__init__(title=None if title is None else plain(title, "bold"), title_justify="left", **options)
        self.about = about
        for heading in headings:
            self.add_column(heading)

    def add_column(self, header: str = "", **options: Any) -> None:  # type: ignore[override]
        # A column too narrow breaks what it holds; cut, a number would be read as another one.
        super().add_column(plain(header), **{"overflow": "fold"} | options)

    def add_row(self, *cells: str | list[str], **options: Any) -> None:  # type: ignore[override]
        super().add_row(*map(plain, cells), **options)

    def __rich_console__(
        self, console: rich.console.Console, options: rich.console.ConsoleOptions
    ) -> rich.console.RenderResult:
        parts = list(_parts(self.columns, self.about, options.max_width))
        if len(parts) > 1:  # a title would be broken at the width of the first of them
            yield from [self.title] if self.title is not None else []
        columns, title, caption = self.columns, self.title, self.caption
        try:
            for number, part in enumerate(parts, 1):
                self.columns = part
                self.title = title if len(parts) == 1 else None
                self.caption = caption if number == len(parts) else None
                yield from super().__rich_console__(console, options)
        finally:
            self.columns, self.title, self.caption = columns, title, caption


def _parts(columns: Sequence[rich.table.Column], about: int, room: int) -> Iterator[list[rich.table.Column]]:
    """The columns of each part of a table, with their widths where rich's own would break words."""
    wide = [max(map(cell_len, _lines(column)), default=0) for column in columns]
    if _width(wide) <= room or not about:
        yield list(columns)
        return
    least = [_least(column) for column in columns]
    for part in _even(least, about, room):
        widths = _shared([least[place] for place in part], [wide[place] for place in part], room)
        yield [_narrowed(columns[place], width) for place, width in zip(part, widths, strict=True)]


def _narrowed(column: rich.table.Column, width: int) -> rich.table.Column:
    """A column of a width, in whose cells words that are longer have line ends behind their separators."""
    cells: list[RenderableType] = [Text(_broken(str(cell), width)) for cell in column.cells]
    return replace(column, width=width, _cells=cells)


def _broken(text: str, width: int) -> str:
    """``text`` with line ends in its words of more than ``width`` letters, where they have separators."""
    return re.sub(r"\S+", lambda word: "\n".join(_pieces(word[0], width)), text)


def _pieces(word: str, width: int, parts: Sequence[re.Pattern[str]] = _PARTS) -> list[str]:
    """Few pieces of a word that have room, each ending behind a separator; what has none in it may have no room."""
    pieces: list[str] = []
    for part in parts[0].findall(word) if parts else [word]:
        if pieces and cell_len(pieces[-1] + part) <= width:
            pieces[-1] += part
        else:
            pieces += _pieces(part, width, parts[1:]) if parts and cell_len(part) > width else [part]
    return pieces


def _even(least: Sequence[int], about: int, room: int) -> list[list[int]]:
    """The places of the columns of as few parts as possible, none of them much wider than the others."""
    found = _filled(least, about, room)
    while len(narrower := _filled(least, about, room - 1)) == len(found) and max(map(len, narrower)) > about + 1:
        found, room = narrower, room - 1
    return found


def _filled(least: Sequence[int], about: int, room: int) -> list[list[int]]:
    """The places of the columns of each part: those that say what a row is about, and as many others as have room."""
    first = list(range(min(about, len(least))))
    parts = [first]
    for place in range(len(first), len(least)):
        if len(parts[-1]) > about and _width([least[one] for one in [*parts[-1], place]]) > room:
            parts.append(first)
        parts[-1] = [*parts[-1], place]
    return parts


def _lines(column: rich.table.Column) -> Iterator[str]:
    for cell in (column.header, *column.cells):
        yield from str(cell).split("\n")


def _least(column: rich.table.Column) -> int:
    """Letters that a column needs so that headings break between words only, and numbers not at all."""
    heading = max(map(cell_len, str(column.header).split()), default=0)
    if column.justify == "right":
        return max(heading, *(cell_len(str(cell)) for cell in column.cells), 1)
    words = (word for cell in column.cells for word in str(cell).split())
    return max(heading, min(max(map(cell_len, words), default=0), _LONGEST_WORD), 1)


def _width(letters: Sequence[int]) -> int:
    """Of a table with columns of so many letters: two spaces in each, and lines around them."""
    return sum(letters) + 3 * len(letters) + 1


def _shared(least: Sequence[int], wide: Sequence[int], room: int) -> list[int]:
    """The widths of a part's columns: what is left of the room goes to those that lack most; at least one each."""
    widths = list(least)
    while (over := _width(widths) - room) > 0 and max(widths) > 1:
        widths[widths.index(max(widths))] -= 1
    while over < 0 and any(width < most for width, most in zip(widths, wide, strict=True)):
        lacks = [most - width for width, most in zip(widths, wide, strict=True)]
        widths[lacks.index(max(lacks))] += 1
        over += 1
    return widths


def figures(*headings: str, words: Collection[int] = (0,), title: str | None = None, about: int | None = None) -> Table:
    """A table of numbers, which are aligned right, but for the columns at the places ``words``.

    Those of them at the left say what a row is about, or so many columns as ``about`` says.
    """
    leading = next(place for place in range(len(headings) + 1) if place not in words)
    table = Table(title=title, about=leading if about is None else about)
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place in words else "right")
    return table


def lines_of(table: Table, width: int) -> list[str]:
    """A table as lines of text, for :func:`~megatron_apriel.terminal.say`."""
    text = io.StringIO()
    rich.console.Console(file=text, width=width, markup=False, emoji=False, highlight=False).print(table)
    return [line.rstrip() for line in text.getvalue().rstrip("\n").split("\n")]


def plain(text: str | list[str], style: str = "") -> Text:
    """Text of one or several lines for a console to print, letter by letter."""
    return Text("\n".join(map(printable, [text] if isinstance(text, str) else text)), style)


def standard_output(width: int | None = None) -> rich.console.Console:
    """Standard output, as wide as the terminal or as ``COLUMNS`` says; else a file or a pipe gets ``width``."""
    given = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal()
    return rich.console.Console(markup=False, emoji=False, highlight=False, width=None if given else width)
