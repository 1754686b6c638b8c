"""A prepared corpus on disk: what preparation writes once and every stage reads by document number.

A directory of plain files, each readable without this project::

    corpus.json              manifest: version, counts, file sizes, tokenizer, image rule, inputs, problems met
    tokens.bin, tokens.idx   Megatron IndexedDataset, int32, one entry per document; image tokens already expanded
    responses.bin            uint8 per token: 1 where the token is part of a response
    images.bin               encoded images (JPEG, PNG) end to end; alpha composited, orientation applied
    images.npy               one row per image: which document, where its bytes are, its pixels, grid and first token
    documents.npy            one row per document: tokens, images, first image, response tokens

The manifest is written last: a directory without it is not a corpus. Opening compares every file's size and every
table with the manifest, so that a truncated copy is refused before a run starts; contents are read through memory maps,
so that opening costs no memory and many processes of a host share one copy.

Knows nothing of sequences, mixtures or ranks.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from megatron_apriel.data.corpus.files import load_documents, load_images, map_files
from megatron_apriel.data.corpus.format import (
    DATA_FILES,
    DOCUMENT_COLUMNS,
    DOCUMENT_DTYPE,
    IMAGE_COLUMNS,
    IMAGE_DTYPE,
    MANIFEST_FILE,
    CorpusManifest,
    Counts,
    ImageRecord,
    StoredImage,
    TokenizerRecord,
    damaged,
    image_block,
)
from megatron_apriel.data.corpus.image_size import patch_grid
from megatron_apriel.data.corpus.token_index import write_index
from megatron_apriel.errors import DataError
from megatron_apriel.quantities import counted

__all__ = ["Corpus", "CorpusManifest", "CorpusWriter", "ImageRecord", "StoredImage", "TokenizerRecord", "image_block"]


def _table(numbers: array[int], dtype: np.dtype[np.void]) -> NDArray[np.void]:
    """Flat numbers as rows of ``dtype``."""
    columns = np.array(numbers, dtype=np.int64).reshape(-1, len(dtype.names or ()))
    table = np.empty(len(columns), dtype=dtype)
    for place, name in enumerate(dtype.names or ()):
        table[name] = columns[:, place]
    return table


class CorpusWriter:
    """Writes a corpus document by document into an existing empty directory.

    Use as a context manager and call :meth:`close` when all documents are in: without it no manifest is written and
    the directory is no corpus.
    """

    def __init__(self, directory: Path, manifest: CorpusManifest) -> None:
        self.directory, self.manifest = Path(directory), manifest
        self._tokens: BinaryIO = (self.directory / "tokens.bin").open("wb")
        self._responses: BinaryIO = (self.directory / "responses.bin").open("wb")
        self._images: BinaryIO = (self.directory / "images.bin").open("wb")
        # Flat 64-bit numbers, a row of the table at a time: lists of tuples would take ten times the memory.
        self._documents, self._image_rows = array("q"), array("q")
        self._image_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for file in (self._tokens, self._responses, self._images):
            file.close()

    def add(self, tokens: NDArray[np.int32], responses: NDArray[np.bool_], images: Sequence[StoredImage] = ()) -> None:
        """Append one document.

        Args:
            tokens: int32 [n], n > 0, image tokens expanded.
            responses: bool [n], whether each token is part of a response.
            images: in the order of their tokens.

        Raises DataError if the tokens are outside the vocabulary, or do not hold exactly the blocks of ``images``.
        """
        number = len(self._documents) // len(DOCUMENT_COLUMNS)
        if tokens.ndim != 1 or tokens.size == 0 or responses.shape != tokens.shape:
            raise DataError(
                f"document {number}: tokens of shape {tokens.shape} and responses of shape {responses.shape}.",
                "A document is a non-empty row of tokens with one response flag each.",
            )
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.manifest.tokenizer.vocab_size:
            raise DataError(
                f"document {number}: token {low if low < 0 else high} is outside the tokenizer's vocabulary "
                f"of {self.manifest.tokenizer.vocab_size}."
            )
        self._check_images(number, tokens, images)
        responses = responses.astype(bool)
        self._tokens.write(tokens.astype("<i4").tobytes())
        self._responses.write(responses.astype(np.uint8).tobytes())
        first_image = len(self._image_rows) // len(IMAGE_COLUMNS)
        self._documents.extend((tokens.size, len(images), first_image, int(responses.sum())))
        for image in images:
            size = self._images.write(image.data)
            self._image_rows.extend(
                (number, self._image_bytes, size, image.height, image.width, image.rows, image.columns, image.start)
            )
            self._image_bytes += size

    def _check_images(self, number: int, tokens: NDArray[np.int32], images: Sequence[StoredImage]) -> None:
        record = self.manifest.images
        if record is None:
            if images:
                raise DataError(
                    f"document {number} has images ({len(images):,}), but the manifest has no image tokens."
                )
            return
        for place, image in enumerate(images):
            where = f"document {number}, image {place} ({image.height} x {image.width} pixels)"
            grid = patch_grid(image.height, image.width, record.image_size, record.patch_size, record.rounding)
            if grid != (image.rows, image.columns):
                raise DataError(
                    f"{where}: grid {image.rows} x {image.columns} where the rule gives {grid[0]} x {grid[1]}."
                )
            block = image_block(image.rows, image.columns, record)
            if image.start < 0 or not np.array_equal(tokens[image.start : image.start + block.size], block):
                raise DataError(f"{where}: its {block.size} tokens do not stand at {image.start}.")
            if not image.data:
                raise DataError(f"{where}: no bytes.")
        starts = [image.start for image in images]
        found, expected = int((tokens == record.image_token_id).sum()), sum(im.rows * im.columns for im in images)
        if found != expected or starts != sorted(set(starts)):
            raise DataError(
                f"document {number} holds {counted(found, 'image token')}; its {counted(len(images), 'image')} would"
                f" have {expected:,}.",
                "Every image token must belong to one image, images in order.",
                f"Text must not be encoded into token {record.image_token_id}.",
            )

    def close(self, problems: dict[str, Any] | None = None) -> CorpusManifest:
        """Write the tables and, last, the manifest; returns it. Raises DataError if there is no document."""
        if not self._documents:
            raise DataError("no document was left to write.", "A corpus needs at least one.", "Check the inputs.")
        self.__exit__(None, None, None)
        documents = _table(self._documents, DOCUMENT_DTYPE)
        write_index(self.directory / "tokens.idx", documents["tokens"])
        images = _table(self._image_rows, IMAGE_DTYPE)
        np.save(self.directory / "documents.npy", documents)
        np.save(self.directory / "images.npy", images)
        manifest = self.manifest.model_copy(
            update={
                "counts": Counts(
                    documents=documents.size,
                    tokens=int(documents["tokens"].sum()),
                    response_tokens=int(documents["responses"].sum()),
                    images=images.size,
                ),
                "files": {name: (self.directory / name).stat().st_size for name in DATA_FILES},
                "problems": dict(problems or {}),
            }
        )
        partial = self.directory / f".{MANIFEST_FILE}.partial"
        partial.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        partial.replace(self.directory / MANIFEST_FILE)
        return manifest


class Corpus:
    """A prepared corpus, open for reading by document and image number; safe to read from several threads.

    Attributes:
        path: its directory.
        manifest: what ``corpus.json`` says.
        documents: DOCUMENT_DTYPE [documents].
        image_rows: IMAGE_DTYPE [images], of all documents in order.
        first_tokens: int64 [documents + 1], where each document begins among all tokens, and their number.
    """

    def __init__(
        self,
        path: Path,
        manifest: CorpusManifest,
        documents: NDArray[np.void],
        image_rows: NDArray[np.void],
        files: Mapping[str, NDArray[np.uint8]],
    ) -> None:
        """Use :meth:`open`, which checks what it passes here; ``files``: the bytes of each."""
        self.path, self.manifest, self.documents, self.image_rows = path, manifest, documents, image_rows
        self._tokens, self._responses = files["tokens.bin"].view("<i4"), files["responses.bin"]
        self._images = files["images.bin"]
        self.first_tokens = np.concatenate([[0], np.cumsum(documents["tokens"])])

    @classmethod
    def open(cls, path: str | Path) -> Corpus:
        """Open a corpus after comparing all of its files with each other.

        Raises DataError that names the file and the numbers if something is absent, truncated or inconsistent.
        """
        directory = Path(path).absolute()
        manifest = CorpusManifest.read(directory)
        files = map_files(directory, manifest)
        documents = load_documents(directory, manifest, files)
        return cls(directory, manifest, documents, load_images(directory, manifest, files, documents), files)

    def __len__(self) -> int:
        return len(self.documents)

    @cached_property
    def fingerprint(self) -> str:
        """Short hash that differs between corpora of other documents, tokens or images, wherever they lie.

        Over the tables, sizes and rules, not over terabytes of tokens: a document changed without a change of any
        length is not noticed.
        """
        # What sha256 of the tokenizer says already is left out, as in runs of versions that did not say it.
        manifest = self.manifest.model_dump_json(
            include={"tokenizer", "images", "counts", "files"}, exclude={"tokenizer": {"faulty_words"}}
        )
        digest = hashlib.sha256(manifest.encode())
        for table in (self.documents, self.image_rows):
            digest.update(np.ascontiguousarray(table).tobytes())
        return digest.hexdigest()[:32]

    def tokens(self, document: int, start: int = 0, length: int | None = None) -> NDArray[np.int32]:
        """Token ids of a document or of a piece of it, int32, read-only view.

        ``length`` may reach into the documents that follow.
        """
        return self._tokens[self._range(document, start, length)]

    def responses(self, document: int, start: int = 0, length: int | None = None) -> NDArray[np.bool_]:
        """Whether each token of the document (or piece, as of :meth:`tokens`) is part of a response, bool.

        Raises DataError for a byte that is neither 0 nor 1: what numpy makes of one taken for a bool is not defined.
        """
        span = self._range(document, start, length)
        flags = self._responses[span]
        if (most := int(flags.max(initial=0))) > 1:
            owner = int(np.searchsorted(self.first_tokens, span.start + int(flags.argmax()), side="right")) - 1
            raise damaged(
                self.path / "responses.bin", f"has {most} for a token of document {owner}, where 0 or 1 is expected."
            )
        return flags.view(np.bool_)

    def _range(self, document: int, start: int, length: int | None) -> slice:
        """Where a piece of a document stands in the files that have an entry per token."""
        first = int(self.first_tokens[document]) + start
        return slice(first, first + length if length is not None else int(self.first_tokens[document + 1]))

    def images(self, document: int) -> NDArray[np.void]:
        """The document's images, IMAGE_DTYPE [n], in the order of their tokens."""
        first, number = int(self.documents["first_image"][document]), int(self.documents["images"][document])
        return self.image_rows[first : first + number]

    def image_bytes(self, row: np.void) -> NDArray[np.uint8]:
        """Encoded bytes of the image of one row of :meth:`images`, uint8, read-only view."""
        offset, size = int(row["offset"]), int(row["size"])
        return self._images[offset : offset + size]
