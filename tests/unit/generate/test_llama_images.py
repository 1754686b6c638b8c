"""Which images llama.cpp cuts as training did, against transformers' processor and sizes that its server told."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from megatron_apriel.generate.conversation import Picture, Question, Turn
from megatron_apriel.generate.engines.llama_images import (
    as_trained,
    is_cut_alike,
    llama_size,
    most_patches,
    size_rule,
    trained_size,
)

PATCH, LONGEST = 16, 256
SIZES = [
    (176, 256), (131, 200), (16, 16), (256, 256), (8, 300), (272, 256), (300, 200), (7, 5), (250, 33), (24, 40),
]  # fmt: skip


def picture(height: int, width: int) -> Picture:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return Picture.from_bytes(file.getvalue())


@pytest.mark.parametrize("size", SIZES)
def test_trained_sizes_are_those_of_transformers(size: tuple[int, int]) -> None:
    from transformers import PixtralImageProcessor

    processor = PixtralImageProcessor(
        size={"longest_edge": LONGEST}, patch_size={"height": PATCH, "width": PATCH}, do_rescale=False
    )
    given = Image.fromarray(np.zeros((*size, 3), np.uint8))
    assert trained_size(*size, PATCH, LONGEST) == tuple(
        processor(given, return_tensors="pt")["image_sizes"][0].tolist()
    )


@pytest.mark.parametrize(
    ("given", "there"),
    [
        ((176, 256), (176, 256)),
        ((131, 200), (128, 208)),
        ((24, 40), (32, 48)),
        ((7, 5), (16, 16)),
        ((64, 512), (64, 512)),
        ((300, 300), (256, 256)),
        ((512, 300), (320, 192)),
    ],
)
def test_sizes_in_llama(given: tuple[int, int], there: tuple[int, int]) -> None:
    """By hand from the rule of its source: to the nearest patch, and shrunk by the number of patches alone."""
    assert llama_size(*given, PATCH, LONGEST) == there


def test_whole_patches_within_the_limit_are_cut_alike() -> None:
    alike = [size for size in SIZES if is_cut_alike(*size, PATCH, LONGEST)]
    assert alike == [(176, 256), (16, 16), (256, 256)]
    # Both make one patch more of it, and not by the same interpolation.
    assert trained_size(24, 40, PATCH, LONGEST) == llama_size(24, 40, PATCH, LONGEST) != (24, 40)
    assert most_patches(PATCH, LONGEST) == 256 and most_patches(16, 1024) == 4096
    assert "multiples of 16 pixels and at most 256" in size_rule(PATCH, LONGEST)


def test_pictures_are_sent_as_training_saw_them() -> None:
    whole, broken = picture(32, 48), picture(131, 200)
    sent = as_trained(Question((Turn("user", ("a", whole, broken, "b")),)), PATCH, LONGEST).turns[0].content
    assert sent[0] == "a" and sent[3] == "b"
    assert sent[1] is whole
    assert isinstance(sent[2], Picture) and (sent[2].height, sent[2].width) == (144, 208)
    assert is_cut_alike(sent[2].height, sent[2].width, PATCH, LONGEST)
