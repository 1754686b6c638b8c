"""Which layer of the given decoder each layer of a deeper one is made of.

Depth upscaling repeats layers of a trained decoder and trains on. The published recipe (Apriel-1.5, 40 -> 48) does not
say which layers; its sibling's report says that repeating *intermediate* layers starts at the lowest loss. So the map
is a choice. For 8 layers and 2 copies, with copies marked::

    spread-middle   0 1 2 3 3* 4 5 5* 6 7      default: each copy right after its original, evenly over the middle half
    block           0 1 2 3 4 3* 4* 5 6 7      one contiguous run, in the middle, is repeated (SOLAR, arXiv 2312.15166)
    interval        0 1 2 3 3* 4 5 6 7 7*      a copy after every k-th layer (LLaMA-Pro, arXiv 2401.02415)
    top-half        0 1 2 3 4 5 5* 6 7 7*      copies in the upper half only (after OpT-DeUS)

Any other map is written as a list of the given decoder's layers. It must be a deeper version of the same decoder: each
of its layers appears, and they appear for the first time in their own order. The first appearance is the original and
later ones are copies, so that with copies that add nothing (``identity``) the decoder computes what it did. Pure
arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from megatron_apriel.errors import ConfigError
from megatron_apriel.quantities import counted


@dataclass(frozen=True)
class LayerMap:
    """``originals[i]`` is the layer of the given decoder that layer i is made of.

    Attributes:
        name: as given on the command line; ``list`` for an explicit one.
        originals: one layer of the given decoder per layer of the result.
    """

    name: str
    originals: tuple[int, ...]

    @property
    def copies(self) -> tuple[bool, ...]:
        """Per layer of the result: whether it is a copy, not the original itself."""
        first = {original: layer for layer, original in reversed(list(enumerate(self.originals)))}
        return tuple(first[original] != layer for layer, original in enumerate(self.originals))

    @property
    def places(self) -> dict[int, list[int]]:
        """By layer of the given decoder: its layers in the result, the original first."""
        places: dict[int, list[int]] = {}
        for layer, original in enumerate(self.originals):
            places.setdefault(original, []).append(layer)
        return places


def _spread(first: int, stop: int, copies: int) -> list[int]:
    """``copies`` different layers of ``range(first, stop)``, evenly spaced and centred."""
    return [first + (2 * number + 1) * (stop - first) // (2 * copies) for number in range(copies)]


def _middle_half(layers: int) -> tuple[int, int]:
    quarter = -(-layers // 4)  # rounded up: at least a quarter stays untouched at either end
    return quarter, max(quarter, layers - quarter)


def _after(repeated: list[int], layers: int) -> list[int]:
    chosen = set(repeated)
    return [layer for layer in range(layers) for _ in range(2 if layer in chosen else 1)]


def _spread_middle(layers: int, copies: int) -> list[int]:
    return _after(_spread(*_middle_half(layers), copies), layers)


def _block(layers: int, copies: int) -> list[int]:
    # SOLAR cuts m layers off the end of one model and off the beginning of its twin: the run m to layers-m repeats.
    start = (layers - copies) // 2
    return [*range(start + copies), *range(start, layers)]


def _interval(layers: int, copies: int) -> list[int]:
    # Where the copies do not divide the layers, the intervals differ by one layer.
    return _after([(number + 1) * layers // copies - 1 for number in range(copies)], layers)


def _top_half(layers: int, copies: int) -> list[int]:
    first = layers - layers // 2
    return _after([first + (number + 1) * (layers - first) // copies - 1 for number in range(copies)], layers)


_RULES: dict[str, tuple[Callable[[int, int], list[int]], Callable[[int], int]]] = {
    "spread-middle": (_spread_middle, lambda layers: _middle_half(layers)[1] - _middle_half(layers)[0]),
    "block": (_block, lambda layers: layers),
    "interval": (_interval, lambda layers: layers),
    "top-half": (_top_half, lambda layers: layers // 2),
}
"""By name: the map for so many layers and copies, and how many copies it can place."""

MAP_NAMES = tuple(_RULES)


def most_copies(name: str, layers: int) -> int:
    """How many copies the named map can place in a decoder of ``layers`` layers."""
    return _RULES[name][1](layers)


def layer_map(kind: str, given_layers: int, target_layers: int) -> LayerMap:
    """The map from ``given_layers`` to ``target_layers``.

    Args:
        kind: one of ``MAP_NAMES``, or a list of the given decoder's layers such as ``0,1,2,2,3``.
        given_layers: layers of the given decoder.
        target_layers: layers of the result; as many as there are gives an unchanged decoder.

    Raises:
        ConfigError: fewer layers than there are, more copies than the map can place, a list that is no map.
    """
    if target_layers < given_layers:
        raise ConfigError(
            f"--num-layers {target_layers} is below the model's {counted(given_layers, 'decoder layer')}.",
            "Upscaling repeats layers; it never removes one.",
            f"Give {given_layers} or more.",
        )
    if kind not in _RULES:
        return LayerMap("list", _explicit(kind, given_layers, target_layers))
    copies = target_layers - given_layers
    possible = most_copies(kind, given_layers)
    if copies > possible:
        others = [
            f"{name} (up to {given_layers + most_copies(name, given_layers)} layers)"
            for name in MAP_NAMES
            if most_copies(name, given_layers) >= copies
        ]
        raise ConfigError(
            f"the map {kind} cannot place {counted(copies, 'copy', 'copies')} among {counted(given_layers, 'layer')}.",
            f"It repeats a layer at most once and can place {possible}: {given_layers + possible} layers at most.",
            f"Possible for {target_layers} layers: {', '.join([*others, 'an explicit list of layers'])}.",
        )
    if not copies:
        return LayerMap(kind, tuple(range(given_layers)))
    return LayerMap(kind, tuple(_RULES[kind][0](given_layers, copies)))


def _explicit(text: str, given_layers: int, target_layers: int) -> tuple[int, ...]:
    fix = f"Maps: {', '.join(MAP_NAMES)}, or a list of the model's layers such as 0,1,2,2,3."
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise ConfigError(f"--map {text!r} is no layer map.", fix=fix)
    originals = tuple(int(part) for part in parts)
    outside = sorted({layer for layer in originals if layer >= given_layers})
    if outside:
        raise ConfigError(
            f"--map names layer {', '.join(map(str, outside))}, and the model has layers 0 to {given_layers - 1}.",
            fix=fix,
        )
    if len(originals) != target_layers:
        raise ConfigError(
            f"--map lists {len(originals)} layers and --num-layers is {target_layers}.", fix="Make them agree."
        )
    missing = sorted(set(range(given_layers)) - set(originals))
    if missing:
        raise ConfigError(
            f"--map leaves out layer {', '.join(map(str, missing))}.",
            "Every layer of the model must be in the result.",
        )
    firsts = list(dict.fromkeys(originals))
    for layer, first in enumerate(firsts):
        if first != layer:
            raise ConfigError(
                f"--map names layer {first} before layer {layer}.",
                "The first appearances are the original decoder, whose layers must keep their order.",
            )
    return originals
