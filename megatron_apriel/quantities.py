"""Values as people write them, in files and arguments: ``4M`` tokens, ``10%``, ``5GB``, ``${DATA_ROOT:-data}/text``;
and as they read them: ``1.50 GiB``, ``92.2 GFLOP``, ``1 image``.

What an environment variable brings into a path may be a secret. The path is then used as it is and spelled as the file
spells it, ``${DATA_ROOT}/text``: in the configuration written down, and in what is printed.

This file may import only ``errors`` and ``concealed``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path, PosixPath
from typing import TYPE_CHECKING, Any

from megatron_apriel.concealed import conceal
from megatron_apriel.errors import shown

if TYPE_CHECKING:
    from fractions import Fraction

LARGEST = 2**63 - 1
"""Of whole numbers: what the formats on disk and torch can hold."""

_COUNT_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30}
_BYTE_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BYTE_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_LONGEST = 64  # letters of a number
_NUMBER = re.compile(r"([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE]\+?[0-9]{1,3})?)\s*([A-Za-z]*)")
_SHARE = re.compile(r"([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]{1,3})?)\s*(%?)")
_NO_NUMBER = re.compile(r"[-+]?s?(?:nan|inf|infinity)\s*%?", re.IGNORECASE)
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^{}]*))?\}")


def _matched(pattern: re.Pattern[str], value: Any) -> re.Match[str] | None:
    """The whole of a number or of a text of a number's length; ``true`` and sections are neither."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = str(value).strip()
    return pattern.fullmatch(text) if len(text) <= _LONGEST else None


def _exactly(number: str) -> Fraction:
    from fractions import Fraction  # late: most command lines give no such number

    return Fraction(number)


def _scaled(value: Any, units: dict[str, int], example: str) -> int:
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a number; write for example {example}")
    match = _matched(_NUMBER, value)
    if match is None or match[2].upper() not in units:
        raise ValueError(f"{shown(value)} is not a number with a unit; write for example {example}")
    # Exactly, since 4.35 x 1000 is not 4350 in binary floating point.
    scaled = _exactly(match[1].replace("_", "")) * units[match[2].upper()]
    if scaled.denominator != 1:
        raise ValueError(f"{shown(value)} is not a whole number")
    if scaled > LARGEST:
        raise ValueError(f"{shown(value)} is beyond the largest whole number, {LARGEST}")
    return int(scaled)


def parse_count(value: Any) -> int:
    """``4M`` -> 4000000, ``4Mi`` -> 4194304; K, M, B, T are powers of 1000, Ki, Mi, Gi of 1024. Raises ValueError."""
    return _scaled(value, _COUNT_UNITS, "4Mi, 20B or 16384")


def parse_bytes(value: Any) -> int:
    """``5GB`` -> 5000000000; KB, MB, GB, TB are powers of a thousand, KiB, MiB, GiB of 1024. Raises ValueError."""
    return _scaled(value, _BYTE_UNITS, "5GB, 512MiB or 1000000")


def parse_fraction(value: Any) -> float:
    """``10%`` or ``0.1`` -> 0.1. Raises ValueError outside [0, 1]."""
    match = _matched(_SHARE, value)
    if match is None and _matched(_NO_NUMBER, value) is None:
        raise ValueError(f"{shown(value)} is not a fraction; write for example 10% or 0.1")
    number = _exactly(match[1]) / (100 if match[2] else 1) if match is not None else -1
    if not 0 <= number <= 1:
        raise ValueError(f"{shown(value)} is not between 0% and 100%")
    return float(number)


def size(number: float) -> str:
    """Bytes of memory as a person reads them: ``1610612736`` -> ``1.50 GiB``; something small is never ``0.0``."""
    return "1 byte" if number == 1 else _in_unit(number, ("bytes", "KiB", "MiB", "GiB", "TiB"), 1024)


def flop(number: float) -> str:
    """Floating-point operations as a person reads them: ``92.2 GFLOP``."""
    return _in_unit(number, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"), 1000)


def counted(number: float, one: str, many: str = "") -> str:
    """So many of something: ``1 image``, ``1,200 images``; ``many`` where more than one is not ``one`` with an s."""
    return f"{int(number) if number == int(number) else number:,} {one if number == 1 else many or f'{one}s'}"


def short(number: float) -> str:
    """``12345`` -> ``12.3k``."""
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= scale:
            return f"{number / scale:.3g}{unit}"
    return f"{number:.3g}"


def three_digits(number: float) -> str:
    """``0.0123``, ``1.23``, ``12.3``, ``12,345``: what is small keeps its first digits."""
    return f"{number:,.0f}" if abs(number) >= 99.95 else f"{number:.3g}"


def _in_unit(number: float, units: Sequence[str], step: int) -> str:
    """In the largest unit of which there is one."""
    scaled, last = float(number), len(units) - 1
    place = 0
    while abs(scaled) >= step and place < last:
        scaled, place = scaled / step, place + 1
    digits = 0 if place == 0 else 2 if abs(scaled) < 9.995 else 1
    return f"{scaled:,.{digits}f} {units[place]}"


class SpelledPath(PosixPath):
    """A path that a variable of the environment is part of; what is made of it (``path / name``) is a plain path.

    Attributes:
        spelled: how it is written down and printed.
    """

    def __init__(self, path: Path | str, spelled: str) -> None:
        super().__init__(path)
        self.spelled = spelled

    def with_segments(self, *segments: str | os.PathLike[str]) -> Path:  # type: ignore[override]
        return Path(*segments)

    def __reduce__(self) -> tuple[type[SpelledPath], tuple[str, str]]:
        return SpelledPath, (str(self), self.spelled)

    def __repr__(self) -> str:
        return f"Path({self.spelled!r})"


def spelled(path: Path) -> str:
    """A configuration's path as it is written down: with the names of variables, without their values."""
    return path.spelled if isinstance(path, SpelledPath) else str(path)


def parse_path(value: Any) -> Path:
    """A path with ``~``, ``${VAR}`` and ``${VAR:-default}`` replaced; relative ones are left relative.

    As in the shell, the default counts where the variable is unset or empty. A variable without a default must be set
    and not empty: a path that silently lost its first part would point somewhere else. Raises ValueError.
    """
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{shown(value)} is not a path")
    if "\0" in value:
        raise ValueError(f"{shown(value)} is not a path: it holds a zero byte")
    if "${" in _VARIABLE.sub("", value):
        raise ValueError(f"{shown(value)} has a malformed variable; write ${{NAME}} or ${{NAME:-default}}")
    given: dict[str, str] = {}
    for match in _VARIABLE.finditer(value):
        if found := os.environ.get(match[1]):
            given[match[1]] = found
        elif not match[2]:
            raise ValueError(
                f"{shown(value)} uses the environment variable {match[1]}, which is not set; export {match[1]}=..., "
                f"or write ${{{match[1]}:-default}}"
            )
    try:
        path = Path(_VARIABLE.sub(lambda match: given.get(match[1]) or match[2], value)).expanduser()
        words = Path(_VARIABLE.sub(lambda match: f"${{{match[1]}}}" if match[1] in given else match[2], value))
        words = words.expanduser()
    except RuntimeError:
        raise ValueError(f"{shown(value)}: there is no such home directory") from None
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{shown(value)} is a path of bytes that are not UTF-8, which a run's records cannot hold; give what lies"
            " there another name"
        ) from None
    if not given:
        return path
    conceal(str(path), str(words))
    for name, secret in given.items():
        conceal(secret, f"${{{name}}}")
    return SpelledPath(path, str(words))
