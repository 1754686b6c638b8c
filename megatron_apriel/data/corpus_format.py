"""What the files of a prepared corpus contain: manifest, tables, image blocks.

How they are written and read: :mod:`megatron_apriel.data.corpus`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from megatron_apriel.data.image_size import Rounding
from megatron_apriel.errors import DataError
from megatron_apriel.inputs import read_input

FORMAT_VERSION = 1

MANIFEST_FILE = "corpus.json"
DATA_FILES = ("tokens.bin", "tokens.idx", "responses.bin", "images.bin", "images.npy", "documents.npy")

DOCUMENT_COLUMNS = ("tokens", "images", "first_image", "responses")
DOCUMENT_DTYPE = np.dtype([(column, "<i8") for column in DOCUMENT_COLUMNS])

IMAGE_COLUMNS = ("document", "offset", "size", "height", "width", "rows", "columns", "start")
_NARROW = ("height", "width", "rows", "columns")
IMAGE_DTYPE = np.dtype([(column, "<i4" if column in _NARROW else "<i8") for column in IMAGE_COLUMNS])

PREPARE_AGAIN = "Copy the whole directory again, or prepare it again with tools/prepare_data.py."


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TokenizerRecord(_Record):
    """Which tokenizer made the tokens; corpora of one mixture must agree in ``sha256``."""

    sha256: str
    vocab_size: int = Field(ge=1)
    bos_id: int = Field(ge=0)
    eos_id: int = Field(ge=0)
    pad_id: int = Field(ge=0)
    """Fills the end of a sequence; any valid id serves where a tokenizer has none, as it never carries loss."""


class ImageRecord(_Record):
    """How images became tokens."""

    image_token_id: int = Field(ge=0)
    break_token_id: int = Field(ge=0)
    end_token_id: int = Field(ge=0)
    patch_size: int = Field(ge=1)
    image_size: int = Field(ge=1)
    rounding: Rounding = "floor"

    @property
    def token_ids(self) -> tuple[int, int, int]:
        """The three tokens of an image block; none of them ever carries loss."""
        return self.image_token_id, self.break_token_id, self.end_token_id


class Counts(_Record):
    """Totals of a corpus."""

    documents: int = Field(default=0, ge=0)
    tokens: int = Field(default=0, ge=0)
    response_tokens: int = Field(default=0, ge=0)
    images: int = Field(default=0, ge=0)


class CorpusManifest(_Record):
    """``corpus.json``. The writer fills in ``counts``, ``files`` (bytes of each) and ``problems`` when it closes."""

    tokenizer: TokenizerRecord
    images: ImageRecord | None = None
    """None where the corpus was prepared for a model without images."""
    inputs: list[dict[str, Any]] = []
    problems: dict[str, Any] = {}
    counts: Counts = Counts()
    files: dict[str, int] = {}
    version: int = FORMAT_VERSION

    @classmethod
    def read(cls, directory: Path) -> CorpusManifest:
        """From ``corpus.json``. Raises DataError if it is absent, damaged or of another version."""
        file = directory / MANIFEST_FILE
        try:
            text = read_input(file).decode("utf-8")
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(
                f"{directory} is not a prepared corpus: it has no {MANIFEST_FILE}.",
                "The manifest is written last, so the directory is something else, or its preparation did not finish.",
                "Give a directory that tools/prepare_data.py wrote.",
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file} cannot be read: {error}.", fix=PREPARE_AGAIN) from None
        try:
            manifest = cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            raise DataError(f"{file} is damaged: {place}: {first['msg']}.", fix=PREPARE_AGAIN) from None
        if manifest.version != FORMAT_VERSION:
            raise DataError(
                f"{file} has format version {manifest.version}; this program reads version {FORMAT_VERSION}.",
                fix="Prepare the corpus again with this version's tools/prepare_data.py.",
            )
        return manifest


@dataclass(frozen=True)
class StoredImage:
    """One image of a document, ready to store.

    Attributes:
        data: encoded bytes, JPEG or PNG.
        height, width: pixels of the encoded image.
        rows, columns: its patch grid by :func:`~megatron_apriel.data.image_size.patch_grid`.
        start: index of its first ``[IMG]`` token in the document.
    """

    data: bytes
    height: int
    width: int
    rows: int
    columns: int
    start: int


def image_block(rows: int, columns: int, record: ImageRecord) -> NDArray[np.int32]:
    """Tokens of one image, int32 [rows * (columns + 1)]: rows of image tokens closed by breaks, the last by the end."""
    block = np.full((rows, columns + 1), record.image_token_id, dtype=np.int32)
    block[:, -1] = record.break_token_id
    block[-1, -1] = record.end_token_id
    return block.reshape(-1)
