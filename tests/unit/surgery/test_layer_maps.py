"""Layer maps: the rules, for many sizes, and what is refused."""

from __future__ import annotations

from itertools import pairwise

import pytest

from megatron_apriel.errors import ConfigError
from megatron_apriel.surgery.layer_maps import MAP_NAMES, layer_map, most_copies

PAIRS = [(source, target) for source in (*range(1, 14), 24, 32, 40) for target in range(source, 2 * source + 1)]


@pytest.mark.parametrize("name", MAP_NAMES)
def test_every_map_is_the_same_decoder_made_deeper(name: str) -> None:
    placed = 0
    for source, target in PAIRS:
        if target - source > most_copies(name, source):
            continue
        layers = layer_map(name, source, target)
        assert len(layers.originals) == target
        assert sum(layers.copies) == target - source
        originals = [layer for layer, copy in zip(layers.originals, layers.copies, strict=True) if not copy]
        assert originals == list(range(source))
        assert sorted(place for places in layers.places.values() for place in places) == list(range(target))
        assert all(layers.originals[place] == layer for layer, places in layers.places.items() for place in places)
        assert not any(layers.copies[places[0]] for places in layers.places.values())
        assert max(layers.originals.count(layer) for layer in range(source)) <= 2
        placed += 1
    assert placed >= 100


def test_spread_middle_leaves_the_outer_quarters_alone_and_is_even() -> None:
    for source, target in PAIRS:
        if target - source > most_copies("spread-middle", source):
            continue
        sources = layer_map("spread-middle", source, target).originals
        copied = [layer for layer in range(source) if sources.count(layer) == 2]
        assert all(source / 4 <= layer and layer + 1 <= 3 * source / 4 for layer in copied)
        assert all(sources[sources.index(layer) + 1] == layer for layer in copied)
        gaps = [second - first for first, second in pairwise(copied)]
        assert not gaps or max(gaps) - min(gaps) <= 1
    assert layer_map("spread-middle", 8, 10).originals == (0, 1, 2, 3, 3, 4, 5, 5, 6, 7)
    recipe = layer_map("spread-middle", 40, 48)
    assert [layer for layer in range(40) if recipe.originals.count(layer) == 2] == [11, 13, 16, 18, 21, 23, 26, 28]


def test_block_is_solar() -> None:
    # SOLAR: 32 layers, the last 8 of one model and the first 8 of its twin removed, gives 48.
    assert layer_map("block", 32, 48).originals == (*range(24), *range(8, 32))
    assert layer_map("block", 4, 8).originals == (0, 1, 2, 3, 0, 1, 2, 3)
    for source, target in PAIRS:
        copies = layer_map("block", source, target).copies
        run = [layer for layer, copy in enumerate(copies) if copy]
        assert run == list(range(run[0], run[0] + len(run))) if run else target == source


def test_interval_is_llama_pro() -> None:
    # LLaMA-Pro: 32 layers in 8 groups of 4, a copy of its last layer after each.
    expected = [layer for layer in range(32) for _ in range(2 if layer % 4 == 3 else 1)]
    assert list(layer_map("interval", 32, 40).originals) == expected


def test_top_half_copies_in_the_upper_half_only() -> None:
    for source in range(2, 41):
        sources = layer_map("top-half", source, source + source // 2).originals
        copied = [layer for layer in range(source) if sources.count(layer) == 2]
        assert copied == list(range(source - source // 2, source))


@pytest.mark.parametrize("text", ["0,1,2,2,3", "0,1,2,3,0", "0, 0, 1, 2, 3", "0,1,0,2,3"])
def test_lists_that_are_maps(text: str) -> None:
    layers = layer_map(text, 4, 5)
    assert layers.originals == tuple(map(int, text.split(",")))
    assert sum(layers.copies) == 1


@pytest.mark.parametrize(
    ("text", "source", "target", "message"),
    [
        ("spread-middle", 8, 7, "--num-layers 7 is below the model's 8"),
        ("spread-middle", 8, 13, r"cannot place 5 copies among 8 layers\.\n.* can place 4: 12 layers at most"),
        ("spread-middle", 8, 13, r"Possible for 13 layers: block \(up to 16 layers\), interval"),
        ("top-half", 9, 14, "can place 4: 13 layers at most"),
        ("block", 3, 7, r"can place 3: 6 layers at most\.\n.*an explicit list"),
        ("spread-middle", 2, 3, "can place 0"),
        ("spread", 4, 5, "'spread' is no layer map"),
        ("", 4, 5, "'' is no layer map"),
        ("0,1,,2,3", 4, 5, "is no layer map"),
        ("0,1,-1,2,3", 4, 5, "is no layer map"),
        ("0,1,2,3,4", 4, 5, "names layer 4, and the model has layers 0 to 3"),
        ("0,1,2,3", 4, 5, "lists 4 layers and --num-layers is 5"),
        ("0,1,1,3,3", 4, 5, "leaves out layer 2"),
        ("0,2,1,1,3", 4, 5, "names layer 2 before layer 1"),
    ],
)
def test_refused(text: str, source: int, target: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        layer_map(text, source, target)
