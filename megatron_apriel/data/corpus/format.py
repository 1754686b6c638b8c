"""What the files of a prepared corpus contain: manifest, tables, image blocks.

How they are written and read: :mod:`megatron_apriel.data.corpus.on_disk`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from megatron_apriel.data.corpus.image_size import Rounding
from megatron_apriel.errors import DataError
from megatron_apriel.inputs import read_input, what_was_meant

FORMAT_VERSION = 1

MANIFEST_FILE = "corpus.json"
DATA_FILES = ("tokens.bin", "tokens.idx", "responses.bin", "images.bin", "images.npy", "documents.npy")

DOCUMENT_COLUMNS = ("tokens", "images", "first_image", "responses")
DOCUMENT_DTYPE = np.dtype([(column, "<i8") for column in DOCUMENT_COLUMNS])

IMAGE_COLUMNS = ("document", "offset", "size", "height", "width", "rows", "columns", "start")
_NARROW = ("height", "width", "rows", "columns")
IMAGE_DTYPE = np.dtype([(column, "<i4" if column in _NARROW else "<i8") for column in IMAGE_COLUMNS])

PREPARE_AGAIN = "Copy the whole directory again, or prepare it again with tools/prepare_data.py."


MOST_TOKENS = MOST_PIXELS = 2**31 - 1
"""Token numbers and sides of images are 32-bit numbers with a sign."""
MOST_BYTES = 2**63 - 1
"""No file is larger, and no file has an entry for more tokens."""

Token = Annotated[int, Field(ge=0, lt=MOST_TOKENS)]
Pixels = Annotated[int, Field(ge=1, le=MOST_PIXELS)]
Count = Annotated[int, Field(ge=0, le=MOST_BYTES)]


def damaged(file: Path, found: str) -> DataError:
    """The error of a corpus's file in which something was ``found``."""
    return DataError(f"{file} {found}", "The corpus is damaged or was copied in part.", PREPARE_AGAIN)


class _Record(BaseModel):
    # Strict: a count of 3.0, "3" or true was not written by this project.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Version(BaseModel):
    """What a manifest of any version says."""

    model_config = ConfigDict(strict=True)

    version: int = FORMAT_VERSION


class TokenizerRecord(_Record):
    """Which tokenizer made the tokens; corpora of one mixture must agree in ``sha256``."""

    sha256: str
    vocab_size: int = Field(ge=1, le=MOST_TOKENS)
    bos_id: Token
    eos_id: Token
    pad_id: Token
    """Fills the end of a sequence; any valid id serves where a tokenizer has none, as it never carries loss."""
    faulty_words: bool = False
    """Whether it split text by a faulty word pattern, see :mod:`megatron_apriel.formats.word_pattern`."""


class ImageRecord(_Record):
    """How images became tokens."""

    image_token_id: Token
    break_token_id: Token
    end_token_id: Token
    patch_size: Pixels
    image_size: Pixels
    rounding: Rounding = "floor"

    @property
    def token_ids(self) -> tuple[int, int, int]:
        """The three tokens of an image block; none of them ever carries loss."""
        return self.image_token_id, self.break_token_id, self.end_token_id


class Counts(_Record):
    """Totals of a corpus."""

    documents: Count = 0
    tokens: Count = 0
    response_tokens: Count = 0
    images: Count = 0


class UsageRecord(_Record):
    """What was used of the records: see :class:`~megatron_apriel.data.raw.fields.usage.Usage`."""

    unused_fields: dict[str, Count] = {}
    reasoning: Count = 0
    hidden_reasoning: Count = 0
    unrecognised_reasoning: Count = 0
    marked: Count = 0
    passed_over: list[str] = []
    """Files of directories that were not read; the first of them."""


class CorpusManifest(_Record):
    """``corpus.json``. The writer fills in ``counts``, ``files`` (bytes of each) and ``problems`` when it closes."""

    tokenizer: TokenizerRecord
    images: ImageRecord | None = None
    """None where the corpus was prepared for a model without images."""
    chat_template: str = ""
    """SHA-256 of the template that conversations were rendered by; corpora of early versions do not say."""
    inputs: list[dict[str, Any]] = []
    problems: dict[str, Any] = {}
    usage: UsageRecord = UsageRecord()
    part: str = ""
    """With ``--held-out``: which part of the documents this corpus holds. ``inputs`` counts both parts together."""
    counts: Counts = Counts()
    files: dict[str, Count] = {}
    version: int = FORMAT_VERSION

    @model_validator(mode="after")
    def _tokens_are_in_the_vocabulary(self) -> Self:
        """A token that has no embedding would be read from beyond its end."""
        record, images, size = self.tokenizer, self.images, self.tokenizer.vocab_size
        for token in (record.bos_id, record.eos_id, record.pad_id, *(images.token_ids if images else ())):
            if token >= size:
                raise ValueError(f"token {token} is outside the vocabulary of {size}")
        return self

    @classmethod
    def read(cls, directory: Path) -> CorpusManifest:
        """From ``corpus.json``. Raises DataError if it is absent, damaged or of another version."""
        file = directory / MANIFEST_FILE
        try:
            text = read_input(file).decode("utf-8")
        except (FileNotFoundError, NotADirectoryError):
            if not directory.exists():
                raise DataError(
                    f"the corpus {directory} does not exist.",
                    what_was_meant(directory),
                    "tools/prepare_data.py makes one of raw files.",
                ) from None
            raise DataError(
                f"{directory} is not a prepared corpus: it has no {MANIFEST_FILE}.",
                "The manifest is written last, so the directory is something else, or its preparation did not finish.",
                "Give a directory that tools/prepare_data.py wrote.",
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file} cannot be read: {error}.", fix=PREPARE_AGAIN) from None
        try:
            version = _Version.model_validate_json(text).version
            # Before anything else: what another version has otherwise is no damage.
            if version != FORMAT_VERSION:
                raise DataError(
                    f"{file} has format version {version}; this program reads version {FORMAT_VERSION}.",
                    fix="Prepare the corpus again with this version's tools/prepare_data.py.",
                )
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            raise DataError(f"{file} is damaged: {place}: {first['msg']}.", fix=PREPARE_AGAIN) from None


@dataclass(frozen=True)
class StoredImage:
    """One image of a document, ready to store.

    Attributes:
        data: encoded bytes, JPEG or PNG.
        height, width: pixels of the encoded image.
        rows, columns: its patch grid by :func:`~megatron_apriel.data.corpus.image_size.patch_grid`.
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
