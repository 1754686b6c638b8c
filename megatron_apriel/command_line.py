"""Command lines: the parser that every tool has, and the kinds of arguments that they take.

A kind is a function from text, for ``type=`` of an argument. What it refuses, argparse says with the argument's name.
"""

from __future__ import annotations

import argparse
import difflib
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from megatron_apriel.errors import ConfigError, printable
from megatron_apriel.quantities import parse_bytes, parse_count, parse_fraction


class CommandLine(argparse.ArgumentParser):
    """A parser of arguments whose complaint about one quotes it printably; texts keep their line ends.

    Below a complaint stands which option may have been meant by each that there is not.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self._given: list[str] = []

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As of argparse; what was given is kept for :meth:`error`."""
        self._given = [str(word) for word in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        meant = {word: near for word in self._given if (near := self.nearest_option(word)) is not None}
        lines = [f"{word.partition('=')[0]}: did you mean {near}?" for word, near in meant.items()]
        super().error("\n  ".join(map(printable, [message, *lines])))

    def nearest_option(self, word: str) -> str | None:
        """The option that ``word`` most resembles; None if it is one, shortened or not, or resembles none."""
        name = word.partition("=")[0]
        options = [option for option in self._option_string_actions if option.startswith("--")]
        if not name.startswith("--") or any(option.startswith(name) for option in options):
            return None
        return next(iter(difflib.get_close_matches(name.lower().replace("_", "-"), options, n=1, cutoff=0.7)), None)


def above_zero(text: str) -> int:
    """A whole number above 0 in digits, as of processes or GPUs."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def zero_or_more(text: str) -> int:
    """A whole number in digits that may be 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 0 or above")
    return int(text)


def count_above_zero(text: str) -> int:
    """A whole number above 0, as 500 or 10K."""
    return _above_zero(parse_count, text)


def bytes_above_zero(text: str) -> int:
    """Bytes, more than 0, as 1000000 or 5GB."""
    return _above_zero(parse_bytes, text)


def fraction(text: str) -> float:
    """A part of a whole, as 10% or 0.1."""
    return _parsed(parse_fraction, text)


def not_negative(text: str) -> float:
    """A number that is 0 or above."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, 0 or above")
    return value


def word_list(text: str) -> tuple[str, ...]:
    """Words with commas between."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def number_list(text: str) -> tuple[float, ...]:
    """Numbers with commas between, as 1,2,1."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers, such as 1,2,1") from None


def chosen(text: str, valid: Sequence[str], option: str) -> list[str]:
    """The words of a list, at least one, each of which must be valid. Raises ConfigError."""
    if not (words := word_list(text)):
        raise ConfigError(f"{option} names nothing.", fix=f"Valid: {', '.join(valid)}.")
    for word in words:
        if word not in valid:
            raise ConfigError(f"{option}: there is no {word!r}.", fix=f"Valid: {', '.join(valid)}.")
    return list(words)


def _parsed[Value](parse: Callable[[str], Value], text: str) -> Value:
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _above_zero(parse: Callable[[str], int], text: str) -> int:
    number = _parsed(parse, text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number
