"""Every parameter of the Megatron model: what it is put together from, and how tensor parallelism divides it.

q, k and v are one matrix, ordered by key-value group (the group's query heads, its key head, its value head), so that
tensor-parallel ranks own whole groups by taking a run of rows. gate and up are one matrix too, gate above up, of which
a rank owns a run of *each half*.

A parameter is described as an assembly of row ranges of Hugging Face's tensors (:class:`Parameter`), and a
tensor-parallel rank's shard of it as row and column ranges (:class:`Slice`). These are plain numbers: whoever has a way
to read a slice, from a file or from an array, can build a shard. No torch, no numpy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from megatron_apriel.errors import CheckpointError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.tensor_names import (
    DECODER,
    HEAD,
    PROJECTOR,
    TOWER,
    Weight,
    decoder_layers,
    tower_layers,
    weights,
)


class Split(StrEnum):
    """How tensor parallelism divides a parameter."""

    REPLICATED = "every rank holds all of it"
    ROWS = "each rank holds a run of rows"
    HALVES = "each rank holds a run of rows of the upper half, and the same of the lower"
    COLUMNS = "each rank holds a run of columns"


@dataclass(frozen=True)
class Slice:
    """Rows ``start`` to ``stop`` of a weight seen as a matrix, and of these the ``columns`` if not all."""

    weight: str
    start: int
    stop: int
    columns: tuple[int, int] | None = None


@dataclass(frozen=True)
class Parameter:
    """One Megatron parameter, whole: its key in a distributed checkpoint and what it is put together from.

    Attributes:
        key: name with the *global* number of the layer, in the spelling of Transformer Engine's layers.
        shape: of all tensor-parallel ranks together.
        pieces: row ranges of Hugging Face's tensors; laid one below the other they are the parameter.
        split: how tensor parallelism divides it.
        unit: rows that no rank boundary may cut (a key-value group of q, k and v).
    """

    key: str
    shape: tuple[int, ...]
    pieces: tuple[Slice, ...]
    split: Split = Split.REPLICATED
    unit: int = 1

    def row_ranges(self, rank: int, size: int) -> list[tuple[int, int]]:
        """The row ranges of the whole parameter that tensor-parallel ``rank`` of ``size`` holds, in its order."""
        rows = self.shape[0]
        if self.split in (Split.REPLICATED, Split.COLUMNS):
            return [(0, rows)]
        parts = 2 if self.split is Split.HALVES else 1
        self._check_divides(rows // parts, size * self.unit, "rows")
        share = rows // parts // size
        starts = [part * (rows // parts) + rank * share for part in range(parts)]
        return [(start, start + share) for start in starts]

    def column_range(self, rank: int, size: int) -> tuple[int, int] | None:
        """The columns that ``rank`` of ``size`` holds; None means all."""
        if self.split is not Split.COLUMNS:
            return None
        self._check_divides(self.shape[1], size, "columns")
        share = self.shape[1] // size
        return rank * share, (rank + 1) * share

    def shard_shape(self, size: int) -> tuple[int, ...]:
        """The shape that each of ``size`` tensor-parallel ranks holds."""
        rows = sum(stop - start for start, stop in self.row_ranges(0, size))
        columns = self.column_range(0, size)
        return (rows, columns[1] - columns[0]) if columns else (rows, *self.shape[1:])

    def shard(self, rank: int, size: int) -> list[Slice]:
        """The slices that, laid one below the other, are the shard of tensor-parallel ``rank`` of ``size``."""
        columns = self.column_range(rank, size)
        return [
            Slice(piece.weight, piece.start, piece.stop, columns)
            for start, stop in self.row_ranges(rank, size)
            for piece, _ in self.pieces_between(start, stop)
        ]

    def pieces_between(self, start: int, stop: int) -> Iterator[tuple[Slice, int]]:
        """The pieces, cut to rows ``start`` to ``stop`` of the parameter, each with the row at which it begins."""
        top = 0
        for piece in self.pieces:
            first, last = max(start, top), min(stop, top + piece.stop - piece.start)
            if first < last:
                offset = piece.start - top
                yield Slice(piece.weight, first + offset, last + offset), first
            top += piece.stop - piece.start

    def _check_divides(self, number: int, divisor: int, what: str) -> None:
        if number % divisor:
            raise CheckpointError(
                f"{self.key}: {number} {what} cannot be divided over {divisor // self.unit} tensor-parallel ranks"
                + (f" in whole groups of {self.unit}." if self.unit > 1 else "."),
                fix="parallel.tensor must divide the key-value heads, the feed-forward size and the vocabulary.",
            )


def parameters(architecture: Architecture) -> dict[str, Parameter]:
    """Every parameter of the Megatron model of this shape, by key, in the order of the computation."""
    return {parameter.key: parameter for parameter in _parameters(architecture)}


def _parameters(architecture: Architecture) -> Iterator[Parameter]:
    table = weights(architecture)

    def whole(key: str, name: str, split: Split = Split.REPLICATED) -> Parameter:
        rows, columns = table[name].matrix
        shape = (rows,) if len(table[name].shape) == 1 else (rows, columns)
        return Parameter(key, shape, (Slice(name, 0, rows),), split)

    tower, projector, decoder = architecture.tower, architecture.projector, architecture.decoder
    if tower is not None and projector is not None:
        yield whole("tower.patch_embedding.weight", f"{TOWER}patch_conv.weight")
        yield whole("tower.pre_norm.weight", f"{TOWER}ln_pre.weight")
        for layer in range(tower.num_layers):
            names, group = tower_layers().of(layer), (1, tower.head_dim)
            yield from _layer(table, f"tower.transformer.layers.{layer}.", names, group, parallel=False)
        for suffix in ("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"):
            if projector.bias or suffix.endswith("weight"):
                yield whole(f"projector.{suffix}", f"{PROJECTOR}{suffix}")
    yield whole("embedding.word_embeddings.weight", f"{DECODER}embed_tokens.weight", Split.ROWS)
    group = (decoder.num_heads // decoder.num_kv_heads, decoder.head_dim)
    for layer in range(decoder.num_layers):
        names = decoder_layers().of(layer)
        yield from _layer(table, f"decoder.layers.{layer}.", names, group, parallel=True)
    yield whole("decoder.final_layernorm.weight", f"{DECODER}norm.weight")
    yield whole("output_layer.weight", f"{HEAD}weight", Split.ROWS)


def _layer(
    table: dict[str, Weight], key: str, names: dict[str, str], group: tuple[int, int], parallel: bool
) -> Iterator[Parameter]:
    """The six parameters of a layer.

    Args:
        table: all weights.
        key: how the keys of its parameters begin.
        names: of its weights, by role.
        group: query heads per key-value head, and the size of a head.
        parallel: whether tensor parallelism divides it.
    """
    rows, columns, halves = (
        (Split.ROWS, Split.COLUMNS, Split.HALVES)
        if parallel
        else (Split.REPLICATED, Split.REPLICATED, Split.REPLICATED)
    )
    q, k, v, o = (names[role] for role in "qkvo")
    norm, second_norm = names["attention norm"], names["mlp norm"]
    gate, up, down = (names[role] for role in ("gate", "up", "down"))
    heads, head = group
    groups = table[k].shape[0] // head
    qkv = tuple(
        piece
        for number in range(groups)
        for piece in (
            Slice(q, number * heads * head, (number + 1) * heads * head),
            Slice(k, number * head, (number + 1) * head),
            Slice(v, number * head, (number + 1) * head),
        )
    )
    width, inner = table[down].shape
    unit = (heads + 2) * head
    yield Parameter(f"{key}self_attention.linear_qkv.layer_norm_weight", (width,), (Slice(norm, 0, width),))
    yield Parameter(
        f"{key}self_attention.linear_qkv.weight", (groups * unit, width), qkv, rows, unit if parallel else 1
    )
    yield Parameter(f"{key}self_attention.linear_proj.weight", table[o].shape, (Slice(o, 0, width),), columns)
    yield Parameter(f"{key}mlp.linear_fc1.layer_norm_weight", (width,), (Slice(second_norm, 0, width),))
    yield Parameter(
        f"{key}mlp.linear_fc1.weight", (2 * inner, width), (Slice(gate, 0, inner), Slice(up, 0, inner)), halves
    )
    yield Parameter(f"{key}mlp.linear_fc2.weight", table[down].shape, (Slice(down, 0, width),), columns)


NORM_KEYS = {
    "input_layernorm.": "self_attention.linear_qkv.layer_norm_",
    "pre_mlp_layernorm.": "mlp.linear_fc1.layer_norm_",
}
"""How the names of a layer's norms begin -> how their keys do. The keys are the names that Megatron gives them where
Transformer Engine fuses a norm with the linear layer after it."""

_DECODER_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.")


def parameter_key(local_name: str, first_layer: int) -> str:
    """The key of a model chunk's parameter.

    Args:
        local_name: as ``named_parameters`` gives it: layers numbered from 0 in each chunk, norms spelled as torch's or
            as Transformer Engine's layers spell them.
        first_layer: global number of the chunk's first decoder layer.
    """
    name = _DECODER_LAYER.sub(lambda match: f"decoder.layers.{int(match[1]) + first_layer}.", local_name)
    for norm, key in NORM_KEYS.items():
        if name.endswith(f".{norm}weight"):
            return name.removesuffix(f"{norm}weight") + f"{key}weight"
    return name
