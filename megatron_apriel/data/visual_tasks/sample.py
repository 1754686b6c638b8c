"""A sample: question, pictures, answer, how it was made, and how the answer is found again.

Every sample carries a ``check``: a function that is given the pictures *as they will be read back from their files* and
finds the answer from them, by another way than the one that made it wherever pixels allow (the patch that fits the hole
best, the order that restores the picture, the one that differs). A sample whose check disagrees is a defect of this
program and stops it. A sample that could have two answers is no defect: its maker raises Ambiguous, and it is drawn
again from another picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from megatron_apriel.data.visual_tasks.coco import Annotations
from megatron_apriel.data.visual_tasks.pixels import Picture, Pixels, random_box
from megatron_apriel.data.visual_tasks.raw_images import RawImages
from megatron_apriel.data.visual_tasks.refusals import Ambiguous, Unreadable

LETTERS = "ABCDEFGH"
"""Names of options; no task has more."""

_REPLACEMENTS = 20  # images drawn instead of damaged ones before a folder counts as damaged


@dataclass(frozen=True)
class Sample:
    """One question with its answer.

    Attributes:
        parts: the user's turn: text, and pictures where they stand in it.
        reply: the assistant's turn.
        answer: the answer for machines; equals what ``check`` finds. Any JSON value.
        construction: how it was made, as JSON.
        check: finds the answer in the decoded pictures, in the order of ``parts``.
    """

    parts: tuple[str | Picture, ...]
    reply: str
    answer: Any
    construction: dict[str, Any]
    check: Callable[[Sequence[Pixels]], Any]

    @property
    def pictures(self) -> list[Picture]:
        return [part for part in self.parts if not isinstance(part, str)]


@dataclass
class Draw:
    """What a maker of samples may use.

    Attributes:
        images: the raw images.
        annotations: their COCO annotations, if given.
        difficulty: 0 to 1.
        rng: everything that may differ when an ambiguous sample is drawn again.
        choices: what must not: the answer's position among the options and the like. It is the same at every attempt,
            so that rejections cannot favour an answer. Draw from it first and always in the same order.
        used: names of the raw images used so far.
        damaged: files that turned out damaged, and how.
    """

    images: RawImages
    annotations: Annotations | None
    difficulty: float
    rng: np.random.Generator
    choices: np.random.Generator
    used: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)

    def picture(self) -> Picture:
        """A raw image drawn at random, upright RGB, its longer side exactly ``images.max_side`` pixels."""
        drawn = (int(self.rng.integers(len(self.images))) for _ in range(_REPLACEMENTS))
        for picture in self._readable(drawn):
            return picture
        raise Ambiguous("the image files are damaged")

    def others(self, number: int) -> list[Picture]:
        """``number`` pictures (fewer if there are not enough), none of them used in this sample yet."""
        used = set(self.used)
        total = len(self.images)
        # Enough of them that those in use and those damaged can be passed over, but not all of a large folder.
        drawn = self.rng.choice(total, size=min(2 * number + len(used) + _REPLACEMENTS, total), replace=False)
        free = (int(index) for index in drawn if self.images.names[int(index)] not in used)
        return list(islice(self._readable(free), number))

    def _readable(self, numbers: Iterable[int]) -> Iterator[Picture]:
        """The raw images of those numbers, cut to at most twice as long as wide; damaged ones are noted."""
        for index in numbers:
            try:
                picture = self.images.load(index)
            except Unreadable as reason:
                self.damaged[reason.name] = reason.damage
                continue
            self.used.append(self.images.names[index])
            yield _cut_to_aspect(picture, self.rng)

    def phrase(self, templates: Sequence[str], **values: object) -> str:
        """One of several wordings of a question, filled in."""
        return templates[int(self.rng.integers(len(templates)))].format(**values)


def lettered(pictures: Sequence[Picture]) -> list[str | Picture]:
    """Parts that show options: "A:", picture, "B:", picture, ..."""
    return [part for letter, picture in zip(LETTERS, pictures, strict=False) for part in (f"\n{letter}: ", picture)]


def cell_name(row: int, column: int) -> str:
    """How answers write a cell of a grid; rows and columns are counted from 0 here and from 1 there."""
    return f"row {row + 1}, column {column + 1}"


def _cut_to_aspect(picture: Picture, rng: np.random.Generator) -> Picture:
    longest = 2 * min(picture.size)
    width, height = min(picture.width, longest), min(picture.height, longest)
    return picture.crop(random_box(picture, width, height, rng))
