"""What is printed and logged: lines in which nothing steers a terminal, whoever wrote the names in them.

Tools print with :func:`say` and :func:`note` and never with ``print``, and modules log to a :func:`named_logger`. Each
line is made printable as a whole, by :func:`errors.printable <megatron_apriel.errors.printable>`, so that no caller has
to think of it. Tables and bars are of :mod:`megatron_apriel.tables` and :mod:`megatron_apriel.progress`.

A run that nobody watches is read afterwards, and then it matters when a line was written: within :func:`time_stamps`
each begins with the time, where it goes to a file or a pipe.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

from megatron_apriel.errors import printable

if TYPE_CHECKING:
    import logging


class _Stamps:
    """Whether lines begin with the time: one switch for the process, since its threads print too."""

    wanted = False

    @classmethod
    def before(cls, stream: TextIO) -> str:
        """What a line on a stream begins with."""
        return time.strftime("%Y-%m-%d %H:%M:%S ") if cls.wanted and not stream.isatty() else ""


@contextlib.contextmanager
def time_stamps() -> Iterator[None]:
    """Let each line that does not go to a terminal begin with the local time, ``2026-11-29 21:04:05``."""
    before, _Stamps.wanted = _Stamps.wanted, True
    try:
        yield
    finally:
        _Stamps.wanted = before


def say(*lines: object) -> None:
    """Print lines on standard output, which is for results. A line end inside of one is escaped."""
    _print(lines, sys.stdout)


def note(*lines: object) -> None:
    """Print lines on standard error, which is for remarks."""
    _print(lines, sys.stderr)


def say_on(text: str, *, dim: bool = False, remark: bool = False) -> None:
    """Print some more of a text that comes in pieces: no line end is added, and those and tabs within it stay.

    Args:
        text: the piece.
        dim: in faint letters, where it goes to a terminal that has them.
        remark: on standard error.
    """
    stream = sys.stderr if remark else sys.stdout
    shown = "".join(part if part in ("\n", "\t") else printable(part) for part in re.split(r"([\n\t])", text))
    print(f"\x1b[2m{shown}\x1b[0m" if dim and has_styles(stream) else shown, end="", file=stream, flush=True)


def has_styles(stream: TextIO) -> bool:
    """Whether letters printed there may be faint: a terminal that can, of a person who has not asked for none."""
    return stream.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")


def _print(lines: tuple[object, ...], stream: TextIO) -> None:
    if not lines:
        return
    stamp = _Stamps.before(stream)
    print("\n".join(stamp + printable(line) for line in lines), file=stream, flush=True)


def named_logger(name: str) -> logging.Logger:
    """The module's logger; its records are printable wherever they go."""
    import logging  # late: most command lines only print

    named = logging.getLogger(name)
    named.addFilter(_made_printable)
    return named


def _made_printable(record: logging.LogRecord) -> bool:
    record.msg, record.args = _Stamps.before(sys.stderr) + printable(record.getMessage()), None
    return True


def quiet_libraries() -> None:
    """Keep remarks of libraries that are imported later off the terminal, where they are not for who runs a command.

    They speak of fallbacks that this program chose itself and says, and of what Megatron calls in torch.
    """
    import logging

    for module in (r"megatron\.core", r"torch\.distributed"):
        warnings.filterwarnings("ignore", module=module)
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
    for name in ("torch.utils.cpp_extension", "megatron.core.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
