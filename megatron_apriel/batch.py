"""The typed batch: the only thing that ``data/loading`` and ``model`` both know.

A batch is one packed sequence. Documents lie end to end in it, attention never crosses from one to the next, and
positions restart with each. Images are one packed list of patches; there is no padding inside the vision tower, and a
batch without images is an ordinary batch whose list is empty.

A sequence's images are shared out over the tensor- and context-parallel ranks, whole image by whole image; each rank's
batch holds the pixels of its own share only, and the slots of everybody's. A context-parallel rank's batch holds its
own two blocks of the tokens, one after the other (``parallel/context_parts.py``), and what it needs to know of the
rest. Everything that the model needs to know on the host (counts, longest document) travels as plain integers, so that
no step waits for the device.

Shape letters: S tokens of this rank (without context parallelism, of the whole sequence), D documents, I images of this
rank's share, P patches of this rank's share, K patches of all shares, L patches whose slots are among this rank's
tokens, C numbers per patch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

IGNORED_LABEL = -100
"""Label of a position that carries no loss."""


class _Movable:
    """A frozen dataclass of tensors, plain numbers and further such dataclasses, moved between devices as a whole."""

    def _map(self, function_name: str, *args: object, **kwargs: object) -> Self:
        moved = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                moved[field.name] = getattr(value, function_name)(*args, **kwargs)
            elif isinstance(value, _Movable):
                moved[field.name] = value._map(function_name, *args, **kwargs)
            elif isinstance(value, tuple) and value and isinstance(value[0], _Movable):
                moved[field.name] = tuple(item._map(function_name, *args, **kwargs) for item in value)
        return replace(self, **moved)  # type: ignore[type-var]

    def to(self, device: torch.device | str) -> Self:
        """The same on ``device``, copied without waiting from pinned memory."""
        return self._map("to", device, non_blocking=True)

    def pin_memory(self) -> Self:
        """The same in page-locked memory."""
        return self._map("pin_memory")


@dataclass(frozen=True)
class PackedImages(_Movable):
    """This rank's share of a sequence's images as one list of patches, and the slots of all shares.

    Attributes:
        patches_PC: float, normalised pixels; images one after the other, patches of an image row by row, the numbers
            of a patch in the order channel, row, column (the order of a convolution's weights).
        rows_P, columns_P: int64, the patch's place in its image's grid.
        cu_seqlens: int32 [I + 1], cumulative number of patches per image of this share; ``[0]`` when it is empty.
        max_patches: patches of the largest image of this share, 0 when it is empty.
        share_sizes: patches of each rank's share in rank order; they sum to K. One entry without sharing.
        slots_K: int64, the position in the whole sequence that takes each patch's feature, shares in rank order.
        sum_squared_patches: over the images of all shares, the squared number of an image's patches: the attention work
            of the tower, known to every rank alike.
    """

    patches_PC: Tensor
    rows_P: Tensor
    columns_P: Tensor
    cu_seqlens: Tensor
    max_patches: int
    share_sizes: tuple[int, ...]
    slots_K: Tensor
    sum_squared_patches: int

    @property
    def num_patches(self) -> int:
        """Patches of all shares; known to every rank alike."""
        return sum(self.share_sizes)

    @classmethod
    def empty(cls, patch_values: int, shares: int = 1) -> PackedImages:
        """No images, for ``shares`` ranks."""
        none = torch.zeros(0, dtype=torch.int64)
        return cls(
            patches_PC=torch.zeros(0, patch_values),
            rows_P=none,
            columns_P=none,
            cu_seqlens=torch.zeros(1, dtype=torch.int32),
            max_patches=0,
            share_sizes=(0,) * shares,
            slots_K=none,
            sum_squared_patches=0,
        )


@dataclass(frozen=True)
class Block(_Movable):
    """A run of a sequence whose queries one context-parallel rank has, and the keys that they see.

    Attributes:
        length: tokens of the block.
        first_key, stop: the keys are those at positions ``first_key`` to ``stop - 1`` of the whole sequence.
        cu_queries, cu_keys: int32, cumulative numbers of queries and of keys per document that reaches into the block.
        max_queries, max_keys: of the document with the most.
    """

    length: int
    first_key: int
    stop: int
    cu_queries: Tensor
    cu_keys: Tensor
    max_queries: int
    max_keys: int


@dataclass(frozen=True)
class ContextPart(_Movable):
    """What a context-parallel rank knows about its part of a sequence.

    Attributes:
        blocks: the rank's blocks, in the order of its tokens.
        slots_L: int64, positions among this rank's tokens that take a patch's feature.
        features_L: int64, which of the K features each of them takes.
    """

    blocks: tuple[Block, ...]
    slots_L: Tensor
    features_L: Tensor


@dataclass(frozen=True)
class Batch(_Movable):
    """One micro-batch: a packed sequence, or a context-parallel rank's part of one.

    Attributes:
        tokens_S: int64 token ids. The tail after the last document, if any, is padding: a document of its own whose
            labels are all ignored.
        labels_S: int64, the token to predict at each position (already shifted), ``IGNORED_LABEL`` where no loss.
        positions_S: int64, restarting at 0 with each document.
        cu_seqlens: int32 [D + 1], cumulative document lengths of the whole sequence from 0, the padding tail included.
        max_document: length of the longest document.
        num_loss_tokens: labels of this rank's tokens that are not ignored.
        sequence: global number of this sequence in the run; with the configuration it names the content exactly.
        source: index of the mixture's source that the sequence came from.
        samples: numbers of the corpus's samples in the sequence, in order.
        images: this rank's share of the images.
        part: which part of the sequence the tokens are; None for the whole of it.
    """

    tokens_S: Tensor
    labels_S: Tensor
    positions_S: Tensor
    cu_seqlens: Tensor
    max_document: int
    num_loss_tokens: int
    sequence: int
    source: int
    samples: tuple[int, ...]
    images: PackedImages
    part: ContextPart | None = None
