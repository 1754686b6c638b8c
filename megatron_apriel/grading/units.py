"""Units in one spelling, and by how much one of them is another: ``cm2`` and ``m2`` measure the same thing.

MathVerse's rule takes 0.5 m for 50 cm. Units of two systems (metres and feet) are not converted, since one of the two
values would be rounded.
"""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction

_BASES: dict[str, tuple[str, int, str]] = {
    "mm": ("metre", 1, "1/1000"), "cm": ("metre", 1, "1/100"), "dm": ("metre", 1, "1/10"), "m": ("metre", 1, "1"),
    "km": ("metre", 1, "1000"), "ml": ("metre", 3, "1/1000000"), "l": ("metre", 3, "1/1000"),
    "in": ("inch", 1, "1"), "ft": ("inch", 1, "12"), "yd": ("inch", 1, "36"), "mi": ("inch", 1, "63360"),
    "mg": ("gram", 1, "1/1000"), "g": ("gram", 1, "1"), "kg": ("gram", 1, "1000"),
    "s": ("second", 1, "1"), "min": ("second", 1, "60"), "h": ("second", 1, "3600"), "day": ("second", 1, "86400"),
    "week": ("second", 1, "604800"), "month": ("month", 1, "1"), "year": ("month", 1, "12"),
    "cent": ("dollar", 1, "1/100"), "dollar": ("dollar", 1, "1"),
}  # fmt: skip
"""What a unit measures, to which power, and how many of the first unit of its kind it is."""
_SPEEDS = {"mph": "mi/h", "kph": "km/h"}


def times(first: str, second: str) -> Fraction | None:
    """How many of the second unit the first one is; None where they measure different things, or are not known."""
    ours, theirs = _measured(first), _measured(second)
    return None if ours is None or theirs is None or ours[0] != theirs[0] else ours[1] / theirs[1]


def _measured(unit: str) -> tuple[Counter[str], Fraction] | None:
    """What a unit measures, to which powers, and its size."""
    kinds: Counter[str] = Counter()
    size = Fraction(1)
    for place, part in enumerate(_SPEEDS.get(unit, unit).split("/")):
        name, power = re.fullmatch(r"(.*?)([23]?)", part).groups()  # type: ignore[union-attr]
        if name not in _BASES:
            return None
        kind, own, one = _BASES[name]
        exponent = int(power or 1) * (-1 if place else 1)
        kinds[kind] += own * exponent
        size *= Fraction(one) ** exponent
    return kinds, size
