"""Documents that are kept out of training, for the loss on data that the model has not seen.

Which ones is decided by each document alone: 64 bits of the SHA-256 over its text, the chat format included, and the
bytes of its images as the corpus stores them. It is held out if that number is below the share of 2**64. So the order
of the input, the number of workers and files that are added later change nothing for a document that was there; copies
of one document fall on one side; a larger share holds out the same documents and more. Tokenizer, image size and what
is learned of the text do not enter. Documents that share a picture and not their text are different ones, and so are
two that differ by a space.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_apriel.data.corpus.format import MANIFEST_FILE
from megatron_apriel.errors import DataError
from megatron_apriel.quantities import counted
from megatron_apriel.terminal import note

_NUMBERS = 2**64


def content_number(text: str, images: Iterable[bytes]) -> int:
    """A number below 2**64 that a document's text and the files of its images decide."""
    digest = hashlib.sha256(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
    for image in images:
        digest.update(hashlib.sha256(image).digest())
    return int.from_bytes(digest.digest()[:8])


def is_held_out(number: int, share: float) -> bool:
    """Whether the document of that number is held out."""
    return number < share * _NUMBERS


def directories(destination: Path, share: float) -> list[Path]:
    """Where the corpora go: all documents, or those to train on and the held-out ones beside them."""
    return [destination, _beside(destination)] if share else [destination]


def note_earlier(destination: Path) -> None:
    """Say of a corpus with all documents that held-out ones of an earlier preparation lie beside it."""
    if ((beside := _beside(destination)) / MANIFEST_FILE).is_file():
        note(
            f"warning: {beside} is of an earlier preparation; without --held-out its documents can be in "
            f"{destination} as well"
        )


def _beside(destination: Path) -> Path:
    named = destination if destination.name not in ("", "..") else destination.resolve()
    return named.with_name(f"{named.name}-held-out")


@dataclass
class HeldOutCounts:
    """What is held out of a corpus.

    Attributes:
        share: that was asked for; 0 if nothing is to be held out.
        documents, tokens: that are.
        least: smallest number of all documents.
        most: largest.
    """

    share: float = 0.0
    documents: int = 0
    tokens: int = 0
    least: int = _NUMBERS
    most: int = 0

    def add(self, number: int, tokens: int) -> bool:
        """Count a document; returns whether it is held out."""
        self.least, self.most = min(self.least, number), max(self.most, number)
        if not is_held_out(number, self.share):
            return False
        self.documents += 1
        self.tokens += tokens
        return True

    def parts(self) -> Sequence[str]:
        """What each corpus says that it is; of one that has all documents nothing."""
        return (f"without {self.share:.6g} held out", f"{self.share:.6g} held out") if self.share else ("",)

    def check(self, documents: int) -> None:
        """Raise DataError if one side has none of the ``documents``."""
        if not self.share or 0 < self.documents < documents:
            return
        which, way = (
            ("all", f"less than {self.most / _NUMBERS:.3g} leaves one to train on")
            if self.documents
            else ("none", f"more than {self.least / _NUMBERS:.3g} holds one out")
        )
        raise DataError(
            f"--held-out {self.share:.6g} holds out {which} of {counted(documents, 'document')}.",
            "A document is held out by a hash of its content, so the number is not exact; a corpus is never empty.",
            f"Give another share: {way}. Or take more documents.",
        )
