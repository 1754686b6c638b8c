"""What the sequences of a step are taken to hold, and how evenly their work divides over ranks. No torch.

A plan has no data, so documents of one length stand for those of many (:class:`Workload`). Where the sequences of a
step are known, as in a measurement, they are followed one by one (:class:`Content`): no two are equally much work, and
ranks wait for the slowest of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from statistics import fmean
from typing import NamedTuple

from megatron_apriel.config.schema import StageConfig
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.parallel.balance import image_share, largest_image
from megatron_apriel.parallel.context_parts import blocks_of_rank, seen_by_block

_BEGINNINGS = 8
"""Of an assumed sequence's first document, over which is averaged."""


@dataclass(frozen=True)
class Content:
    """What one sequence holds.

    Attributes:
        documents: their lengths, in order; they fill the sequence.
        images: patches of each, in order.
        assumed: stands for many sequences. Ranks then share its images evenly, and its documents, which are of one
            length, begin anywhere.
    """

    documents: tuple[int, ...]
    images: tuple[int, ...] = ()
    assumed: bool = False

    @property
    def squared_lengths(self) -> int:
        return sum(length**2 for length in self.documents)


@dataclass(frozen=True)
class Workload:
    """What sequences hold.

    Attributes:
        document_tokens: length of their documents, the last one shorter.
        image_tokens: how many of a sequence's tokens are patches of images.
        contents: of the sequences of a step in their order, where they are known; they say more than the other two.
    """

    document_tokens: int
    image_tokens: int
    contents: tuple[Content, ...] = ()

    @classmethod
    def of(cls, config: StageConfig, document_tokens: int | None = None, images: float | None = None) -> Workload:
        """One document a sequence and the stage's usual share of images, unless they are given."""
        share = image_share(config) if images is None else images
        length = config.sequence_length
        return cls(min(document_tokens or length, length), round(length * share))

    @classmethod
    def known(cls, contents: Sequence[Content]) -> Workload:
        """Of the sequences of a step. Documents of equal length have the same sum of squares, and as many images."""
        lengths = [length for one in contents for length in one.documents]
        image_tokens = sum(sum(one.images) for one in contents) / len(contents)
        return cls(round(sum(length**2 for length in lengths) / sum(lengths)), round(image_tokens), tuple(contents))

    def documents(self, tokens: int) -> tuple[int, ...]:
        """Lengths of the documents of a sequence that nothing more is known of."""
        whole, rest = divmod(tokens, self.document_tokens)
        return (self.document_tokens,) * whole + (rest,) * bool(rest)

    def images(self, architecture: Architecture) -> tuple[int, ...]:
        """Patches of the images of such a sequence: the largest that the tower reads, and a rest."""
        size = largest_image(architecture, self.image_tokens)
        whole, rest = divmod(self.image_tokens, size) if size else (0, 0)
        return (size,) * whole + (rest,) * bool(rest)

    def of_a_step(self, config: StageConfig, architecture: Architecture) -> tuple[Content, ...]:
        """The sequences of a step in their order; one that stands for all where nothing more is known."""
        return self.contents or (Content(self.documents(config.sequence_length), self.images(architecture), True),)


class Part(NamedTuple):
    """What a context-parallel rank sees of a sequence.

    Attributes:
        pairs: of a query and a key that it sees; those on the diagonal count half, as in the FLOPs rule.
        keys: that its blocks see; those that both see count twice.
    """

    pairs: float
    keys: float


def parts_seen(documents: Sequence[int], ranks: int) -> list[Part]:
    """What each of so many context-parallel ranks sees of a sequence of these documents."""
    bounds, parts = [0, *accumulate(documents)], []
    for rank in range(ranks):
        blocks = blocks_of_rank(bounds[-1], ranks, rank)
        seen = [seen_by_block(bounds, block) for block in blocks]
        pieces = [pair for one in seen for pair in zip(one.query_lengths, one.key_lengths, strict=True)]
        pairs = sum(queries * (keys - queries / 2) for queries, keys in pieces)
        parts.append(Part(pairs, sum(block.stop - one.first_key for block, one in zip(blocks, seen, strict=True))))
    return parts


@lru_cache(maxsize=1024)
def busiest_part(content: Content, ranks: int) -> Part:
    """What the context-parallel rank with most of it sees: the most pairs, and the most keys."""
    possible = _beginning_anywhere(content.documents) if content.assumed else [content.documents]
    seen = [parts_seen(documents, ranks) for documents in possible]
    # As a share of all pairs, of which a sequence that begins within a document has fewer.
    share = fmean(max(part.pairs for part in parts) / sum(part.pairs for part in parts) for parts in seen)
    return Part(share * content.squared_lengths / 2, fmean(max(part.keys for part in parts) for parts in seen))


def _beginning_anywhere(documents: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The same number of tokens in documents of the same length, of which the first has lost some of its beginning."""
    length, tokens = documents[0], sum(documents)
    if length == tokens:
        return [documents]
    cut = []
    for number in range(1, _BEGINNINGS + 1):
        first = max(length * number // _BEGINNINGS, 1)
        whole, rest = divmod(tokens - first, length)
        cut.append((first,) + (length,) * whole + (rest,) * bool(rest))
    return cut
