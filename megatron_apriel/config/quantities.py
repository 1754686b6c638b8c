"""Values as people write them in a configuration: ``4M`` tokens, ``10%``, ``5GB``, ``${DATA_ROOT:-data}/text``.

Command lines read their arguments by these too, and need nothing else of the schema: so no pydantic here.
"""

from __future__ import annotations

import os
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

_COUNT_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30}
_BYTE_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_BYTE_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_NUMBER = re.compile(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE]\+?[0-9]{1,3})?)\s*([A-Za-z]*)\s*")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^{}]*))?\}")


def _scaled(value: Any, units: dict[str, int], example: str) -> int:
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a number; write for example {example}")
    match = _NUMBER.fullmatch(str(value))
    if match is None or match[2].upper() not in units:
        raise ValueError(f"{value!r} is not a number with a unit; write for example {example}")
    # Decimal, since 4.35 x 1000 is not 4350 in binary floating point.
    scaled = Decimal(match[1].replace("_", "")) * units[match[2].upper()]
    if scaled != int(scaled):
        raise ValueError(f"{value!r} is not a whole number")
    return int(scaled)


def parse_count(value: Any) -> int:
    """``4M`` -> 4000000, ``4Mi`` -> 4194304; K, M, B, T are powers of 1000, Ki, Mi, Gi of 1024. Raises ValueError."""
    return _scaled(value, _COUNT_UNITS, "4Mi, 20B or 16384")


def parse_bytes(value: Any) -> int:
    """``5GB`` -> 5000000000; KB, MB, GB, TB are powers of a thousand, KiB, MiB, GiB of 1024. Raises ValueError."""
    return _scaled(value, _BYTE_UNITS, "5GB, 512MiB or 1000000")


def parse_fraction(value: Any) -> float:
    """``10%`` or ``0.1`` -> 0.1. Raises ValueError outside [0, 1]."""
    text = str(value).strip()
    try:
        number = float(Decimal(text[:-1]) / 100) if text.endswith("%") else float(text)
    except (ValueError, ArithmeticError):
        raise ValueError(f"{value!r} is not a fraction; write for example 10% or 0.1") from None
    if not 0 <= number <= 1:
        raise ValueError(f"{value!r} is not between 0% and 100%")
    return number


def parse_path(value: Any) -> Path:
    """A path with ``~``, ``${VAR}`` and ``${VAR:-default}`` replaced; relative ones are left relative.

    As in the shell, the default counts where the variable is unset or empty. A variable without a default must be set
    and not empty: a path that silently lost its first part would point somewhere else. Raises ValueError.
    """
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is not a path")

    def replacement(match: re.Match[str]) -> str:
        found = os.environ.get(match[1]) or match[2]
        if not found:
            raise ValueError(
                f"{value!r} uses the environment variable {match[1]}, which is not set; export {match[1]}=..., "
                f"or write ${{{match[1]}:-default}}"
            )
        return found

    remainder = _VARIABLE.sub("", value)
    if "${" in remainder:
        raise ValueError(f"{value!r} has a malformed variable; write ${{NAME}} or ${{NAME:-default}}")
    try:
        return Path(_VARIABLE.sub(replacement, value)).expanduser()
    except RuntimeError:
        raise ValueError(f"{value!r}: there is no such home directory") from None
