"""The numbers of one AdamW update: what ``adamw.py`` works out and its GPU kernel takes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Coefficients:
    """What an update needs of its group, worked out once in double precision.

    With g the gradient times the optimizer's factor::

        mean   += mean_rate * (g - mean)
        square += square_rate * (g * g - square)
        p       = keep * p - rate * mean / (sqrt(square * square_scale) + eps)
    """

    mean_rate: float
    square_rate: float
    keep: float
    rate: float
    square_scale: float
    eps: float
    step: int
    """Count of updates of the group, this one among them; what rounding by chance draws is another at each."""
