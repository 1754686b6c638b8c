"""Megatron's index beside ``tokens.bin``, so that its own data sets read a corpus as well.

Written and compared here, so that preparing and reading a corpus needs neither Megatron nor torch, and because
Megatron's own checks are asserts that name nothing.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_apriel.data.corpus_format import damaged

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, documents
_INT32_CODE = 4
BLOCK = 1 << 20
"""Documents compared together."""


def write_index(file: Path, lengths: NDArray[np.int64]) -> None:
    """Write the index of documents of these lengths, in tokens."""
    with file.open("wb") as stream:
        stream.write(_header(lengths.size))
        for column in _columns(lengths):
            stream.write(column.tobytes())


def check_index(file: Path, content: NDArray[np.uint8], lengths: NDArray[np.int64]) -> None:
    """Compare the bytes of an index with the documents' lengths. Raises DataError naming ``file``.

    ``lengths``: each below 2^31, and their bytes below 2^63 in all.
    """
    number = lengths.size
    if content.size < _HEADER.size:
        raise damaged(file, f"has {content.size} bytes, less than its header of {_HEADER.size}.")
    header = content[: _HEADER.size].tobytes()
    if header != _header(number):
        found, expected = _HEADER.unpack(header), _HEADER.unpack(_header(number))
        raise damaged(file, f"begins with {found}, where {expected} is expected.")
    sizes = [4 * number, 8 * number, 8 * (number + 1)]
    if content.size != (expected_size := _HEADER.size + sum(sizes)):
        raise damaged(file, f"has {content.size} bytes; the index of {number} documents takes {expected_size}.")
    parts = np.split(content[_HEADER.size :], np.cumsum(sizes)[:2])
    token = 0
    for first in range(0, number, BLOCK):
        block = lengths[first : first + BLOCK]
        for part, true in zip(parts, _columns(block, token, first), strict=True):
            if not np.array_equal(part.view(true.dtype)[first : first + true.size], true):
                raise damaged(file, f"disagrees with documents.npy about the {number} documents' lengths.")
        token += int(block.sum())


def _header(documents: int) -> bytes:
    return _HEADER.pack(_MAGIC, 1, _INT32_CODE, documents, documents + 1)


def _columns(
    lengths: NDArray[np.int64], first_token: int = 0, first_document: int = 0
) -> tuple[NDArray[np.integer], ...]:
    """What follows the header: lengths, byte offsets, and which sequences begin a document, with one more."""
    offsets = (first_token + np.cumsum(lengths) - lengths) * 4
    starts = np.arange(first_document, first_document + lengths.size + 1, dtype="<i8")
    return lengths.astype("<i4"), offsets.astype("<i8"), starts
