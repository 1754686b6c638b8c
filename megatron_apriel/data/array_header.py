"""The header of a ``.npy`` array, compared with what it must say before memory is taken or mapped for the array.

numpy trusts the header: a shape of a hundred bytes makes it reserve terabytes, and products of a shape can wrap. The
arrays read here have known types and lengths, so the header is asked only whether it says the same.
"""

from __future__ import annotations

from typing import IO

import numpy as np
from numpy.lib import format as npy


def read_header(stream: IO[bytes]) -> tuple[np.dtype, tuple[int, ...]]:
    """Type and shape of an array; leaves ``stream`` where its values begin.

    Raises ValueError, whatever is wrong: no header at all, or another version than numpy writes for simple types.
    """
    version = npy.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"its format is version {version[0]}.{version[1]}, and 1.0 is read")
    try:
        shape, _, dtype = npy.read_array_header_1_0(stream)
    except Exception as error:  # numpy evaluates the header as Python's literals, which fail in many ways
        raise ValueError(f"its header cannot be read: {error}") from None
    return dtype, shape
