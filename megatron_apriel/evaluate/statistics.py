"""Scores with their intervals: a bootstrap over items, and over whole clusters where items share a document.

A score is the share of right ones among all that were asked; over several runs it is the mean of each item's share.
What failed, was cut off or could not be read counts as wrong, in the denominator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
_LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A figure with the 95% interval of its bootstrap, in percent."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def bootstrap(values: Sequence[float], clusters: Sequence[str]) -> Interval:
    """The mean of values from 0 to 1, or of their differences, in percent.

    Args:
        values: one an item.
        clusters: of each item; items of one are drawn together, an empty name stands for an item alone.
    """
    numbers = {name: number for number, name in enumerate(dict.fromkeys(filter(None, clusters)))}
    alone = len(numbers)
    places = []
    for name in clusters:
        places.append(numbers[name] if name else alone)
        alone += not name
    sums = np.bincount(places, weights=np.asarray(values, dtype=np.float64), minlength=alone)
    counts = np.bincount(places, minlength=alone)
    random = np.random.default_rng(0)
    means = np.empty(RESAMPLES)
    for number in range(RESAMPLES):
        drawn = random.integers(alone, size=alone)
        means[number] = sums[drawn].sum() / counts[drawn].sum()
    low, high = np.quantile(means, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(*(100 * float(value) for value in (np.mean(values), low, high)))


def paired(ours: Mapping[str, float], theirs: Mapping[str, float], clusters: Mapping[str, str]) -> Interval | None:
    """The mean difference over the items that both have; None where there are none."""
    both = [key for key in ours if key in theirs]
    if not both:
        return None
    return bootstrap([ours[key] - theirs[key] for key in both], [clusters.get(key, "") for key in both])
