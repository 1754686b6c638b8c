"""Where values stand in an array, compared with looking through all of it."""

import numpy as np
import pytest

from megatron_apriel.data.visual_tasks.partition import Partition


@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("length", [0, 1, 500])
def test_positions_are_those_of_the_whole_array(dtype, length):
    generator = np.random.default_rng(length)
    array = generator.integers(-5, 20, length).astype(dtype)
    among = np.nonzero(generator.integers(0, 2, length))[0]
    whole, part = Partition.of(array), Partition.of(array, among)
    assert whole.values.tolist() == sorted(set(array.tolist()))
    assert part.values.tolist() == sorted(set(array[among].tolist()))
    for value in range(-7, 22):
        assert whole[value].tolist() == np.nonzero(array == value)[0].tolist()
        assert part[value].tolist() == [place for place in among.tolist() if array[place] == value]
