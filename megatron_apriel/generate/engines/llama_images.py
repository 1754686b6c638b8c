"""Which images llama.cpp cuts as training did, and which otherwise.

Training, as transformers does, shrinks what is longer than a limit, and then stretches both sides up to whole patches
by bicubic interpolation. llama.cpp knows no longest side: it rounds both sides to the nearest number of patches, by
bilinear interpolation, and shrinks what has more patches than a limit. So both leave an image alone, pixel by pixel,
where its sides are whole patches and within the limit; others get other pixels, and often another number of tokens.
"""

from __future__ import annotations

import io
import math
from dataclasses import replace

from PIL import Image

from megatron_apriel.data.corpus.image_size import patch_grid
from megatron_apriel.generate.conversation import Picture, Question, Turn


def size_rule(patch: int, longest: int) -> str:
    """What a person should know, as one sentence.

    Args:
        patch: side of a patch, in pixels.
        longest: side up to which training shrank nothing.
    """
    return (
        f"llama.cpp sees an image as training did where both sides are multiples of {patch} pixels and at most"
        f" {longest}; it resizes others otherwise, so resize them before they are sent"
    )


def most_patches(patch: int, longest: int) -> int:
    """Of the largest image that training left alone: the limit to give to llama.cpp."""
    return (longest // patch) ** 2


def trained_size(height: int, width: int, patch: int, longest: int) -> tuple[int, int]:
    """Height and width, in pixels, of an image of this size as the tower saw it in training."""
    rows, columns = patch_grid(height, width, longest, patch)
    return rows * patch, columns * patch


def llama_size(height: int, width: int, patch: int, longest: int) -> tuple[int, int]:
    """The same in llama.cpp (``calc_size_preserved_ratio`` of its mtmd library) with the limit of most_patches."""
    most = most_patches(patch, longest) * patch**2
    rows, columns = (max(1, math.floor(side / patch + 0.5)) for side in (height, width))
    if rows * columns * patch**2 > most:
        ratio = math.sqrt(height * width / most)
        rows, columns = (max(1, math.floor(side / ratio / patch)) for side in (height, width))
    return rows * patch, columns * patch


def is_cut_alike(height: int, width: int, patch: int, longest: int) -> bool:
    """Whether llama.cpp hands the tower the pixels that training would."""
    return trained_size(height, width, patch, longest) == (height, width) == llama_size(height, width, patch, longest)


def as_trained(question: Question, patch: int, longest: int) -> Question:
    """A question whose pictures are resized as in training, so that llama.cpp leaves them alone."""

    def content(turn: Turn) -> tuple[str | Picture, ...]:
        return tuple(_resized(part, patch, longest) if isinstance(part, Picture) else part for part in turn.content)

    turns = tuple(replace(turn, content=content(turn)) for turn in question.turns)
    return replace(question, turns=turns)


def _resized(picture: Picture, patch: int, longest: int) -> Picture:
    height, width = trained_size(picture.height, picture.width, patch, longest)
    if (height, width) == (picture.height, picture.width):
        return picture
    with Image.open(io.BytesIO(picture.data)) as image:
        resized = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    resized.save(file, "PNG")
    return Picture.from_bytes(file.getvalue())
