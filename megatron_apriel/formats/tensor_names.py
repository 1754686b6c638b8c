"""The one table of weight names: Hugging Face's and Mistral's own, and which part of a model a name belongs to.

Two families of names for the same numbers meet here, and nowhere else (``megatron_parameters.py`` puts the Megatron
model's parameters together from them):

* **Hugging Face.** Every tensor is called by its *legacy* LLaVA name (``language_model.model.layers.0...``) throughout
  this package, whatever the file calls it. Files come in three spellings: that one, the in-memory names of
  transformers 5 (``model.language_model.layers.0...``), and text-only Mistral's (``model.layers.0...``).
* **Mistral's own** (``consolidated.safetensors``). Other names, and the rows of q and k lie in another order. Rotary
  positions turn pairs of numbers: Mistral pairs neighbours (0, 1), (2, 3)...; Hugging Face pairs the two halves of a
  head (0, d/2), (1, d/2 + 1)... So row ``2 i + j`` of a head there is row ``j d/2 + i`` here. True of both towers.

No torch, no numpy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from megatron_apriel.formats.architecture import Architecture


class Form(StrEnum):
    """How a set of files spells the names of weights."""

    LEGACY = "Hugging Face (language_model.model...)"
    TRANSFORMERS_5 = "Hugging Face (model.language_model...)"
    TEXT_ONLY = "Hugging Face, text only (model.layers...)"
    MISTRAL = "Mistral (layers..., vision_encoder...)"


DECODER, HEAD = "language_model.model.", "language_model.lm_head."
TOWER, PROJECTOR = "vision_tower.", "multi_modal_projector."
"""How the legacy names of each part begin."""

_SPELLING: dict[Form, dict[str, str]] = {
    Form.LEGACY: {DECODER: DECODER, HEAD: HEAD, TOWER: TOWER, PROJECTOR: PROJECTOR},
    Form.TRANSFORMERS_5: {
        DECODER: "model.language_model.",
        HEAD: "lm_head.",
        TOWER: "model.vision_tower.",
        PROJECTOR: "model.multi_modal_projector.",
    },
    Form.TEXT_ONLY: {DECODER: "model.", HEAD: "lm_head.", TOWER: TOWER, PROJECTOR: PROJECTOR},
}

IMAGE_PREFIXES = (
    *(prefix for spelling in _SPELLING.values() for part, prefix in spelling.items() if part in (TOWER, PROJECTOR)),
    "vision_encoder.",
    "vision_language_adapter.",
)
"""How names of tower and projector begin in files of any form."""

_BUFFERS = re.compile(r"(^|\.)(rotary_emb|patch_positional_embedding)\.inv_freq$")


def is_buffer(name: str) -> bool:
    """Whether a name is of a table of rotary frequencies, which old versions of transformers stored.

    Such tables follow from the configuration.
    """
    return bool(_BUFFERS.search(name))


class Component(StrEnum):
    """A part of the model."""

    TOWER = "tower"
    PROJECTOR = "projector"
    EMBEDDING = "embedding"
    DECODER = "decoder"
    HEAD = "head"

    @property
    def trained_as(self) -> str:
        """The entry of a configuration's ``train`` that it belongs to: ``decoder`` for embedding and head too."""
        return "decoder" if self in (Component.EMBEDDING, Component.HEAD) else self.value


_COMPONENTS: dict[Component, tuple[str, ...]] = {
    Component.TOWER: ("tower.", "vision_encoder.", *(spelling[TOWER] for spelling in _SPELLING.values())),
    Component.PROJECTOR: (
        *("projector.", "vision_language_adapter."),
        *(spelling[PROJECTOR] for spelling in _SPELLING.values()),
    ),
    Component.EMBEDDING: (
        *("embedding.", "tok_embeddings."),
        *(f"{spelling[DECODER]}embed_tokens." for spelling in _SPELLING.values()),
    ),
    Component.HEAD: ("output_layer.", "output.", *(spelling[HEAD] for spelling in _SPELLING.values())),
}
"""How names of each component begin: in Megatron's model, in Mistral's form, in Hugging Face's."""


def component_of(name: str) -> Component:
    """The part of the model that a tensor of any form, or a parameter of Megatron's model, belongs to.

    What is named like no other part is of the decoder: its layers, its last norm. Wrappers put ``module.`` before a
    parameter's name; that changes nothing.
    """
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return next((part for part, begins in _COMPONENTS.items() if name.startswith(begins)), Component.DECODER)


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
    def matrix(self) -> tuple[int, int]:
        """Rows and numbers per row; a vector has one number per row, a convolution its whole filter."""
        return self.shape[0], prod(self.shape[1:])


@dataclass(frozen=True)
class LayerTensor:
    """A weight that every layer of decoder and tower has; its names end in ``.weight``, which is left out here.

    Attributes:
        role: what it does in its layer.
        shape: names of sizes, see :func:`layer_shapes`.
        decoder, tower: its name in Hugging Face's layers.
        mistral: its name in Mistral's layers, of both.
        in_pairs: whether Mistral's form interleaves the rows of its heads.
    """

    role: str
    shape: tuple[str, ...]
    decoder: str
    tower: str
    mistral: str
    in_pairs: bool = False


LAYER = (
    LayerTensor("attention norm", ("hidden",), "input_layernorm", "attention_norm", "attention_norm"),
    LayerTensor("q", ("query", "hidden"), "self_attn.q_proj", "attention.q_proj", "attention.wq", in_pairs=True),
    LayerTensor("k", ("key", "hidden"), "self_attn.k_proj", "attention.k_proj", "attention.wk", in_pairs=True),
    LayerTensor("v", ("key", "hidden"), "self_attn.v_proj", "attention.v_proj", "attention.wv"),
    LayerTensor("o", ("hidden", "query"), "self_attn.o_proj", "attention.o_proj", "attention.wo"),
    LayerTensor("mlp norm", ("hidden",), "post_attention_layernorm", "ffn_norm", "ffn_norm"),
    LayerTensor("gate", ("inner", "hidden"), "mlp.gate_proj", "feed_forward.gate_proj", "feed_forward.w1"),
    LayerTensor("up", ("inner", "hidden"), "mlp.up_proj", "feed_forward.up_proj", "feed_forward.w3"),
    LayerTensor("down", ("hidden", "inner"), "mlp.down_proj", "feed_forward.down_proj", "feed_forward.w2"),
)
"""In the order of the computation."""


def layer_shapes[Size: (int, int | None)](
    hidden: Size, inner: Size, query: Size, key: Size
) -> dict[str, tuple[Size, ...]]:
    """Shapes of a layer's weights, by role.

    Args:
        hidden: width of the model.
        inner: width inside the MLP.
        query, key: size of all query heads together, and of all key-value heads.
    """
    sizes = {"hidden": hidden, "inner": inner, "query": query, "key": key}
    return {tensor.role: tuple(sizes[size] for size in tensor.shape) for tensor in LAYER}


@dataclass(frozen=True)
class LayerNames:
    """How one form names the layers of a decoder or tower.

    Attributes:
        prefix: what stands before the layer's number.
        tensors: names within a layer, by role.
    """

    prefix: str
    tensors: Mapping[str, str]

    @property
    def residual_outputs(self) -> frozenset[str]:
        """The two whose product is added to the residual stream: attention's and the MLP's last matrix."""
        return frozenset({self.tensors["o"], self.tensors["down"]})

    def split(self, name: str) -> tuple[int, str] | None:
        """Layer number and name within the layer, or None if the tensor is of no such layer."""
        match = re.fullmatch(rf"{re.escape(self.prefix)}(0|[1-9][0-9]{{0,17}})\.(.+)", name)
        return (int(match[1]), match[2]) if match else None

    def join(self, layer: int, rest: str) -> str:
        """Inverse of :meth:`split`."""
        return f"{self.prefix}{layer}.{rest}"

    def of(self, layer: int) -> dict[str, str]:
        """Whole names of a layer's weights, by role."""
        return {role: self.join(layer, rest) for role, rest in self.tensors.items()}


_MISTRAL_NAMES = {tensor.role: f"{tensor.mistral}.weight" for tensor in LAYER}
_DECODER_NAMES = {tensor.role: f"{tensor.decoder}.weight" for tensor in LAYER}
_TOWER_NAMES = {tensor.role: f"{tensor.tower}.weight" for tensor in LAYER}


def decoder_layers(form: Form = Form.LEGACY) -> LayerNames:
    """Names of the decoder's layers in ``form``."""
    if form is Form.MISTRAL:
        return LayerNames("layers.", _MISTRAL_NAMES)
    return LayerNames(f"{_SPELLING[form][DECODER]}layers.", _DECODER_NAMES)


def tower_layers(form: Form = Form.LEGACY) -> LayerNames:
    """Names of the tower's layers in ``form``."""
    if form is Form.MISTRAL:
        return LayerNames("vision_encoder.transformer.layers.", _MISTRAL_NAMES)
    return LayerNames(f"{_SPELLING[form][TOWER]}transformer.layers.", _TOWER_NAMES)


def halves_from_pairs[Rows: Any](rows: Rows, head: int) -> Rows:
    """Whole heads in Mistral's order of rows, put into Hugging Face's; any array [rows, columns]."""
    ordered: Rows = rows.reshape(-1, head // 2, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
    return ordered


def pairs_from_halves[Rows: Any](rows: Rows, head: int) -> Rows:
    """Whole heads in Hugging Face's order of rows, put into Mistral's; inverse of :func:`halves_from_pairs`."""
    ordered: Rows = rows.reshape(-1, 2, head // 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)
    return ordered


def weights(architecture: Architecture) -> dict[str, Weight]:
    """Every tensor of a checkpoint of this shape, by legacy name, in the order of the computation."""
    return {weight.name: weight for weight in _weights(architecture)}


def _weights(architecture: Architecture) -> Iterator[Weight]:
    tower, projector, decoder = architecture.tower, architecture.projector, architecture.decoder
    if tower is not None and projector is not None:
        width = tower.hidden_size
        patch = (width, tower.channels, tower.patch_size, tower.patch_size)
        yield Weight(f"{TOWER}patch_conv.weight", patch, "vision_encoder.patch_conv.weight")
        yield Weight(f"{TOWER}ln_pre.weight", (width,), "vision_encoder.ln_pre.weight")
        query = tower.num_heads * tower.head_dim
        shapes = layer_shapes(width, tower.ffn_hidden_size, query, query)
        for layer in range(tower.num_layers):
            names = (tower_layers().of(layer), tower_layers(Form.MISTRAL).of(layer))
            yield from _layer(*names, shapes, tower.head_dim)
        sizes = (projector.input_size, projector.output_size)
        for number, columns, adapter in ((1, sizes[0], "w_in"), (2, sizes[1], "w_out")):
            name, mistral = f"{PROJECTOR}linear_{number}", f"vision_language_adapter.{adapter}"
            yield Weight(f"{name}.weight", (projector.output_size, columns), f"{mistral}.weight")
            if projector.bias:
                yield Weight(f"{name}.bias", (projector.output_size,), f"{mistral}.bias")
    table = (decoder.vocab_size, decoder.hidden_size)
    yield Weight(f"{DECODER}embed_tokens.weight", table, "tok_embeddings.weight")
    query, key = decoder.num_heads * decoder.head_dim, decoder.num_kv_heads * decoder.head_dim
    shapes = layer_shapes(decoder.hidden_size, decoder.ffn_hidden_size, query, key)
    for layer in range(decoder.num_layers):
        names = (decoder_layers().of(layer), decoder_layers(Form.MISTRAL).of(layer))
        yield from _layer(*names, shapes, decoder.head_dim)
    yield Weight(f"{DECODER}norm.weight", (decoder.hidden_size,), "norm.weight")
    yield Weight(f"{HEAD}weight", table, "output.weight")


def _layer(
    names: dict[str, str], mistral: dict[str, str], shapes: Mapping[str, tuple[int, ...]], head: int
) -> Iterator[Weight]:
    for tensor in LAYER:
        role = tensor.role
        yield Weight(names[role], shapes[role], mistral[role], head if tensor.in_pairs else 0)
