"""Recognises the decoder inside a checkpoint, in whatever form and under whatever names it is stored.

Three name layouts are in use for one model, and Mistral's own files add a fourth::

    language_model.model.layers.7.self_attn.o_proj.weight     Hugging Face, as published
    model.language_model.layers.7.self_attn.o_proj.weight     Hugging Face, as transformers 5 holds it in memory
    model.layers.7.self_attn.o_proj.weight                    Hugging Face, text only (MistralForCausalLM)
    layers.7.attention.wo.weight                              Mistral (consolidated.safetensors, params.json)

The tower has numbered layers too (``vision_tower.transformer.layers.7.``); they are never taken for the decoder's,
because a decoder layer's name must *begin* with its prefix. May import the ground and files of this room.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_apriel.errors import CheckpointError, shown
from megatron_apriel.formats.json_files import read_json
from megatron_apriel.formats.tensor_files import TensorDirectory, TensorEntry

_HF_LAYER = frozenset(
    f"{part}.weight"
    for part in (
        *(f"self_attn.{letter}_proj" for letter in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
        "input_layernorm",
        "post_attention_layernorm",
    )
)
_MISTRAL_LAYER = frozenset(
    f"{part}.weight"
    for part in (
        *(f"attention.w{letter}" for letter in "qkvo"),
        *(f"feed_forward.w{number}" for number in (1, 2, 3)),
        "attention_norm",
        "ffn_norm",
    )
)
_BUFFERS = frozenset({"self_attn.rotary_emb.inv_freq"})
"""Tables that old versions of transformers stored in every layer; they go where their layer goes."""

_FLOATS = {"F16", "BF16", "F32", "F64"}


@dataclass(frozen=True)
class NameLayout:
    """How one form names its decoder layers.

    Attributes:
        prefix: what stands before the layer's number.
        tensors: what each layer consists of.
        residual_outputs: the two whose product is added to the residual stream: attention's and the MLP's last matrix.
    """

    prefix: str
    tensors: frozenset[str]
    residual_outputs: frozenset[str]

    def split(self, name: str) -> tuple[int, str] | None:
        """Layer number and name within the layer, or None if the tensor is of no decoder layer."""
        match = re.fullmatch(rf"{re.escape(self.prefix)}(0|[1-9][0-9]*)\.(.+)", name)
        return (int(match[1]), match[2]) if match else None

    def join(self, layer: int, rest: str) -> str:
        """Inverse of :meth:`split`."""
        return f"{self.prefix}{layer}.{rest}"


_HF_OUTPUTS = frozenset({"self_attn.o_proj.weight", "mlp.down_proj.weight"})
_LLAVA_LAYOUTS = tuple(
    NameLayout(prefix, _HF_LAYER, _HF_OUTPUTS)
    for prefix in ("language_model.model.layers.", "model.language_model.layers.")
)
_TEXT_LAYOUT = NameLayout("model.layers.", _HF_LAYER, _HF_OUTPUTS)
_MISTRAL_LAYOUT = NameLayout("layers.", _MISTRAL_LAYER, frozenset({"attention.wo.weight", "feed_forward.w2.weight"}))


@dataclass(frozen=True)
class SourceModel:
    """A checkpoint directory whose decoder has been found and checked.

    Attributes:
        tensors: its weight files.
        config_file: ``config.json`` or ``params.json``.
        config: its contents.
        layout: how its decoder layers are named.
        num_layers: number of decoder layers, in the config and in the files alike.
    """

    tensors: TensorDirectory
    config_file: Path
    config: dict[str, Any]
    layout: NameLayout
    num_layers: int

    def config_with_layers(self, num_layers: int) -> dict[str, Any]:
        """The config of the same model with another number of decoder layers; all else as it is."""
        mistral = self.config_file.name == "params.json"
        decoder = _decoder_part(self.config, mistral)
        new = {**decoder, _SIZE_KEYS["layers"][mistral]: num_layers}
        for key in _BY_LAYER & decoder.keys():
            if isinstance(decoder[key], list) and len(decoder[key]) == self.num_layers:
                new[key] = decoder[key][:1] * num_layers  # all are alike
        return new if decoder is self.config else {**self.config, "text_config": new}

    @classmethod
    def open(cls, path: str | Path) -> SourceModel:
        """Read headers and config and check that they describe one Mistral-shaped decoder.

        Raises:
            CheckpointError: damaged files, another kind of model, a config that disagrees with the tensors, layers
                that are missing or incomplete.
        """
        tensors = TensorDirectory.open(path)
        mistral = tensors.base == "consolidated"
        config_file = tensors.path / ("params.json" if mistral else "config.json")
        config = read_json(config_file)
        candidates = _layouts(config, config_file)
        layouts = [layout for layout in candidates if any(map(layout.split, tensors.entries))]
        if len(layouts) != 1:
            names = " or ".join(f"{layout.prefix}N." for layout in candidates)
            found = "both" if layouts else "none"
            raise CheckpointError(
                f"{tensors.path}: decoder layers are named {names} in this kind of model; {found} was found.",
                f"It has {len(tensors.entries)} tensors, the first is {next(iter(tensors.entries), 'absent')}.",
            )
        _check_layers_alike(_decoder_part(config, mistral), config_file)
        shapes = _decoder_sizes(config, mistral)
        # The reference's own default (MistralConfig) where the key is absent.
        number = shapes.get("layers", 32)
        model = cls(tensors, config_file, config, layouts[0], number)
        _check_layers(model, shapes)
        return model


def _layouts(config: Mapping[str, Any], config_file: Path) -> tuple[NameLayout, ...]:
    if config_file.name == "params.json":
        return (_MISTRAL_LAYOUT,)
    kind = config.get("model_type")
    parts = [config.get(part, {}) for part in ("text_config", "vision_config")]
    if kind == "mistral":
        return (_TEXT_LAYOUT,)
    if kind == "llava" and all(isinstance(part, dict) for part in parts):
        kinds = tuple(part.get("model_type") for part in parts)
        if kinds == ("mistral", "pixtral"):
            return _LLAVA_LAYOUTS
        kind = f"llava with decoder {shown(kinds[0])} and tower {shown(kinds[1])}"
    raise CheckpointError(
        f"{config_file}: a model of type {shown(kind)} cannot be edited here.",
        "Which tensors are decoder layers is known for Mistral, alone or under LLaVA with a Pixtral tower.",
        "Supported: model_type 'mistral', or 'llava' with text_config 'mistral' and vision_config 'pixtral'.",
    )


_SIZE_KEYS = {
    # size: (key in a Hugging Face config, key in params.json)
    "layers": ("num_hidden_layers", "n_layers"),
    "hidden": ("hidden_size", "dim"),
    "ffn": ("intermediate_size", "hidden_dim"),
    "heads": ("num_attention_heads", "n_heads"),
    "groups": ("num_key_value_heads", "n_kv_heads"),
    "head": ("head_dim", "head_dim"),
}


_BY_LAYER = {"layer_types", "mlp_layer_types", "per_layer_config", "sliding_window", "_sliding_window"}
"""Keys under which a config may say something of each decoder layer, or of some."""


def _decoder_part(config: Mapping[str, Any], mistral: bool) -> Mapping[str, Any]:
    """The part of a config that is about the decoder."""
    return config["text_config"] if not mistral and config["model_type"] == "llava" else config


def _check_layers_alike(part: Mapping[str, Any], config_file: Path) -> None:
    for key in sorted(_BY_LAYER & part.keys()):
        value = part[key]
        if (isinstance(value, dict) and value) or (isinstance(value, list) and any(one != value[0] for one in value)):
            raise CheckpointError(
                f"{config_file}: {key}={shown(value)} tells decoder layers apart.",
                "Of which layers it would be true among others in number is not known.",
                "Layers can be added to a decoder whose layers are all alike.",
            )


def _decoder_sizes(config: Mapping[str, Any], mistral: bool) -> dict[str, int]:
    """The sizes that the config states; those it leaves to the reference's defaults are not among them."""
    part = _decoder_part(config, mistral)
    sizes = {}
    for size, keys in _SIZE_KEYS.items():
        value = part.get(keys[mistral])
        if value is None:
            continue
        if type(value) is not int or value < 1:
            raise CheckpointError(f"the config's {keys[mistral]} is {shown(value)}, not a positive whole number.")
        sizes[size] = value
    return sizes


def _expected_shapes(sizes: Mapping[str, int], mistral: bool) -> dict[str, tuple[int | None, ...]]:
    """Shape by name within a layer; None where the config does not state the size."""
    hidden, ffn = sizes.get("hidden"), sizes.get("ffn")
    head = sizes.get("head")
    query = sizes["heads"] * head if head and "heads" in sizes else None
    group = sizes["groups"] * head if head and "groups" in sizes else None
    shapes = {
        ("self_attn.q_proj", "attention.wq"): (query, hidden),
        ("self_attn.k_proj", "attention.wk"): (group, hidden),
        ("self_attn.v_proj", "attention.wv"): (group, hidden),
        ("self_attn.o_proj", "attention.wo"): (hidden, query),
        ("mlp.gate_proj", "feed_forward.w1"): (ffn, hidden),
        ("mlp.up_proj", "feed_forward.w3"): (ffn, hidden),
        ("mlp.down_proj", "feed_forward.w2"): (hidden, ffn),
        ("input_layernorm", "attention_norm"): (hidden,),
        ("post_attention_layernorm", "ffn_norm"): (hidden,),
    }
    return {f"{names[mistral]}.weight": shape for names, shape in shapes.items()}


def _check_layers(model: SourceModel, sizes: Mapping[str, int]) -> None:
    layers: dict[int, dict[str, TensorEntry]] = {}
    for name, entry in model.tensors.entries.items():
        place = model.layout.split(name)
        if place is not None:
            layers.setdefault(place[0], {})[place[1]] = entry
    path, stated = model.tensors.path, model.num_layers
    # Not range(stated): a config may state any number.
    missing = [layer for layer in range(min(stated, len(layers) + 8)) if layer not in layers]
    if missing or len(layers) != stated:
        found = f"{len(layers)} decoder layers, {min(layers)} to {max(layers)}"
        absent = f" Layers without a tensor: {', '.join(map(str, missing[:8]))}." if missing else ""
        raise CheckpointError(
            f"{model.config_file} says {stated} decoder layers, and the files of {path} hold {found}.",
            "One of the two is wrong." + absent,
        )
    expected = _expected_shapes(sizes, model.config_file.name == "params.json")
    for layer in range(stated):
        for rest in sorted(model.layout.tensors - layers[layer].keys()):
            raise CheckpointError(
                f"{path} lacks {model.layout.join(layer, rest)}.", "A layer without it is no Mistral layer."
            )
        for rest in sorted(layers[layer].keys() - model.layout.tensors - _BUFFERS):
            raise CheckpointError(
                f"{path} has {model.layout.join(layer, rest)}.",
                "A Mistral layer has no such tensor (no biases, no experts, no adapters, no quantisation scales).",
            )
        for rest in sorted(model.layout.tensors):
            _check_tensor(model, layers[layer][rest], layers[0][rest], expected[rest])


def _check_tensor(model: SourceModel, entry: TensorEntry, first: TensorEntry, stated: tuple[int | None, ...]) -> None:
    if entry.dtype not in _FLOATS:
        raise CheckpointError(f"{entry.name} has dtype {entry.dtype}.", f"Supported: {', '.join(sorted(_FLOATS))}.")
    if entry.shape != first.shape:
        raise CheckpointError(
            f"{entry.name} has shape {list(entry.shape)} and {first.name} has {list(first.shape)}.",
            "All decoder layers have the same shapes.",
        )
    fits = len(entry.shape) == len(stated) and all(
        size is None or size == found for size, found in zip(stated, entry.shape, strict=True)
    )
    if not fits:
        sizes = ", ".join("any" if size is None else str(size) for size in stated)
        raise CheckpointError(
            f"{entry.name} has shape {list(entry.shape)}, and {model.config_file} makes it [{sizes}].",
            "One of them is wrong.",
        )
