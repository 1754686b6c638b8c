"""The files of a corpus, mapped and compared with its manifest and with each other.

A corpus may come from anywhere, and its tables say where bytes and tokens are read later, without further questions. So
every number is looked at here, in an order that leaves no room for sums that wrap: first each value alone, against
what bounds it (a document's length against the 31 bits that Megatron's index has for it, an image's place against the
file), then sums and ends of values known to be small. Tables are read in blocks of rows and the first wrong one ends
it, so that neither memory nor time is spent on what a sparse file only claims to hold.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_apriel.data.array_header import read_header
from megatron_apriel.data.corpus_format import (
    DATA_FILES,
    DOCUMENT_DTYPE,
    IMAGE_DTYPE,
    MANIFEST_FILE,
    PREPARE_AGAIN,
    CorpusManifest,
    damaged,
)
from megatron_apriel.data.image_size import image_tokens, patch_grids
from megatron_apriel.data.token_index import check_index
from megatron_apriel.errors import DataError
from megatron_apriel.inputs import open_input

LONGEST_DOCUMENT = 2**31 - 1
"""Tokens; Megatron's index counts them in 32 bits with a sign."""
ROWS = 1 << 20
"""Rows of a table looked at together."""

_HEADER_BYTES = 1 << 14
"""More than the header of any table has."""

Bytes = NDArray[np.uint8]


def map_files(directory: Path, manifest: CorpusManifest) -> dict[str, Bytes]:
    """The bytes of every file, uint8, mapped and not read. Raises DataError if one has not the manifest's size."""
    if manifest.files.keys() != set(DATA_FILES):
        raise damaged(
            directory / MANIFEST_FILE,
            f"lists the files {', '.join(sorted(manifest.files)) or 'none'}; a corpus has {', '.join(DATA_FILES)}.",
        )
    return {name: _mapped(directory / name, manifest.files[name]) for name in DATA_FILES}


def _mapped(file: Path, expected: int) -> Bytes:
    try:
        with open_input(file) as stream:
            found = os.fstat(stream.fileno()).st_size
            if found == expected:
                # A file of no bytes cannot be mapped.
                return np.asarray(np.memmap(stream, np.uint8, "r")) if found else np.zeros(0, np.uint8)
    except FileNotFoundError:
        raise damaged(file, f"is missing; its manifest says {expected}.") from None
    except (OSError, ValueError, OverflowError) as error:
        raise damaged(file, f"cannot be read: {error}.") from None
    raise damaged(file, f"has {found} bytes; its manifest says {expected}.")


def load_documents(directory: Path, manifest: CorpusManifest, files: dict[str, Bytes]) -> NDArray[np.void]:
    """The table of documents, DOCUMENT_DTYPE [documents], compared with the manifest, the files and the index."""
    counts, file = manifest.counts, directory / "documents.npy"
    if counts.documents == 0:
        raise DataError(f"{directory} holds no documents.", "There is nothing to train on.", PREPARE_AGAIN)
    for name, width in (("tokens.bin", 4), ("responses.bin", 1)):
        if files[name].size != counts.tokens * width:
            raise damaged(
                directory / name,
                f"has {files[name].size} bytes; {counts.tokens} tokens take {counts.tokens * width}.",
            )
    documents = _table(file, files[file.name], DOCUMENT_DTYPE, counts.documents)
    _check_documents(file, manifest, documents)
    check_index(directory / "tokens.idx", files["tokens.idx"], documents["tokens"])
    return documents


def load_images(
    directory: Path, manifest: CorpusManifest, files: dict[str, Bytes], documents: NDArray[np.void]
) -> NDArray[np.void]:
    """The table of images, IMAGE_DTYPE [images], compared with ``documents`` and the size of ``images.bin``."""
    file = directory / "images.npy"
    images = _table(file, files[file.name], IMAGE_DTYPE, manifest.counts.images)
    if images.size and manifest.images is None:
        raise damaged(directory / MANIFEST_FILE, f"counts {images.size} images but does not say their tokens.")
    for first in range(0, images.size, ROWS):
        _check_images(file, manifest, documents, images, first, files["images.bin"].size)
    return images


def _table(file: Path, content: Bytes, dtype: np.dtype[np.void], rows: int) -> NDArray[np.void]:
    stream = io.BytesIO(content[:_HEADER_BYTES].tobytes())
    try:
        found, shape = read_header(stream)
    except ValueError as error:
        raise damaged(file, f"cannot be read: {error}.") from None
    if (found, shape) != (dtype, (rows,)):
        raise damaged(file, f"holds {shape} of {found}; its manifest says {rows} of {dtype}.")
    values = content[stream.tell() :]
    if values.size != rows * dtype.itemsize:
        raise damaged(file, f"has {values.size} bytes of values; {rows} rows take {rows * dtype.itemsize}.")
    return values.view(dtype)


def _blocks(table: NDArray[np.void]) -> Iterator[tuple[int, NDArray[np.void]]]:
    for first in range(0, table.size, ROWS):
        yield first, table[first : first + ROWS]


def _check_rows(file: Path, rows: NDArray[np.void], first: int, wrong: NDArray[np.bool_], what: str) -> None:
    if wrong.any():
        number = int(np.argmax(wrong))
        values = dict(zip(rows.dtype.names or (), rows[number].tolist(), strict=True))
        raise damaged(file, f"has a row {first + number} that {what}: {values}.")


def _check_documents(file: Path, manifest: CorpusManifest, documents: NDArray[np.void]) -> None:
    sums = {"tokens": 0, "images": 0, "responses": 0}
    for first, rows in _blocks(documents):
        tokens, images, responses = rows["tokens"], rows["images"], rows["responses"]
        wrong = (tokens < 1) | (tokens > LONGEST_DOCUMENT)
        wrong |= (images < 0) | (images > tokens) | (responses < 0) | (responses > tokens)
        _check_rows(file, rows, first, wrong, "is impossible")
        wrong = rows["first_image"] != sums["images"] + np.cumsum(images) - images
        _check_rows(file, rows, first, wrong, "does not number the images in order")
        for column in sums:
            sums[column] += int(rows[column].sum())
    counts = manifest.counts
    for column, expected in (
        ("tokens", counts.tokens),
        ("images", counts.images),
        ("responses", counts.response_tokens),
    ):
        if sums[column] != expected:
            raise damaged(file, f"sums to {sums[column]} {column}; its manifest says {expected}.")


def _check_images(
    file: Path,
    manifest: CorpusManifest,
    documents: NDArray[np.void],
    images: NDArray[np.void],
    first: int,
    stored: int,
) -> None:
    """Check a block of the table of images; ``stored``: bytes of images.bin."""
    record = manifest.images
    assert record is not None
    rows = images[first : first + ROWS]
    owners, sizes, starts = rows["document"], rows["size"], rows["start"]
    _check_rows(file, rows, first, (owners < 0) | (owners >= documents.size), "belongs to no document")
    before = np.arange(first, first + rows.size) - documents["first_image"][owners]
    wrong = (before < 0) | (before >= documents["images"][owners])
    _check_rows(file, rows, first, wrong, "disagrees with documents.npy about which document it belongs to")
    wrong = (sizes < 1) | (sizes > stored) | (rows["offset"] < 0)
    wrong |= rows["offset"] > stored - np.clip(sizes, 0, stored)
    _check_rows(file, rows, first, wrong, f"lies outside the {stored} bytes of images.bin")
    wrong = (rows["height"] < 1) | (rows["width"] < 1) | (rows["rows"] < 1) | (rows["columns"] < 1)
    _check_rows(file, rows, first, wrong, "has no pixels or no patches")
    grid = patch_grids(rows["height"], rows["width"], record.image_size, record.patch_size, record.rounding)
    wrong = (rows["rows"] != grid[0]) | (rows["columns"] != grid[1])
    _check_rows(file, rows, first, wrong, "has another grid than the rule gives")
    lengths = documents["tokens"][owners]
    _check_rows(file, rows, first, (starts < 0) | (starts >= lengths), "begins outside its document")
    ends = starts + image_tokens(*grid)
    _check_rows(file, rows, first, ends > lengths, "ends outside its document")
    following = images[first + 1 : first + 1 + rows.size]
    same = slice(following.size)
    wrong = (owners[same] == following["document"]) & (ends[same] > following["start"])
    _check_rows(file, rows, first, wrong, "overlaps the next image")
