"""Images shared out over ranks: each once, balanced, the same on every rank."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from megatron_apriel.parallel.image_shares import share_images


@pytest.mark.parametrize("shares", [1, 2, 3, 8])
@pytest.mark.parametrize("seed", range(5))
def test_every_image_has_one_owner_and_loads_are_balanced(shares, seed):
    patches = np.random.default_rng(seed).integers(1, 4097, 30).tolist()
    result = share_images(patches, shares)
    assert len(result) == shares
    assert sorted(itertools.chain(*result)) == list(range(30))
    assert all(images == sorted(images) for images in result)
    loads = [sum(patches[image] for image in images) for images in result]
    assert max(loads) <= 4 / 3 * max(sum(patches) / shares, max(patches))


@pytest.mark.parametrize("seed", range(10))
def test_the_largest_share_is_within_a_third_of_the_best(seed):
    patches = np.random.default_rng(seed).integers(1, 100, 7).tolist()
    divisions = itertools.product(range(3), repeat=7)
    best = min(max(np.bincount(owners, weights=patches)) for owners in divisions)
    assert max(sum(patches[i] for i in images) for images in share_images(patches, 3)) <= 4 / 3 * best


def test_few_images():
    assert share_images([], 3) == [[], [], []]
    assert share_images([5], 3) == [[0], [], []]
    assert share_images([4, 4, 4, 4], 2) == [[0, 2], [1, 3]]
    assert share_images([1, 2, 9], 1) == [[0, 1, 2]]
    with pytest.raises(ValueError, match="shares=0"):
        share_images([1], 0)
