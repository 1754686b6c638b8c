"""From a pack to a batch: tokens, labels, positions, document bounds and the slots of images.

Labels are shifted here, once: the label of a position is the token after it in the same document. A position carries no
loss where there is no such token (the document's last position), where that token belongs to an image, where it is not
part of a response and the source asks for loss on responses only, and in the padding. Padding is a document of its own
at the end of the sequence.

Everything but pixels is cheap and the same on every rank of a sequence, so each rank computes it for itself.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from megatron_apriel.batch import IGNORED_LABEL, Batch, Block, ContextPart, PackedImages
from megatron_apriel.config.choices import LossOn
from megatron_apriel.data.corpus.on_disk import Corpus
from megatron_apriel.data.loading.image_headers import ImageRequest
from megatron_apriel.data.loading.images import ImageDecoder
from megatron_apriel.data.loading.packing import Piece
from megatron_apriel.data.loading.patches import patch_places
from megatron_apriel.data.loading.sources import Source
from megatron_apriel.data.loading.targets import learnable
from megatron_apriel.errors import DataError
from megatron_apriel.parallel.context_parts import blocks_of_rank, seen_by_block
from megatron_apriel.parallel.data_place import DataPlace
from megatron_apriel.parallel.image_shares import share_images


@dataclass(frozen=True)
class SequenceImage:
    """An image of a sequence, still encoded, and the positions of its ``[IMG]`` tokens, int64 [rows * columns]."""

    encoded: ImageRequest
    slots: NDArray[np.int64]


@dataclass(frozen=True)
class SequenceContent:
    """A pack read from its corpus: everything of a batch but pixels. Arrays as in ``Batch``."""

    tokens_S: NDArray[np.int64]
    labels_S: NDArray[np.int64]
    positions_S: NDArray[np.int64]
    cu_seqlens: NDArray[np.int32]
    samples: tuple[int, ...]
    images: tuple[SequenceImage, ...]


def read_sequence(source: Source, pack: int) -> SequenceContent:
    """Read one pack of a source.

    Raises DataError if tokens lie outside the tokenizer's vocabulary or disagree with the table of images.
    """
    corpus, length = source.corpus, source.plan.sequence_length
    pieces = source.plan.pieces(pack, corpus)
    tokens = np.full(length, corpus.manifest.tokenizer.pad_id, dtype=np.int64)
    labels = np.full(length, IGNORED_LABEL, dtype=np.int64)
    positions = np.empty(length, dtype=np.int64)
    bounds, images = [0], list[SequenceImage]()
    for piece in pieces:
        start, stop = bounds[-1], bounds[-1] + piece.length
        ids = corpus.tokens(piece.document, piece.start, piece.length)
        tokens[start:stop] = ids
        labels[start : stop - 1] = _labels(corpus, piece, ids, source.section.loss)
        found = _images_of_piece(corpus, piece, start)
        _check_tokens(corpus, piece, ids, tokens, found)
        images.extend(found)
        bounds.append(stop)
    if bounds[-1] < length:
        bounds.append(length)
    for start, stop in itertools.pairwise(bounds):
        positions[start:stop] = np.arange(stop - start)
    return SequenceContent(
        tokens_S=tokens,
        labels_S=labels,
        positions_S=positions,
        cu_seqlens=np.array(bounds, dtype=np.int32),
        samples=tuple(piece.document for piece in pieces),
        images=tuple(images),
    )


def padding_sequence(source: Source) -> SequenceContent:
    """A sequence of padding alone, without loss."""
    length = source.plan.sequence_length
    return SequenceContent(
        tokens_S=np.full(length, source.corpus.manifest.tokenizer.pad_id, dtype=np.int64),
        labels_S=np.full(length, IGNORED_LABEL, dtype=np.int64),
        positions_S=np.arange(length),
        cu_seqlens=np.array([0, length], dtype=np.int32),
        samples=(),
        images=(),
    )


def _labels(corpus: Corpus, piece: Piece, ids: NDArray[np.int32], loss: LossOn) -> NDArray[np.int64]:
    """Labels of all positions of a piece but its last."""
    labels = ids[1:].astype(np.int64)
    labels[~learnable(corpus, piece.document, piece.start, piece.length, loss)[1:]] = IGNORED_LABEL
    return labels


def _images_of_piece(corpus: Corpus, piece: Piece, offset: int) -> list[SequenceImage]:
    """The images whose tokens are in a piece that begins at ``offset`` of its sequence."""
    result = []
    for number, row in enumerate(corpus.images(piece.document)):
        start, rows, columns = int(row["start"]) - piece.start, int(row["rows"]), int(row["columns"])
        # Pieces are never cut inside an image, so its first token decides.
        if not 0 <= start < piece.length:
            continue
        slots = offset + start + np.arange(rows)[:, None] * (columns + 1) + np.arange(columns)
        encoded = ImageRequest(
            data=corpus.image_bytes(row),
            height=int(row["height"]),
            width=int(row["width"]),
            rows=rows,
            columns=columns,
            place=f"{corpus.path}, sample {piece.document}, image {number}",
        )
        result.append(SequenceImage(encoded, slots.reshape(-1)))
    return result


def _check_tokens(
    corpus: Corpus,
    piece: Piece,
    ids: NDArray[np.int32],
    tokens: NDArray[np.int64],
    images: list[SequenceImage],
) -> None:
    """Check a piece's ``ids`` and, in the whole sequence's ``tokens``, the places of its images."""
    low, high, vocab_size = int(ids.min()), int(ids.max()), corpus.manifest.tokenizer.vocab_size
    if low < 0 or high >= vocab_size:
        raise DataError(
            f"{corpus.path}/tokens.bin: sample {piece.document} has token {low if low < 0 else high}; "
            f"the vocabulary has {vocab_size}.",
            "The file is damaged.",
            "Prepare the corpus again.",
        )
    record = corpus.manifest.images
    if record is None:
        return
    found, slots = int((ids == record.image_token_id).sum()), sum(image.slots.size for image in images)
    if found != slots or any((tokens[image.slots] != record.image_token_id).any() for image in images):
        raise DataError(
            f"{corpus.path}: sample {piece.document} has {found} image tokens, its images take {slots}.",
            "tokens.bin and images.npy disagree, or the tokens stand elsewhere.",
            "Prepare the corpus again.",
        )


@dataclass(frozen=True)
class ImageShare:
    """Which part of a sequence's images this rank takes, and whether it needs their pixels at all.

    Attributes:
        share, shares: this rank's number among those that share a sequence's images.
        patch_values: numbers of a patch.
        decoder: None on ranks that hold no tower (later pipeline stages): they learn the slots, but no pixels.
    """

    share: int
    shares: int
    patch_values: int
    decoder: ImageDecoder | None

    def pack(self, images: tuple[SequenceImage, ...]) -> PackedImages:
        """This rank's share of the images and the slots of all shares."""
        numbers = share_images([image.slots.size for image in images], self.shares)
        slots = [images[number].slots for share in numbers for number in share]
        own = [images[number].encoded for number in numbers[self.share]] if self.decoder is not None else []
        patches = torch.zeros(0, self.patch_values)
        if self.decoder is not None and own:
            patches = self.decoder.patches(own)
        places = [patch_places(image.rows, image.columns) for image in own]
        sizes = [image.rows * image.columns for image in own]
        none = [torch.zeros(0, dtype=torch.int64)]
        return PackedImages(
            patches_PC=patches,
            rows_P=torch.cat([rows for rows, _ in places] or none),
            columns_P=torch.cat([columns for _, columns in places] or none),
            cu_seqlens=torch.tensor([0, *np.cumsum(sizes).tolist()], dtype=torch.int32),
            max_patches=max(sizes, default=0),
            share_sizes=tuple(sum(images[number].slots.size for number in share) for share in numbers),
            slots_K=torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *slots])),
            sum_squared_patches=sum(image.slots.size**2 for image in images),
        )


def make_batch(content: SequenceContent, images: PackedImages, sequence: int, source: int, place: DataPlace) -> Batch:
    """The batch of a sequence, or of the part of it that a context-parallel rank owns.

    Args:
        content: the whole sequence.
        images: this rank's share of its images.
        sequence: its number in the run.
        source: number of its source.
        place: this rank's part of the data.
    """
    tokens, labels, positions = content.tokens_S, content.labels_S, content.positions_S
    part = None
    if place.contexts > 1:
        owned = blocks_of_rank(tokens.size, place.contexts, place.context)
        tokens, labels, positions = (
            np.concatenate([array[block.start : block.stop] for block in owned])
            for array in (tokens, labels, positions)
        )
        part = _context_part(content.cu_seqlens.tolist(), images.slots_K, owned)
    return Batch(
        tokens_S=_tensor(tokens),
        labels_S=_tensor(labels),
        positions_S=_tensor(positions),
        cu_seqlens=_tensor(content.cu_seqlens),
        max_document=int(np.diff(content.cu_seqlens).max()),
        num_loss_tokens=int((labels != IGNORED_LABEL).sum()),
        sequence=sequence,
        source=source,
        samples=content.samples,
        images=images,
        part=part,
    )


def _context_part(bounds: list[int], slots_K: Tensor, owned: tuple[range, ...]) -> ContextPart:
    """What the rank that owns these positions knows of its part of a sequence with documents at ``bounds``."""
    blocks, slots, features, offset = [], [], [], 0
    for block in owned:
        seen = seen_by_block(bounds, block)
        blocks.append(
            Block(
                length=len(block),
                first_key=seen.first_key,
                stop=block.stop,
                cu_queries=torch.tensor([0, *itertools.accumulate(seen.query_lengths)], dtype=torch.int32),
                cu_keys=torch.tensor([0, *itertools.accumulate(seen.key_lengths)], dtype=torch.int32),
                max_queries=max(seen.query_lengths),
                max_keys=max(seen.key_lengths),
            )
        )
        inside = ((slots_K >= block.start) & (slots_K < block.stop)).nonzero()[:, 0]
        features.append(inside)
        slots.append(slots_K[inside] - block.start + offset)
        offset += len(block)
    return ContextPart(blocks=tuple(blocks), slots_L=torch.cat(slots), features_L=torch.cat(features))


def _tensor(array: NDArray[np.integer]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
