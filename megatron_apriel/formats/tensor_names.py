"""The one table of weight names and layouts: Hugging Face <-> Megatron <-> Mistral's own form.

Three families of names for the same numbers meet here, and nowhere else:

* **Hugging Face.** Every tensor is called by its *legacy* LLaVA name (``language_model.model.layers.0...``) throughout
  this package, whatever the file calls it. Files come in three spellings: that one, the in-memory names of
  transformers 5 (``model.language_model.layers.0...``), and text-only Mistral's (``model.layers.0...``).
* **Mistral's own** (``consolidated.safetensors``). Other names, and the rows of q and k lie in another order. Rotary
  positions turn pairs of numbers: Mistral pairs neighbours (0, 1), (2, 3)...; Hugging Face pairs the two halves of a
  head (0, d/2), (1, d/2 + 1)... So row ``2 i + j`` of a head there is row ``j d/2 + i`` here. True of both towers.
* **Megatron.** q, k and v are one matrix, ordered by key-value group (the group's query heads, its key head, its value
  head), so that tensor-parallel ranks own whole groups by taking a run of rows. gate and up are one matrix too, gate
  above up, of which a rank owns a run of *each half*.

A Megatron parameter is described as an assembly of row ranges of Hugging Face tensors (:class:`Parameter`), and a
tensor-parallel rank's shard of it as row and column ranges (:class:`Slice`). These are plain numbers: whoever has a way
to read a slice, from a file or from an array, can build a shard. No torch, no numpy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import Any

from megatron_apriel.errors import CheckpointError
from megatron_apriel.formats.architecture import Architecture, DecoderArchitecture, TowerArchitecture


class Form(StrEnum):
    """How a set of files spells the names of weights."""

    LEGACY = "Hugging Face (language_model.model...)"
    TRANSFORMERS_5 = "Hugging Face (model.language_model...)"
    TEXT_ONLY = "Hugging Face, text only (model.layers...)"
    MISTRAL = "Mistral (layers..., vision_encoder...)"


_DECODER, _HEAD = "language_model.model.", "language_model.lm_head."
_TOWER, _PROJECTOR = "vision_tower.", "multi_modal_projector."

_SPELLING: dict[Form, dict[str, str]] = {
    Form.LEGACY: {_DECODER: _DECODER, _HEAD: _HEAD, _TOWER: _TOWER, _PROJECTOR: _PROJECTOR},
    Form.TRANSFORMERS_5: {
        _DECODER: "model.language_model.",
        _HEAD: "lm_head.",
        _TOWER: "model.vision_tower.",
        _PROJECTOR: "model.multi_modal_projector.",
    },
    Form.TEXT_ONLY: {_DECODER: "model.", _HEAD: "lm_head.", _TOWER: _TOWER, _PROJECTOR: _PROJECTOR},
}

_TELLTALES: dict[Form, tuple[str, ...]] = {
    Form.LEGACY: ("language_model.",),
    Form.TRANSFORMERS_5: ("model.language_model.",),
    Form.TEXT_ONLY: ("model.layers.", "model.embed_tokens."),
    Form.MISTRAL: ("layers.", "tok_embeddings.", "output."),
}
"""Prefixes of decoder weights that only one form has."""

_IMAGE_PREFIXES = (
    *(prefix for spelling in _SPELLING.values() for part, prefix in spelling.items() if part in (_TOWER, _PROJECTOR)),
    "vision_encoder.",
    "vision_language_adapter.",
)

_BUFFERS = re.compile(r"(rotary_emb|patch_positional_embedding)\.inv_freq$")
"""Tables of rotary frequencies that old versions of transformers stored; they follow from the configuration."""


@dataclass(frozen=True)
class Weight:
    """One tensor as Hugging Face stores it.

    Attributes:
        name: its legacy LLaVA name.
        shape: its shape.
        mistral: its name in Mistral's own form.
        interleaved_head: size of a head if Mistral's form interleaves the rows of each head, else 0.
    """

    name: str
    shape: tuple[int, ...]
    mistral: str
    interleaved_head: int = 0

    def stored_as(self, form: Form) -> str:
        """Its name in files of ``form``."""
        if form is Form.MISTRAL:
            return self.mistral
        for part, prefix in _SPELLING[form].items():
            if self.name.startswith(part):
                return prefix + self.name.removeprefix(part)
        raise ValueError(f"{self.name} belongs to no part of the model")

    @property
    def component(self) -> str:
        """``tower``, ``projector`` or ``decoder``."""
        return {_TOWER: "tower", _PROJECTOR: "projector"}.get(self.name.split(".")[0] + ".", "decoder")

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and numbers per row; a vector has one number per row, a convolution its whole filter."""
        return self.shape[0], prod(self.shape[1:])


def halves_from_pairs[Rows: Any](rows: Rows, head: int) -> Rows:
    """Whole heads in Mistral's order of rows, put into Hugging Face's; any array [rows, columns]."""
    ordered: Rows = rows.reshape(-1, head // 2, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
    return ordered


def pairs_from_halves[Rows: Any](rows: Rows, head: int) -> Rows:
    """Whole heads in Hugging Face's order of rows, put into Mistral's; inverse of :func:`halves_from_pairs`."""
    ordered: Rows = rows.reshape(-1, 2, head // 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
    return ordered


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


def weights(architecture: Architecture) -> dict[str, Weight]:
    """Every tensor of a checkpoint of this shape, by legacy name, in the order of the computation."""
    return {weight.name: weight for weight in _weights(architecture)}


def parameters(architecture: Architecture) -> dict[str, Parameter]:
    """Every parameter of the Megatron model of this shape, by key, in the order of the computation."""
    return {parameter.key: parameter for parameter in _parameters(architecture)}


def _weights(architecture: Architecture) -> Iterator[Weight]:
    tower, projector, decoder = architecture.tower, architecture.projector, architecture.decoder
    if tower is not None and projector is not None:
        width = tower.hidden_size
        patch = (width, tower.channels, tower.patch_size, tower.patch_size)
        yield Weight(f"{_TOWER}patch_conv.weight", patch, "vision_encoder.patch_conv.weight")
        yield Weight(f"{_TOWER}ln_pre.weight", (width,), "vision_encoder.ln_pre.weight")
        for layer in range(tower.num_layers):
            yield from _tower_layer(tower, layer)
        sizes = (projector.input_size, projector.output_size)
        for number, columns, adapter in ((1, sizes[0], "w_in"), (2, sizes[1], "w_out")):
            name, mistral = f"{_PROJECTOR}linear_{number}", f"vision_language_adapter.{adapter}"
            yield Weight(f"{name}.weight", (projector.output_size, columns), f"{mistral}.weight")
            if projector.bias:
                yield Weight(f"{name}.bias", (projector.output_size,), f"{mistral}.bias")
    table = (decoder.vocab_size, decoder.hidden_size)
    yield Weight(f"{_DECODER}embed_tokens.weight", table, "tok_embeddings.weight")
    for layer in range(decoder.num_layers):
        yield from _decoder_layer(decoder, layer)
    yield Weight(f"{_DECODER}norm.weight", (decoder.hidden_size,), "norm.weight")
    yield Weight(f"{_HEAD}weight", table, "output.weight")


def _decoder_layer(decoder: DecoderArchitecture, layer: int) -> Iterator[Weight]:
    hf, mistral = f"{_DECODER}layers.{layer}.", f"layers.{layer}."
    width, head = decoder.hidden_size, decoder.head_dim
    yield Weight(f"{hf}input_layernorm.weight", (width,), f"{mistral}attention_norm.weight")
    yield from _attention(f"{hf}self_attn", f"{mistral}attention", width, head, decoder.num_heads, decoder.num_kv_heads)
    yield Weight(f"{hf}post_attention_layernorm.weight", (width,), f"{mistral}ffn_norm.weight")
    yield from _feed_forward(f"{hf}mlp", f"{mistral}feed_forward", width, decoder.ffn_hidden_size)


def _tower_layer(tower: TowerArchitecture, layer: int) -> Iterator[Weight]:
    hf, mistral = f"{_TOWER}transformer.layers.{layer}.", f"vision_encoder.transformer.layers.{layer}."
    width, heads = tower.hidden_size, tower.num_heads
    yield Weight(f"{hf}attention_norm.weight", (width,), f"{mistral}attention_norm.weight")
    yield from _attention(f"{hf}attention", f"{mistral}attention", width, tower.head_dim, heads, heads)
    yield Weight(f"{hf}ffn_norm.weight", (width,), f"{mistral}ffn_norm.weight")
    yield from _feed_forward(f"{hf}feed_forward", f"{mistral}feed_forward", width, tower.ffn_hidden_size)


def _attention(hf: str, mistral: str, width: int, head: int, heads: int, kv_heads: int) -> Iterator[Weight]:
    yield Weight(f"{hf}.q_proj.weight", (heads * head, width), f"{mistral}.wq.weight", interleaved_head=head)
    yield Weight(f"{hf}.k_proj.weight", (kv_heads * head, width), f"{mistral}.wk.weight", interleaved_head=head)
    yield Weight(f"{hf}.v_proj.weight", (kv_heads * head, width), f"{mistral}.wv.weight")
    yield Weight(f"{hf}.o_proj.weight", (width, heads * head), f"{mistral}.wo.weight")


def _feed_forward(hf: str, mistral: str, width: int, inner: int) -> Iterator[Weight]:
    yield Weight(f"{hf}.gate_proj.weight", (inner, width), f"{mistral}.w1.weight")
    yield Weight(f"{hf}.up_proj.weight", (inner, width), f"{mistral}.w3.weight")
    yield Weight(f"{hf}.down_proj.weight", (width, inner), f"{mistral}.w2.weight")


def _parameters(architecture: Architecture) -> Iterator[Parameter]:
    table = weights(architecture)

    def whole(key: str, name: str, split: Split = Split.REPLICATED) -> Parameter:
        rows, columns = table[name].matrix
        shape = (rows,) if len(table[name].shape) == 1 else (rows, columns)
        return Parameter(key, shape, (Slice(name, 0, rows),), split)

    tower, projector, decoder = architecture.tower, architecture.projector, architecture.decoder
    if tower is not None and projector is not None:
        yield whole("tower.patch_embedding.weight", f"{_TOWER}patch_conv.weight")
        yield whole("tower.pre_norm.weight", f"{_TOWER}ln_pre.weight")
        for layer in range(tower.num_layers):
            hf = f"{_TOWER}transformer.layers.{layer}."
            names = (f"{hf}attention_norm", f"{hf}attention", f"{hf}ffn_norm", f"{hf}feed_forward")
            group = (1, tower.head_dim)
            yield from _layer(table, f"tower.transformer.layers.{layer}.", names, group, parallel=False)
        for suffix in ("linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"):
            if projector.bias or suffix.endswith("weight"):
                yield whole(f"projector.{suffix}", f"{_PROJECTOR}{suffix}")
    yield whole("embedding.word_embeddings.weight", f"{_DECODER}embed_tokens.weight", Split.ROWS)
    for layer in range(decoder.num_layers):
        hf = f"{_DECODER}layers.{layer}."
        names = (f"{hf}input_layernorm", f"{hf}self_attn", f"{hf}post_attention_layernorm", f"{hf}mlp")
        group = (decoder.num_heads // decoder.num_kv_heads, decoder.head_dim)
        yield from _layer(table, f"decoder.layers.{layer}.", names, group, parallel=True)
    yield whole("decoder.final_layernorm.weight", f"{_DECODER}norm.weight")
    yield whole("output_layer.weight", f"{_HEAD}weight", Split.ROWS)


def _layer(
    table: dict[str, Weight], key: str, names: tuple[str, str, str, str], group: tuple[int, int], parallel: bool
) -> Iterator[Parameter]:
    """The six parameters of a layer; ``group`` is query heads per key-value head, and the size of a head."""
    norm, attention, second_norm, mlp = names
    rows, columns, halves = (
        (Split.ROWS, Split.COLUMNS, Split.HALVES)
        if parallel
        else (Split.REPLICATED, Split.REPLICATED, Split.REPLICATED)
    )
    q, k, v, o = (f"{attention}.{letter}_proj.weight" for letter in "qkvo")
    gate, up, down = (f"{mlp}.{part}_proj.weight" for part in ("gate", "up", "down"))
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
    yield Parameter(f"{key}self_attention.linear_qkv.layer_norm_weight", (width,), (Slice(f"{norm}.weight", 0, width),))
    yield Parameter(
        f"{key}self_attention.linear_qkv.weight", (groups * unit, width), qkv, rows, unit if parallel else 1
    )
    yield Parameter(f"{key}self_attention.linear_proj.weight", table[o].shape, (Slice(o, 0, width),), columns)
    yield Parameter(f"{key}mlp.linear_fc1.layer_norm_weight", (width,), (Slice(f"{second_norm}.weight", 0, width),))
    yield Parameter(
        f"{key}mlp.linear_fc1.weight", (2 * inner, width), (Slice(gate, 0, inner), Slice(up, 0, inner)), halves
    )
    yield Parameter(f"{key}mlp.linear_fc2.weight", table[down].shape, (Slice(down, 0, width),), columns)


_LOCAL_NORMS = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}
_DECODER_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.")


def parameter_key(local_name: str, first_layer: int) -> str:
    """The key of a model chunk's parameter.

    Args:
        local_name: as ``named_parameters`` gives it: layers numbered from 0 in each chunk, norms spelled as torch's or
            as Transformer Engine's layers spell them.
        first_layer: global number of the chunk's first decoder layer.
    """
    name = _DECODER_LAYER.sub(lambda match: f"decoder.layers.{int(match[1]) + first_layer}.", local_name)
    for local, key in _LOCAL_NORMS.items():
        if name.endswith(f".{local}"):
            return name.removesuffix(local) + key
    return name


@dataclass(frozen=True)
class Resolution:
    """A file's tensor names compared with the table.

    Attributes:
        form: how the names are spelled.
        stored: legacy name -> name in the file, of every weight that is there.
        missing: names that a whole checkpoint of this shape would also have, spelled as the file would.
        unexpected: names in the file that belong to nothing in a model of this shape.
        skipped: names of tower and projector, where a text-only model is asked for.
        buffers: names of tables that follow from the configuration and are not weights.
    """

    form: Form
    stored: dict[str, str]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    skipped: tuple[str, ...]
    buffers: tuple[str, ...]


def recognise_form(names: Iterable[str]) -> Form | None:
    """The form whose decoder names are most frequent among ``names``; None if there are none of any form."""
    names = list(names)
    counts = {form: sum(name.startswith(telltales) for name in names) for form, telltales in _TELLTALES.items()}
    best = max(counts, key=lambda form: counts[form])
    return best if counts[best] else None


def resolve(names: Iterable[str], architecture: Architecture, origin: str) -> Resolution:
    """Hold the tensor names found in ``origin`` against those of ``architecture``.

    Raises:
        CheckpointError: no name looks like a decoder's weight in any known form.
    """
    found = set(names)
    form = recognise_form(found)
    if form is None:
        raise CheckpointError(
            f"{origin}: none of its {len(found)} tensors is a decoder weight in a known form"
            + (f" (first: {', '.join(sorted(found)[:3])})." if found else "."),
            fix=f"Known forms: {'; '.join(Form)}.",
        )
    expected = {weight.stored_as(form): name for name, weight in weights(architecture).items()}
    surplus = sorted(found - expected.keys())
    text_only = architecture.tower is None
    buffers = tuple(name for name in surplus if _BUFFERS.search(name))
    skipped = tuple(name for name in surplus if text_only and name.startswith(_IMAGE_PREFIXES) and name not in buffers)
    return Resolution(
        form=form,
        stored={name: stored for stored, name in expected.items() if stored in found},
        missing=tuple(stored for stored in expected if stored not in found),
        unexpected=tuple(name for name in surplus if name not in buffers and name not in skipped),
        skipped=skipped,
        buffers=buffers,
    )
