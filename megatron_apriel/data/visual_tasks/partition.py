"""Where each value stands in a large array, found once and for all values.

A sample asks for the boxes of one category, or the groups of one size. Looking through all of them for each sample
takes longer than the sample itself where there are fifteen million, as in Open Images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Partition:
    """Positions in an array by the value that stands there.

    Attributes:
        values: what stands there, rising.
        order: positions, by value and then rising.
        starts: [values + 1], where the positions of each value begin in ``order``.
    """

    values: npt.NDArray[np.int64]
    order: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, array: npt.NDArray[np.integer], among: npt.NDArray[np.int64] | None = None) -> Partition:
        """Of a whole array, or of the positions ``among`` only, which rise."""
        keys = array if among is None else array[among]
        order = np.argsort(keys, kind="stable")
        values, starts = np.unique(keys[order], return_index=True)
        return cls(
            values.astype(np.int64),
            order if among is None else among[order],
            np.append(starts, len(order)).astype(np.int64),
        )

    def __getitem__(self, value: int) -> npt.NDArray[np.int64]:
        """Positions of a value, rising; none where it does not stand anywhere."""
        place = int(np.searchsorted(self.values, value))
        if place == len(self.values) or self.values[place] != value:
            return self.order[:0]
        return self.order[self.starts[place] : self.starts[place + 1]]
