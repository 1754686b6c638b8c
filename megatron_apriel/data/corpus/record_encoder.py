"""From a raw record to a document with its images, in a worker: understood, its images decoded, its text tokenised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from megatron_apriel.data.corpus.chat import EncodedDocument, encode_chat, encode_text
from megatron_apriel.data.corpus.format import StoredImage
from megatron_apriel.data.corpus.held_out import content_number
from megatron_apriel.data.corpus.image_size import patch_grid
from megatron_apriel.data.corpus.stored_images import EncodedImage, encode_for_corpus, picture_pixels
from megatron_apriel.data.corpus.tokens import TokenTable
from megatron_apriel.data.raw.documents import ImageValue, Remarks, TextDocument
from megatron_apriel.data.raw.files.blocks import NO_MEMORY, Block
from megatron_apriel.data.raw.pictures.image_references import ImageLoader
from megatron_apriel.data.raw.problems import BadRecord, Problem
from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS, ReadLimits
from megatron_apriel.data.raw.reading import Reading
from megatron_apriel.data.raw.records.conversion import parse_record
from megatron_apriel.quantities import counted

_PICTURES = 10
"""Times the limit on one picture, for all pictures of a record: each may be small and stand there a thousand times."""


@dataclass(frozen=True)
class BlockTask:
    """A block on its way to a worker, with what is known of its input, which has a number."""

    number: int
    block: Block
    record_format: str
    image_root: Path


@dataclass(frozen=True)
class PreparedDocument:
    """A document and its images, ready for :class:`CorpusWriter`, and what the summary says about it.

    ``number`` is that of its content, see :mod:`megatron_apriel.data.corpus.held_out`.
    """

    encoded: EncodedDocument
    images: list[StoredImage]
    remarks: Remarks
    number: int


@dataclass(frozen=True)
class RecordEncoder:
    """Turns raw records into documents; one lives in every worker."""

    table: TokenTable
    reading: Reading = field(default_factory=Reading)
    limits: ReadLimits = DEFAULT_LIMITS
    found_out: bool = False
    """Whether the shape of a file is that of its first record, and was not asked for."""

    def encode(self, record: Mapping[str, Any], record_format: str, loader: ImageLoader) -> PreparedDocument:
        """The document of one record. Raises BadRecord with the reason."""
        document = parse_record(record, record_format, self.reading, self.limits, found_out=self.found_out)
        rule = self.table.images
        if rule is None and document.images:
            raise BadRecord(f"it has {counted(len(document.images), 'image')}, and the model has no vision tower")
        images = self._images(document.images, loader)
        grids = [self._grid(image) for image in images]
        most = self.limits.text_characters
        if isinstance(document, TextDocument):
            encoded = encode_text(self.table, document.parts, grids, most, document.learned)
        else:
            encoded = encode_chat(self.table, document.messages, document.tools, grids, most, learned=document.learned)
        stored = [
            StoredImage(image.data, image.height, image.width, rows, columns, start)
            for image, (rows, columns), start in zip(images, grids, encoded.image_starts, strict=True)
        ]
        number = content_number(encoded.text, (image.data for image in stored))
        # The text has served; a worker sends back what the corpus needs and no more.
        return PreparedDocument(replace(encoded, text=""), stored, document.remarks, number)

    def _images(self, values: Sequence[ImageValue], loader: ImageLoader) -> list[EncodedImage]:
        """The images as a corpus stores them, which together may take no more than a record may."""
        files: list[bytes] = []
        bytes_left, pixels_left = self.limits.record_bytes, _PICTURES * self.limits.pixels
        for value in values:
            files.append(loader.load(value))
            bytes_left -= len(files[-1])
            pixels_left -= picture_pixels(files[-1]) if len(values) > 1 else 0
            if pixels_left < 0:
                most = f"{_PICTURES} x {self.limits.pixels:,}"
                raise BadRecord(f"its {len(values)} images have more than {most} pixels; --max-pixels allows more")
            self._check_bytes(bytes_left)
        images, bytes_left = [], self.limits.record_bytes
        for file in files:
            images.append(encode_for_corpus(file, self.limits))
            bytes_left -= len(images[-1].data)
            self._check_bytes(bytes_left)
        return images

    def _check_bytes(self, left: int) -> None:
        if left < 0:
            most = self.limits.record_bytes
            raise BadRecord(f"its images have more than {most:,} bytes in all; --max-record allows more")

    def _grid(self, image: EncodedImage) -> tuple[int, int]:
        rule = self.table.images
        assert rule is not None, "checked in encode"
        short, long = sorted((image.height, image.width))
        if short * rule.image_size < long:
            raise BadRecord(
                f"an image of {image.height}x{image.width} pixels would be less than one pixel thin "
                f"when its longer side is reduced to {rule.image_size}"
            )
        return patch_grid(image.height, image.width, rule.image_size, rule.patch_size, rule.rounding)

    def encode_block(self, task: BlockTask) -> list[PreparedDocument | Problem]:
        """The documents of a block, or the problem in place of each that is none."""
        results: list[PreparedDocument | Problem] = []
        for raw in task.block.records(self.limits):
            try:
                if raw.problem:
                    raise BadRecord(raw.problem)
                loader = ImageLoader(task.image_root, raw.attachments, self.limits)
                document = self.encode(raw.value, task.record_format, loader)
                document.remarks.unused.update(raw.unused)
                results.append(document)
            except BadRecord as problem:
                results.append(Problem(raw.place, str(problem)))
            except RecursionError:
                results.append(Problem(raw.place, "the record is nested too deeply"))
            except MemoryError:
                results.append(Problem(raw.place, NO_MEMORY))
            except Exception as error:
                error.add_note(f"while preparing {raw.place}")
                raise
        return results
