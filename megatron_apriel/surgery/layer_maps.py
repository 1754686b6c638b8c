"""Which source layer each layer of a deeper decoder comes from.

Depth upscaling repeats layers of a trained decoder and trains on. The published recipe (Apriel-1.5, 40 -> 48) does not
say which layers; its sibling's report says that repeating *intermediate* layers starts at the lowest loss. So the map
is a choice. For 8 layers and 2 copies, with copies marked::

    spread-middle   0 1 2 3 3* 4 5 5* 6 7      default: each copy right after its source, evenly over the middle half
    block           0 1 2 3 4 3* 4* 5 6 7      one contiguous run, in the middle, is repeated (SOLAR, arXiv 2312.15166)
    interval        0 1 2 3 3* 4 5 6 7 7*      a copy after every k-th layer (LLaMA-Pro, arXiv 2401.02415)
    top-half        0 1 2 3 4 5 5* 6 7 7*      copies in the upper half only (after OpT-DeUS)

Any other map is given as a list of source layers. It must be a deeper version of the same decoder: every source layer
appears, and they appear for the first time in their own order. The first appearance is the original and later ones
are copies, so that with copies that add nothing (``identity``) the decoder computes what it did. Pure arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from megatron_apriel.errors import ConfigError


@dataclass(frozen=True)
class LayerMap:
    """``sources[i]`` is the source layer of layer i.

    Attributes:
        name: as given on the command line; ``list`` for an explicit one.
        sources: one source layer per layer of the result.
    """

    name: str
    sources: tuple[int, ...]

    @property
    def copies(self) -> tuple[bool, ...]:
        """Per layer of the result: whether it is a copy, not the original, of its source."""
        first = {source: layer for layer, source in reversed(list(enumerate(self.sources)))}
        return tuple(first[source] != layer for layer, source in enumerate(self.sources))

    @property
    def places(self) -> dict[int, list[int]]:
        """By source layer: its layers in the result, the original first."""
        places: dict[int, list[int]] = {}
        for layer, source in enumerate(self.sources):
            places.setdefault(source, []).append(layer)
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


def layer_map(kind: str, source_layers: int, target_layers: int) -> LayerMap:
    """The map from ``source_layers`` to ``target_layers``.

    Args:
        kind: one of ``MAP_NAMES``, or a list of source layers such as ``0,1,2,2,3``.
        source_layers: layers of the source's decoder.
        target_layers: layers of the result; as many as the source has gives an unchanged decoder.

    Raises:
        ConfigError: a target below the source, more copies than the map can place, a list that is no map.
    """
    if target_layers < source_layers:
        raise ConfigError(
            f"--num-layers {target_layers} is below the source's {source_layers} decoder layers.",
            "Upscaling repeats layers; it never removes one.",
            f"Give {source_layers} or more.",
        )
    if kind not in _RULES:
        return LayerMap("list", _explicit(kind, source_layers, target_layers))
    copies = target_layers - source_layers
    possible = most_copies(kind, source_layers)
    if copies > possible:
        others = [
            f"{name} (up to {source_layers + most_copies(name, source_layers)} layers)"
            for name in MAP_NAMES
            if most_copies(name, source_layers) >= copies
        ]
        raise ConfigError(
            f"the map {kind} cannot place {copies} copies among {source_layers} layers.",
            f"It repeats a layer at most once and can place {possible}: {source_layers + possible} layers at most.",
            f"Possible for {target_layers} layers: {', '.join([*others, 'an explicit list of source layers'])}.",
        )
    if not copies:
        return LayerMap(kind, tuple(range(source_layers)))
    return LayerMap(kind, tuple(_RULES[kind][0](source_layers, copies)))


def _explicit(text: str, source_layers: int, target_layers: int) -> tuple[int, ...]:
    fix = f"Maps: {', '.join(MAP_NAMES)}, or a list of source layers such as 0,1,2,2,3."
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise ConfigError(f"--map {text!r} is no layer map.", fix=fix)
    sources = tuple(int(part) for part in parts)
    outside = sorted({source for source in sources if source >= source_layers})
    if outside:
        raise ConfigError(
            f"--map names layer {', '.join(map(str, outside))}, and the source has layers 0 to {source_layers - 1}.",
            fix=fix,
        )
    if len(sources) != target_layers:
        raise ConfigError(
            f"--map lists {len(sources)} layers and --num-layers is {target_layers}.", fix="Make them agree."
        )
    missing = sorted(set(range(source_layers)) - set(sources))
    if missing:
        raise ConfigError(
            f"--map leaves out layer {', '.join(map(str, missing))}.",
            "Every layer of the source must be in the result.",
        )
    firsts = list(dict.fromkeys(sources))
    for layer, first in enumerate(firsts):
        if first != layer:
            raise ConfigError(
                f"--map names layer {first} before layer {layer}.",
                "The first appearances are the original decoder, whose layers must keep their order.",
            )
    return sources
