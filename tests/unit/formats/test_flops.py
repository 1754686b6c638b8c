"""The FLOPs rule, against the published figures and against products counted one by one."""

from __future__ import annotations

import pytest

from megatron_apriel.config.training_sections import TrainedParts
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.flops import image_flops, model_flops, step_flops

EVERYTHING = TrainedParts(tower=1, projector=1, decoder=1)


@pytest.mark.parametrize(("length", "gigaflops"), [(8192, 92.2), (16384, 101.9), (32768, 121.2), (49152, 140.5)])
def test_figures_of_the_recipe(length: int, gigaflops: float) -> None:
    architecture = Architecture.from_preset("apriel-15b")
    flops = model_flops(architecture, length, length**2, [], EVERYTHING)
    assert flops / length / 1e9 == pytest.approx(gigaflops, abs=0.05)


def counted_forward(architecture: Architecture, documents: list[int], images: list[int]) -> dict[str, float]:
    """Forward operations of each part, from a list of its matrix products."""
    decoder, tower, projector = architecture.decoder, architecture.tower, architecture.projector
    assert tower is not None and projector is not None
    tokens, hidden = sum(documents), decoder.hidden_size
    query, key = decoder.num_heads * decoder.head_dim, decoder.num_kv_heads * decoder.head_dim
    layer = [(hidden, query), (hidden, key), (hidden, key), (query, hidden)]
    layer += [(hidden, decoder.ffn_hidden_size)] * 2 + [(decoder.ffn_hidden_size, hidden)]
    linear = decoder.num_layers * sum(2 * tokens * rows * columns for rows, columns in layer)
    linear += 2 * tokens * hidden * decoder.vocab_size
    attention = 0.0
    for length in documents:
        scores = values = 2 * length * length * decoder.head_dim
        attention += decoder.num_layers * decoder.num_heads * (scores + values) / 2
    width, patches = tower.hidden_size, sum(images)
    tower_layer = [(width, width)] * 4 + [(width, tower.ffn_hidden_size)] * 2 + [(tower.ffn_hidden_size, width)]
    tower_linear = tower.num_layers * sum(2 * patches * rows * columns for rows, columns in tower_layer)
    tower_linear += 2 * patches * tower.patch_values * width
    tower_attention = tower.num_layers * sum(2 * 2 * number * number * width for number in images)
    projection = 2 * patches * (projector.input_size * hidden + hidden * hidden)
    return {
        "linear": linear,
        "attention": attention,
        "tower linear": tower_linear,
        "tower attention": tower_attention,
        "projector": projection,
    }


@pytest.mark.parametrize(
    ("trained", "factors"),
    [
        ({"tower": 1, "projector": 1, "decoder": 1}, (3, 3, 3, 3, 3)),
        ({"projector": 1, "decoder": 1}, (3, 3, 1, 1, 3)),
        ({"decoder": 1}, (3, 3, 1, 1, 1)),
        ({"projector": 1}, (2, 3, 1, 1, 3)),
        ({"tower": 1}, (2, 3, 3, 3, 2)),
    ],
)
def test_trained_and_frozen_parts(trained: dict[str, float], factors: tuple[int, ...]) -> None:
    architecture = Architecture.from_preset("tiny")
    documents, images = [100, 30, 7], [16, 60, 4]
    parts = counted_forward(architecture, documents, images).values()
    expected = sum(factor * part for factor, part in zip(factors, parts, strict=True))
    squared = sum(length**2 for length in documents)
    assert model_flops(architecture, sum(documents), squared, images, TrainedParts(**trained)) == expected


def test_packed_documents_cost_less_than_one() -> None:
    architecture = Architecture.from_preset("tiny")
    one = model_flops(architecture, 64, 64**2, [], EVERYTHING)
    two = model_flops(architecture, 64, 2 * 32**2, [], EVERYTHING)
    decoder = architecture.decoder
    assert one - two == 3 * decoder.num_layers * 2 * (64**2 - 2 * 32**2) * decoder.num_heads * decoder.head_dim


@pytest.mark.parametrize("shares", [1, 2])
def test_of_a_batch(shares: int) -> None:
    """A rank counts the images of all shares, whichever are its own."""
    import torch

    from megatron_apriel.batch import Batch, PackedImages

    architecture = Architecture.from_preset("tiny")
    none = torch.zeros(0, dtype=torch.int64)
    images = PackedImages(
        patches_PC=torch.zeros(24, architecture.tower.patch_values if architecture.tower else 0),
        rows_P=none,
        columns_P=none,
        cu_seqlens=torch.tensor([0, 8, 24], dtype=torch.int32),
        max_patches=16,
        share_sizes=(24,) * shares,
        slots_K=none,
        sum_squared_patches=(8**2 + 16**2) * shares,
    )
    token = torch.zeros(50, dtype=torch.int64)
    lengths = torch.tensor([0, 30, 50], dtype=torch.int32)
    batch = Batch(token, token, token, lengths, 30, 50, 0, 0, (0, 1), images)
    assert step_flops(architecture, EVERYTHING, batch) == model_flops(
        architecture, 50, 30**2 + 20**2, [8, 16] * shares, EVERYTHING
    )
    text = model_flops(architecture, 50, 30**2 + 20**2, [], EVERYTHING)
    assert image_flops(architecture, EVERYTHING, batch) == step_flops(architecture, EVERYTHING, batch) - text
