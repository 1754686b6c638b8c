"""Numbers as people write them in a configuration: ``4M`` tokens, ``10%``, ``5GB``, ``equispaced 6``."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

_COUNT_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30}
_BYTE_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_NUMBER = re.compile(r"^\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*$")


def _scaled(value: Any, units: dict[str, int], example: str) -> int:
    if isinstance(value, bool):
        raise ValueError(f"{value!r} is not a number; write for example {example}")
    if isinstance(value, int):
        return value
    match = _NUMBER.match(str(value))
    if match is None or match[2].upper() not in units:
        raise ValueError(f"{value!r} is not a number with a unit; write for example {example}")
    scaled = float(match[1].replace("_", "")) * units[match[2].upper()]
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
        number = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise ValueError(f"{value!r} is not a fraction; write for example 10% or 0.1") from None
    if not 0 <= number <= 1:
        raise ValueError(f"{value!r} is not between 0% and 100%")
    return number


Count = Annotated[int, BeforeValidator(parse_count)]
ByteCount = Annotated[int, BeforeValidator(parse_bytes)]
Fraction = Annotated[float, BeforeValidator(parse_fraction)]
