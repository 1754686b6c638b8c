"""Random orders that never change: the same on every machine and with every version of every library.

A run can be resumed years later only if its order can be computed again. Generators of numerical libraries may change
their streams between versions, so the order comes from a fixed integer hash (SplitMix64; Steele, Lea and Flood, 2014):
numbers are sorted by their hash.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def _mixed(state: int) -> int:
    state = (state + _GAMMA) & _MASK
    state = ((state ^ (state >> 30)) * _MULTIPLIERS[0]) & _MASK
    state = ((state ^ (state >> 27)) * _MULTIPLIERS[1]) & _MASK
    return state ^ (state >> 31)


def hashed(numbers: NDArray[np.integer], *key: int) -> NDArray[np.uint64]:
    """The hash of each number, different for different numbers: what they are sorted by. Same shape."""
    seed = 0
    for part in key:
        seed = _mixed(seed ^ (part & _MASK))
    hashes = numbers.astype(np.uint64) * np.uint64(_GAMMA) + np.uint64(seed)
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        hashes = (hashes ^ (hashes >> np.uint64(shift))) * np.uint64(multiplier)
    return hashes ^ (hashes >> np.uint64(31))


def shuffled(number: int, *key: int) -> NDArray[np.int64]:
    """A permutation of ``range(number)``, int64, that depends on every integer of ``key`` and nothing else."""
    return np.argsort(hashed(np.arange(number), *key), kind="stable")
