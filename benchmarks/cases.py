"""The tokens that are trained on in a measurement: what a step sees, and nothing of who runs it.

Every subject gets the same batches in the same order, made from a fixed seed. Token ids follow Zipf's law, as those of
text do: the embedding's gradient then meets the same few rows again and again, and the head's losses have a shape that
uniform ids have not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from megatron_apriel.batch import Batch
from megatron_apriel.config.choices import Dealing
from megatron_apriel.config.training_sections import TrainedParts
from megatron_apriel.data.loading.dealing import even_shares
from megatron_apriel.data.loading.order import shuffled
from megatron_apriel.data.loading.packing import best_fit_decreasing
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.flops import model_flops
from megatron_apriel.parallel.data_place import WHOLE, DataPlace
from megatron_apriel.parallel.image_shares import share_images
from megatron_apriel.planning.workload import Content, Workload
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
        documents: ``one`` document a sequence; ``packed`` from documents of about ``document_length``; ``real``, packed
            from documents of :func:`real_lengths`; ``images``, documents with images; ``mix``, where only the sequences
            named by ``rich`` hold such documents.
        document_length: mean length of packed documents of text.
        rich: in a mix, which of ten sequences in a row are full of images.
        grid_divisor: images' grids are smaller by this.
        train: which parts train.
    """

    name: str
    sequence_length: int
    micro_batches: int
    probe: tuple[int, int]
    documents: Literal["one", "packed", "real", "images", "mix"]
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
        Case("49152-sft", 49152, 4, (1, 2), "packed", document_length=6000),
        Case("32768-real", 32768, 4, (1, 2), "real"),
    )
}
STAGES = {
    "realign": "8192-realign",
    "cpt_stage1": "32768-cpt1",
    "cpt_stage2": "16384-mix",
    "sft": "32768-sft",
    "sft_long": "49152-sft",
}
"""Stage of the recipe, as ``examples`` names it -> case with its sequence length, trained parts and kind of data."""


def small(case: Case) -> Case:
    """The same in miniature, for a try on the CPU."""
    return replace(
        case,
        sequence_length=case.sequence_length // 64,
        document_length=case.document_length // 64,
        grid_divisor=8,
    )


@cache
def real_lengths() -> tuple[int, ...]:
    """Tokens of each source file of Python 3.12's standard library and of PyTorch 2.13, by Mistral's Tekken."""
    lengths: list[int] = json.loads((Path(__file__).parent / "document_lengths.json").read_text(encoding="utf-8"))
    return tuple(lengths)


@cache
def real_packs(sequence_length: int) -> tuple[tuple[int, ...], ...]:
    """Documents' lengths in each pack of the real ones, longer ones split, packed and shuffled as in a stage."""
    pieces = [
        min(length - start, sequence_length) for length in real_lengths() for start in range(0, length, sequence_length)
    ]
    bins, number = best_fit_decreasing(np.array(pieces), sequence_length)
    packs: list[list[int]] = [[] for _ in range(number)]
    for piece, pack in zip(pieces, bins.tolist(), strict=True):
        packs[pack].append(piece)
    return tuple(tuple(packs[pack]) for pack in shuffled(number, 0).tolist())


def batches(
    case: Case,
    architecture: Architecture,
    place: DataPlace = WHOLE,
    seed: int = 1234,
    dealing: Dealing = "in_order",
    first: int = 0,
) -> list[Batch]:
    """The case's micro-batches, or a rank's part of them, on the host.

    Args:
        case: what to make.
        architecture: gives vocabulary and patch size; with a tower where the case has images.
        place: the rank's part of the data. Pixels are there even if it decodes none.
        seed: of everything drawn; the same on every rank.
        dealing: which of them a data-parallel rank gets.
        first: number of the first one, where they are not those of the first step.
    """
    generator = torch.Generator().manual_seed(seed + first)
    documents = []
    for number in range(first, first + case.micro_batches):
        ids = _zipf(architecture.decoder.vocab_size, case.sequence_length, generator)
        documents.append(list(_documents(case, architecture, number, ids, generator)))
    own: Sequence[int] = place.sequences(0, case.micro_batches)
    if dealing == "evenly":
        work = [_work(case, architecture, sequence) for sequence in documents]
        own = even_shares(work, place.data_size)[place.data_rank]
    return [_batch(architecture, documents[number], first + number, place) for number in own]


def workload(made: Sequence[Batch]) -> Workload:
    """What the plan should take the sequences of a step to hold: just that."""
    return Workload.known(
        [
            Content(tuple(batch.cu_seqlens.diff().tolist()), tuple(batch.images.cu_seqlens.diff().tolist()))
            for batch in made
        ]
    )


def _grids(architecture: Architecture, document: Document) -> list[tuple[int, int]]:
    """Rows and columns of a document's images."""
    size = architecture.tower.patch_size if architecture.tower else 1
    images = [item for item in document if isinstance(item, torch.Tensor)]
    return [(image.shape[1] // size, image.shape[2] // size) for image in images]


def _work(case: Case, architecture: Architecture, documents: list[Document]) -> int:
    """Operations of a sequence's forward and backward pass, by the FLOPs rule."""
    grids = [_grids(architecture, document) for document in documents]
    lengths = [
        len(document) + sum(rows * (columns + 1) - 1 for rows, columns in images)
        for document, images in zip(documents, grids, strict=True)
    ]
    patches = [rows * columns for images in grids for rows, columns in images]
    squares = sum(length**2 for length in lengths)
    return model_flops(architecture, case.sequence_length, squares, patches, case.train)


def _batch(architecture: Architecture, documents: list[Document], number: int, place: DataPlace) -> Batch:
    """One sequence, its images shared out as the trainer does it."""
    patches = [rows * columns for document in documents for rows, columns in _grids(architecture, document)]
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
    case: Case, architecture: Architecture, number: int, ids: list[int], generator: torch.Generator
) -> Iterator[Document]:
    """Documents that fill sequence ``number`` exactly; the last is cut to what is left."""
    left, with_images = case.sequence_length, case.is_rich(number)
    if case.documents == "real":
        packs = real_packs(case.sequence_length)
        for length in packs[number % len(packs)]:
            yield ids[left - length : left]
            left -= length
    while left:
        if case.documents in ("one", "real"):  # what real documents leave is a document of padding
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
