"""Tables for a person, in which names are shown letter by letter.

rich reads square brackets as styles and ``:name:`` as a picture, and prints control characters as they are. In a table
of this kind every heading, title and cell is plain text, made printable.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Collection
from typing import Any

import rich.console
import rich.table
from rich.text import Text

from megatron_apriel.errors import printable


class Table(rich.table.Table):
    """rich's table of plain text; a cell of several lines is given as a list of them."""

    def __init__(self, *headings: str, title: str | None = None, **options: Any) -> None:
        super().__init__(title=None if title is None else plain(title, "bold"), title_justify="left", **options)
        for heading in headings:
            self.add_column(heading)

    def add_column(self, header: str = "", **options: Any) -> None:  # type: ignore[override]
        # A column too narrow breaks what it holds; cut, a number would be read as another one.
        super().add_column(plain(header), **{"overflow": "fold"} | options)

    def add_row(self, *cells: str | list[str], **options: Any) -> None:  # type: ignore[override]
        super().add_row(*map(plain, cells), **options)


def figures(*headings: str, words: Collection[int] = (0,), title: str | None = None) -> Table:
    """A table of numbers, which are aligned right, but for the columns at the places ``words``."""
    table = Table(title=title)
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
    """Standard output, as wide as the terminal; a file or a pipe has no width of its own and gets ``width``."""
    return rich.console.Console(
        markup=False, emoji=False, highlight=False, width=None if sys.stdout.isatty() else width
    )
