"""The tokens that are trained on in a measurement: what a step sees, and nothing of who runs it.

Every subject gets the same batches in the same order, made from a fixed seed. Token ids follow Zipf's law, as those of
text do: the embedding's gradient then meets the same few rows again and again, and the head's losses have a shape that
uniform ids have not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch

from megatron_apriel.batch import Batch
from megatron_apriel.config.training_sections import TrainedParts
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.parallel.data_place import WHOLE, DataPlace
from megatron_apriel.parallel.image_shares import share_images
from megatron_apriel.testing.batches import Document, make_batch, random_image

GRIDS = ((48, 64), (64, 48), (64, 64), (32, 48), (32, 32), (24, 32))
"""Patch grids of photographs and crops: 1024x768 pixels is 48 rows of 64."""
IMAGE_RICH = (True, True, False, True, True, True, False, True, True, False)
"""Which of ten sequences in a row are full of images: the 70% of the recipe's third stage."""
SOME_IMAGES = (False, True, False, False, True, False, False, False, True, False)
"""The same for the 30% of its second stage."""

TEXT = TrainedParts(decoder=1)
EVERYTHING = TrainedParts(tower=1, projector=1, decoder=1)


@dataclass(frozen=True)
class Case:
    """One way of filling sequences.

    Attributes:
        name: as on the command line.
        sequence_length: tokens of a micro-batch.
        micro_batches: of an optimizer step; as many different batches are trained on in turn.
        probe: two smaller numbers of micro-batches, from which the cost of a step that is not of micro-batches follows.
        documents: ``one`` document a sequence; ``packed`` from documents of about ``document_length``; ``images``,
            documents with images; ``mix``, where only the sequences named by ``rich`` hold such documents.
        document_length: mean length of packed documents of text.
        rich: in a mix, which of ten sequences in a row are full of images.
        grid_divisor: images' grids are smaller by this.
        train: which parts train.
    """

    name: str
    sequence_length: int
    micro_batches: int
    probe: tuple[int, int]
    documents: Literal["one", "packed", "images", "mix"]
    document_length: int = 3000
    rich: tuple[bool, ...] = IMAGE_RICH
    grid_divisor: int = 1
    train: TrainedParts = TEXT

    @property
    def has_images(self) -> bool:
        return self.documents in ("images", "mix")

    def is_rich(self, number: int) -> bool:
        """Whether micro-batch ``number`` is full of images."""
        return self.documents == "images" or (self.documents == "mix" and self.rich[number % len(self.rich)])


CASES = {
    case.name: case
    for case in (
        Case("8192", 8192, 8, (1, 4), "one"),
        Case("32768", 32768, 2, (1, 2), "one"),
        Case("32768-packed", 32768, 2, (1, 2), "packed"),
        Case("16384-mix", 16384, 10, (1, 3), "mix", train=TrainedParts(projector=1, decoder=1)),
        Case("8192-realign", 8192, 8, (1, 3), "images", train=TrainedParts(projector=1)),
        Case("32768-cpt1", 32768, 4, (1, 2), "mix", rich=SOME_IMAGES, train=EVERYTHING),
        Case("32768-sft", 32768, 4, (1, 2), "packed", document_length=6000),
    )
}
STAGES = {"realign": "8192-realign", "cpt_stage1": "32768-cpt1", "cpt_stage2": "16384-mix", "sft": "32768-sft"}
"""Stage of the recipe, as ``examples`` names it -> case with its sequence length, trained parts and kind of data."""


def small(case: Case) -> Case:
    """The same in miniature, for a try on the CPU."""
    return replace(
        case,
        sequence_length=case.sequence_length // 64,
        document_length=case.document_length // 64,
        grid_divisor=8,
    )


def batches(case: Case, architecture: Architecture, place: DataPlace = WHOLE, seed: int = 1234) -> list[Batch]:
    """The case's micro-batches, or a rank's part of them, on the host.

    Args:
        case: what to make.
        architecture: gives vocabulary and patch size; with a tower where the case has images.
        place: the rank's part of the data. Pixels are there even if it decodes none.
        seed: of everything drawn; the same on every rank.
    """
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(case.micro_batches):
        ids = _zipf(architecture.decoder.vocab_size, case.sequence_length, generator)
        documents = list(_documents(case, architecture, case.is_rich(number), ids, generator))
        if number in place.sequences(0, case.micro_batches):
            made.append(_batch(architecture, documents, number, place))
    return made


def _batch(architecture: Architecture, documents: list[Document], number: int, place: DataPlace) -> Batch:
    """One sequence, its images shared out as the trainer does it."""
    tower = architecture.tower
    images = [item for document in documents for item in document if isinstance(item, torch.Tensor)]
    patches = [image.shape[1] * image.shape[2] // tower.patch_size**2 for image in images] if tower else []
    return make_batch(
        architecture,
        documents,
        sequence=number,
        place=place,
        images_per_share=share_images(patches, place.shares),
    )


def _zipf(vocabulary: int, count: int, generator: torch.Generator) -> list[int]:
    """Token ids of which the n-th most frequent appears in proportion to 1 / (n + 2.7); no special tokens."""
    first = min(1000, vocabulary // 8)
    frequencies = 1.0 / (torch.arange(vocabulary - first) + 2.7)
    drawn = torch.multinomial(frequencies, count, replacement=True, generator=generator)
    return [int(token) for token in (drawn + first).tolist()]


def _documents(
    case: Case, architecture: Architecture, with_images: bool, ids: list[int], generator: torch.Generator
) -> Iterator[Document]:
    """Documents that fill a sequence exactly; the last is cut to what is left."""
    left = case.sequence_length
    while left:
        if case.documents == "one":
            length = left
        elif with_images:
            document, length = _visual_document(case, architecture, left, ids, generator)
            if length:
                yield document
                left -= length
                continue
            length = left
        else:
            drawn = torch.randn((), generator=generator).item()
            length = round(case.document_length * min(max(1 + 0.25 * drawn, 0.4), 1.6))
        # A rest of a few tokens would be a document that no kernel meets in practice.
        length = left if left - length < case.document_length // 4 else length
        yield ids[left - length : left]
        left -= length


def _visual_document(
    case: Case, architecture: Architecture, most: int, ids: list[int], generator: torch.Generator
) -> tuple[Document, int]:
    """One to four images, a question and an answer; nothing where even one image would be more than ``most`` tokens."""
    grids = [
        (rows // case.grid_divisor, columns // case.grid_divisor)
        for rows, columns in (GRIDS[index] for index in torch.randint(len(GRIDS), (4,), generator=generator).tolist())
    ]
    wanted, text = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((1, 5), (100, 600)))
    text = max(text * case.document_length // 3000, 2)
    document: list[int | torch.Tensor] = []
    length = 0
    for rows, columns in grids[:wanted]:
        size = rows * (columns + 1)
        if length + size + text <= most:
            document.append(random_image(architecture, rows, columns, generator))
            length += size
    if not document:
        return [], 0
    return [*document, *ids[most - text : most]], length + text
