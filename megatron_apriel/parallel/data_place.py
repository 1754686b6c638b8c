"""Which part of the data a rank reads: which sequences, which of their tokens, which of their images.

Three kinds of parallelism divide the data, each another way:

* **data**: whole sequences. Of a step's sequences in their order, rank r of d takes every d-th from number r on;
* **context**: the tokens of a sequence of S. It is cut into 2 C blocks, of which rank r of C owns numbers r and
  2 C - 1 - r (``context_parts.py``): S / C tokens;
* **tensor x context**: the images of a sequence, whole image by whole image (``image_shares.py``): all of these ranks
  hold the tower, and each runs its share.

Pipeline ranks read the same tokens. Only the first has the tower and decodes images; all learn where images lie.
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_apriel.parallel.layout import Layout


@dataclass(frozen=True)
class DataPlace:
    """A rank's part of the data; by default all of it.

    Attributes:
        data_rank, data_size: this rank's number among the data-parallel ranks, and theirs.
        share, shares: its number among the ranks that share a sequence's images, and theirs.
        context, contexts: its number among the ranks that divide a sequence's tokens, and theirs.
        with_images: whether it decodes its share of the images. A rank without a tower does not.

    Raises:
        ValueError: a number that is not below its size.
    """

    data_rank: int = 0
    data_size: int = 1
    share: int = 0
    shares: int = 1
    context: int = 0
    contexts: int = 1
    with_images: bool = True

    def __post_init__(self) -> None:
        for what, number, size in (
            ("data_rank", self.data_rank, self.data_size),
            ("share", self.share, self.shares),
            ("context", self.context, self.contexts),
        ):
            if not 0 <= number < size:
                raise ValueError(f"{what}={number} is not one of {size}")

    @classmethod
    def of(cls, layout: Layout, rank: int) -> DataPlace:
        """The part of global ``rank`` in a layout."""
        place = layout.coordinates(rank)
        return cls(
            data_rank=place.data,
            data_size=layout.data,
            share=place.context * layout.tensor + place.tensor,
            shares=layout.tensor * layout.context,
            context=place.context,
            contexts=layout.context,
            with_images=place.pipeline == 0,
        )

    @property
    def is_first(self) -> bool:
        """Whether no rank of a smaller number reads the data: the one that speaks of it."""
        return self.data_rank == 0 and self.share == 0 and self.with_images

    def sequences(self, first: int, stop: int) -> range:
        """Numbers of this rank's sequences out of ``first`` to ``stop - 1``, in their order."""
        return range(first + self.data_rank, stop, self.data_size)


WHOLE = DataPlace()
"""All of the data: of a process alone."""
