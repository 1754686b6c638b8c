"""Intervals: a bootstrap over items agrees with the binomial's normal one, and clusters count as what they are."""

from __future__ import annotations

import math

import numpy as np
import pytest

from megatron_apriel.evaluate.statistics import bootstrap, paired


def test_items_alone() -> None:
    values = [1.0] * 300 + [0.0] * 700
    found = bootstrap(values, [""] * 1000)
    half = 196 * math.sqrt(0.3 * 0.7 / 1000)
    assert found.value == pytest.approx(30.0)
    assert found.high - 30 == pytest.approx(half, rel=0.1) and 30 - found.low == pytest.approx(half, rel=0.1)


def test_clusters_are_drawn_whole() -> None:
    """Fifty documents of twenty questions that are all right or all wrong say as much as fifty questions."""
    values = np.repeat([1.0, 0.0] * 25, 20)
    clusters = [f"document {number // 20}" for number in range(1000)]
    half = 196 * math.sqrt(0.25 / 50)
    found = bootstrap(values.tolist(), clusters)
    assert found.high - found.value == pytest.approx(half, rel=0.15)
    alone = bootstrap(values.tolist(), [""] * 1000)
    assert alone.high - alone.low < (found.high - found.low) / 3


def test_differences_are_of_the_same_items() -> None:
    """One item of a hundred that became better is seen, although both scores have wide intervals."""
    before = {str(number): float(number % 2) for number in range(100)}
    after = {**before, **{str(number): 1.0 for number in range(0, 60, 2)}, "new": 0.0}
    found = paired(after, before, {})
    assert found is not None and found.value == pytest.approx(30.0) and found.low > 20
    assert paired({"a": 1.0}, {"b": 1.0}, {}) is None


def test_the_same_numbers_come_again() -> None:
    values, clusters = [1.0, 0.0, 0.5], ["a", "a", ""]
    assert bootstrap(values, clusters) == bootstrap(values, clusters)
