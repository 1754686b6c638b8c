"""Batches made by hand, without corpus, tokenizer or image decoder: what tests feed to the model.

A document is a list of token ids and images in reading order. The same documents can be given to this project's model
(:func:`make_batch`) and to transformers (:func:`hf_inputs`), and by two separate ways of laying out patches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_apriel.batch import IGNORED_LABEL, Batch, Block, ContextPart, PackedImages
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.parallel.data_place import WHOLE, DataPlace

IMAGE_BREAK, IMAGE_END, PADDING = 12, 13, 11

Document = Sequence[int | Tensor]
"""Token ids and images (float [channels, height, width], sides in whole patches) in reading order."""


@dataclass(frozen=True)
class _Layout:
    tokens: list[int]
    images: list[Tensor]
    slots: list[list[int]]
    """Per image the positions of its ``[IMG]`` tokens."""


def random_image(architecture: Architecture, rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Normally distributed pixels, float32 [channels, rows x patch_size, columns x patch_size]."""
    tower = architecture.tower
    assert tower is not None, "a model without a tower takes no images"
    return torch.randn(tower.channels, rows * tower.patch_size, columns * tower.patch_size, generator=generator)


def random_document(
    architecture: Architecture, text: int, grids: Sequence[tuple[int, int]], generator: torch.Generator
) -> list[int | Tensor]:
    """A document of ``text`` random tokens with images of the given patch grids spread over it."""
    tokens = torch.randint(20, architecture.decoder.vocab_size, (text,), generator=generator).tolist()
    for number, (rows, columns) in enumerate(grids):
        place = 1 + (number * text) // (len(grids) + 1) + number
        tokens.insert(min(place, len(tokens)), random_image(architecture, rows, columns, generator))
    return tokens


def _lay_out(architecture: Architecture, documents: Sequence[Document]) -> tuple[_Layout, list[int]]:
    layout, lengths = _Layout([], [], []), []
    for document in documents:
        before = len(layout.tokens)
        for item in document:
            if isinstance(item, int):
                layout.tokens.append(item)
                continue
            assert architecture.tower is not None, "a model without a tower takes no images"
            rows, columns = (side // architecture.tower.patch_size for side in item.shape[1:])
            slots: list[int] = []
            for row in range(rows):
                slots += range(len(layout.tokens), len(layout.tokens) + columns)
                layout.tokens.extend([architecture.image_token_id] * columns)
                layout.tokens.append(IMAGE_END if row == rows - 1 else IMAGE_BREAK)
            layout.images.append(item)
            layout.slots.append(slots)
        lengths.append(len(layout.tokens) - before)
    return layout, lengths


def make_batch(
    architecture: Architecture,
    documents: Sequence[Document],
    *,
    sequence_length: int | None = None,
    place: DataPlace = WHOLE,
    images_per_share: Sequence[Sequence[int]] | None = None,
    unscored: Sequence[int] = (),
    sequence: int = 0,
) -> Batch:
    """One packed sequence of ``documents``, as a rank sees it.

    Args:
        architecture: gives patch size and image token.
        documents: packed in order; padded at the end with a document of padding tokens.
        sequence_length: the sum of the documents' lengths where None.
        place: the rank's part of the sequence and of its images.
        images_per_share: numbers of the images that each share takes; dealt out in turn where None.
        unscored: numbers of documents without loss.
        sequence: number of the sequence in its run.
    """
    layout, lengths = _lay_out(architecture, documents)
    tokens, scored = list(layout.tokens), [number not in unscored for number in range(len(lengths))]
    if sequence_length is not None:
        missing = sequence_length - len(tokens)
        assert missing >= 0, f"documents have {len(tokens)} tokens, more than {sequence_length}"
        if missing:
            tokens += [PADDING] * missing
            lengths, scored = [*lengths, missing], [*scored, False]
    labels: list[int] = []
    positions: list[int] = []
    start = 0
    silent = {architecture.image_token_id, IMAGE_BREAK, IMAGE_END}
    for length, counted in zip(lengths, scored, strict=True):
        following = [*tokens[start + 1 : start + length], IGNORED_LABEL]
        labels += [token if counted and token not in silent else IGNORED_LABEL for token in following]
        positions += range(length)
        start += length
    if images_per_share is None:
        images_per_share = [list(range(rank, len(layout.images), place.shares)) for rank in range(place.shares)]
    images = _pack_images(architecture, layout, images_per_share, place.share)
    owned = owned_positions(len(tokens), place.context, place.contexts)
    labels = [labels[position] for position in owned]
    return Batch(
        tokens_S=torch.tensor(tokens)[owned],
        labels_S=torch.tensor(labels),
        positions_S=torch.tensor(positions)[owned],
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).int(),
        max_document=max(lengths),
        num_loss_tokens=sum(label != IGNORED_LABEL for label in labels),
        sequence=sequence,
        source=0,
        samples=(),
        images=images,
        part=_context_part(owned, lengths, images.slots_K.tolist()) if place.contexts > 1 else None,
    )


def owned_positions(length: int, context: int, contexts: int) -> list[int]:
    """Positions that a context-parallel rank owns: of 2 x ``contexts`` parts one from the front, one from behind."""
    if contexts == 1:
        return list(range(length))
    parts = torch.arange(length).view(2 * contexts, -1)
    return [*parts[context].tolist(), *parts[-1 - context].tolist()]


def gathered_parts(key_TGD: Tensor, value_TGD: Tensor, contexts: int) -> Tensor:
    """Keys and values of a whole sequence as its context-parallel ranks gather them, [2 C, S, G, D]."""
    owned = [owned_positions(len(key_TGD), context, contexts) for context in range(contexts)]
    return torch.cat([torch.stack([key_TGD[positions], value_TGD[positions]]) for positions in owned])


def _context_part(owned: list[int], lengths: list[int], slots: list[int]) -> ContextPart:
    document_of = [number for number, length in enumerate(lengths) for _ in range(length)]
    blocks = []
    for half in (owned[: len(owned) // 2], owned[len(owned) // 2 :]):
        documents = sorted({document_of[place] for place in half})
        of_queries, of_keys = (
            Counter(document_of[part]) for part in (slice(half[0], half[-1] + 1), slice(half[-1] + 1))
        )
        queries, keys = ([counts[number] for number in documents] for counts in (of_queries, of_keys))
        blocks.append(
            Block(
                length=len(half),
                first_key=document_of.index(documents[0]),
                stop=half[-1] + 1,
                cu_queries=torch.tensor([0, *queries]).cumsum(0).int(),
                cu_keys=torch.tensor([0, *keys]).cumsum(0).int(),
                max_queries=max(queries),
                max_keys=max(keys),
            )
        )
    place_of = {position: place for place, position in enumerate(owned)}
    features = [number for number, slot in enumerate(slots) if slot in place_of]
    return ContextPart(
        blocks=tuple(blocks),
        slots_L=torch.tensor([place_of[slots[number]] for number in features], dtype=torch.int64),
        features_L=torch.tensor(features, dtype=torch.int64),
    )


def _pack_images(
    architecture: Architecture, layout: _Layout, images_per_share: Sequence[Sequence[int]], share: int
) -> PackedImages:
    tower = architecture.tower
    if tower is None or not layout.images:
        return PackedImages.empty(tower.patch_values if tower else 0, len(images_per_share))
    size = tower.patch_size
    patches, rows, columns, sizes = [torch.zeros(0, tower.patch_values)], [], [], []
    for number in images_per_share[share]:
        pixels = layout.images[number]
        grid = (pixels.shape[1] // size, pixels.shape[2] // size)
        for row in range(grid[0]):
            for column in range(grid[1]):
                patch = pixels[:, row * size : (row + 1) * size, column * size : (column + 1) * size]
                patches.append(patch.reshape(1, -1))
                rows.append(row)
                columns.append(column)
        sizes.append(grid[0] * grid[1])
    slots = [slot for numbers in images_per_share for number in numbers for slot in layout.slots[number]]
    return PackedImages(
        patches_PC=torch.cat(patches),
        rows_P=torch.tensor(rows, dtype=torch.int64),
        columns_P=torch.tensor(columns, dtype=torch.int64),
        cu_seqlens=torch.tensor([0, *sizes]).cumsum(0).int(),
        max_patches=max(sizes, default=0),
        share_sizes=tuple(sum(len(layout.slots[number]) for number in numbers) for numbers in images_per_share),
        slots_K=torch.tensor(slots, dtype=torch.int64),
        sum_squared_patches=sum(len(layout.slots[number]) ** 2 for numbers in images_per_share for number in numbers),
    )


def hf_inputs(architecture: Architecture, document: Document) -> dict[str, Tensor]:
    """Arguments of ``LlavaForConditionalGeneration.forward`` for one document: a batch of one row."""
    layout, _ = _lay_out(architecture, [document])
    inputs = {"input_ids": torch.tensor([layout.tokens])}
    if layout.images:
        sizes = torch.tensor([list(pixels.shape[1:]) for pixels in layout.images])
        height, width = sizes.amax(0).tolist()
        padded = torch.zeros(len(sizes), layout.images[0].shape[0], height, width)
        for row, pixels in zip(padded, layout.images, strict=True):
            row[:, : pixels.shape[1], : pixels.shape[2]] = pixels
        inputs |= {"pixel_values": padded, "image_sizes": sizes}
    return inputs
