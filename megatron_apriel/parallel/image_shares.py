"""Who runs which image: whole images shared out over the tensor- and context-parallel ranks, balanced by patches.

Those ranks hold the same sequence and the same tower. If each ran every image, the tower's work would be done
tensor x context times over; instead each rank runs its share, and the features are gathered. Pure arithmetic: every
rank computes the same answer from the sequence alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def share_images(patches_per_image: Sequence[int], shares: int) -> list[list[int]]:
    """Image numbers of each share, ascending within a share.

    The largest image goes first, each to the share with the fewest patches so far (the lowest number among equals):
    the largest share has at most 4/3 of the patches of the best possible division (Graham, 1969).

    Args:
        patches_per_image: patches of each image of a sequence.
        shares: number of ranks, at least 1.
    """
    if shares < 1:
        raise ValueError(f"shares={shares} must be at least 1")
    result: list[list[int]] = [[] for _ in range(shares)]
    loads = [(0, share) for share in range(shares)]
    # sorted() is stable, so images of equal size keep their order.
    for image in sorted(range(len(patches_per_image)), key=lambda number: -patches_per_image[number]):
        load, share = heapq.heappop(loads)
        result[share].append(image)
        heapq.heappush(loads, (load + patches_per_image[image], share))
    return [sorted(images) for images in result]
