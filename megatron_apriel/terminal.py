"""What is printed and logged: lines in which nothing steers a terminal, whoever wrote the names in them.

Tools print with :func:`say` and :func:`note` and never with ``print``, and modules log to a :func:`named_logger`. Each
line is made printable as a whole, by :func:`errors.printable <megatron_apriel.errors.printable>`, so that no caller has
to think of it. Tables and bars are of :mod:`megatron_apriel.tables` and :mod:`megatron_apriel.progress`.
"""

from __future__ import annotations

import logging
import sys
from typing import TextIO

from megatron_apriel.errors import printable


def say(*lines: object) -> None:
    """Print lines on standard output, which is for results. A line end inside of one is escaped."""
    _print(lines, sys.stdout)


def note(*lines: object) -> None:
    """Print lines on standard error, which is for remarks."""
    _print(lines, sys.stderr)


def _print(lines: tuple[object, ...], stream: TextIO) -> None:
    print("\n".join(map(printable, lines)), file=stream, flush=True)


def named_logger(name: str) -> logging.Logger:
    """The module's logger; its records are printable wherever they go."""
    named = logging.getLogger(name)
    named.addFilter(_made_printable)
    return named


def _made_printable(record: logging.LogRecord) -> bool:
    record.msg, record.args = printable(record.getMessage()), None
    return True
