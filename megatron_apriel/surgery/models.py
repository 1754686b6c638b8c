"""Recognises the decoder inside a checkpoint, in whatever form and under whatever names it is stored.

One decoder layer's tensor has four names (see ``formats/tensor_names.py``)::

    language_model.model.layers.7.self_attn.o_proj.weight     Hugging Face, as published
    model.language_model.layers.7.self_attn.o_proj.weight     Hugging Face, as transformers 5 holds it in memory
    model.layers.7.self_attn.o_proj.weight                    Hugging Face, text only (MistralForCausalLM)
    layers.7.attention.wo.weight                              Mistral (consolidated.safetensors, params.json)

The tower has numbered layers too (``vision_tower.transformer.layers.7.``); they are never taken for the decoder's,
because a decoder layer's name must *begin* with its prefix.

Only the decoder's layers are looked at: sizes that the config leaves to the reference's defaults are not checked, and
what else a model has, the architecture that this project trains or another, is kept as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_apriel.errors import CheckpointError, printable, shown
from megatron_apriel.formats.json_files import read_json
from megatron_apriel.formats.other_tools import refuse_quantised, refuse_without_config
from megatron_apriel.formats.tensor_files import FLOATS, TensorDirectory, TensorEntry
from megatron_apriel.formats.tensor_names import Form, LayerNames, decoder_layers, is_buffer, layer_shapes
from megatron_apriel.quantities import counted


@dataclass(frozen=True)
class GivenModel:
    """A checkpoint directory whose decoder has been found and checked.

    Attributes:
        tensors: its weight files.
        config_file: ``config.json`` or ``params.json``.
        config: its contents.
        names: of its decoder layers' tensors.
        num_layers: number of decoder layers, in the config and in the files alike.
    """

    tensors: TensorDirectory
    config_file: Path
    config: dict[str, Any]
    names: LayerNames
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
    def open(cls, path: str | Path) -> GivenModel:
        """Read headers and config and check that they describe one Mistral-shaped decoder.

        Raises:
            CheckpointError: damaged files, another kind of model, a config that disagrees with the tensors, layers
                that are missing or incomplete.
        """
        return cls.of(TensorDirectory.open(path))

    @classmethod
    def of(cls, tensors: TensorDirectory) -> GivenModel:
        """:meth:`open` for a directory whose headers have been read."""
        mistral = tensors.base == "consolidated"
        config_file = tensors.path / ("params.json" if mistral else "config.json")
        refuse_without_config(tensors.path)
        config = read_json(config_file)
        refuse_quantised(config, printable(config_file))
        candidates = [decoder_layers(form) for form in _forms(config, config_file)]
        found = [names for names in candidates if any(map(names.split, tensors.entries))]
        if len(found) != 1:
            known = " or ".join(f"{names.prefix}N." for names in candidates)
            raise CheckpointError(
                f"{tensors.path}: decoder layers are named {known} in this kind of model; "
                f"{'both' if found else 'none'} was found.",
                f"It has {len(tensors.entries)} tensors, the first is {next(iter(tensors.entries), 'absent')}.",
            )
        _check_layers_alike(_decoder_part(config, mistral), config_file)
        sizes = _decoder_sizes(config, mistral)
        # The reference's own default (MistralConfig) where the key is absent.
        number = sizes.get("layers", 32)
        model = cls(tensors, config_file, config, found[0], number)
        _check_layers(model, sizes)
        return model


def _forms(config: Mapping[str, Any], config_file: Path) -> tuple[Form, ...]:
    if config_file.name == "params.json":
        return (Form.MISTRAL,)
    kind = config.get("model_type")
    parts = [config.get(part, {}) for part in ("text_config", "vision_config")]
    if kind == "mistral":
        return (Form.TEXT_ONLY,)
    if kind == "llava" and all(isinstance(part, dict) for part in parts):
        kinds = tuple(part.get("model_type") for part in parts)
        if kinds == ("mistral", "pixtral"):
            return (Form.LEGACY, Form.TRANSFORMERS_5)
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


def _stated_shapes(names: LayerNames, sizes: Mapping[str, int]) -> dict[str, tuple[int | None, ...]]:
    """Shape by name within a layer; None where the config does not state the size."""
    head = sizes.get("head")
    query, key = (sizes[heads] * head if head and heads in sizes else None for heads in ("heads", "groups"))
    shapes = layer_shapes(sizes.get("hidden"), sizes.get("ffn"), query, key)
    return {names.tensors[role]: shape for role, shape in shapes.items()}


def _check_layers(model: GivenModel, sizes: Mapping[str, int]) -> None:
    layers: dict[int, dict[str, TensorEntry]] = {}
    for name, entry in model.tensors.entries.items():
        place = model.names.split(name)
        if place is not None:
            layers.setdefault(place[0], {})[place[1]] = entry
    path, stated = model.tensors.path, model.num_layers
    # Not range(stated): a config may state any number.
    missing = [layer for layer in range(min(stated, len(layers) + 8)) if layer not in layers]
    if missing or len(layers) != stated:
        found = f"{counted(len(layers), 'decoder layer')}, {min(layers)} to {max(layers)}"
        absent = f" Layers without a tensor: {', '.join(map(str, missing[:8]))}." if missing else ""
        raise CheckpointError(
            f"{model.config_file} says {counted(stated, 'decoder layer')}, and the files of {path} hold {found}.",
            "One of the two is wrong." + absent,
            "mergekit's passthrough leaves the number in text_config as it was: if the files are right, set it there to"
            f" {len(layers)}."
            if not missing
            else "",
        )
    expected = _stated_shapes(model.names, sizes)
    for layer in range(stated):
        for rest in sorted(expected.keys() - layers[layer].keys()):
            raise CheckpointError(
                f"{path} lacks {model.names.join(layer, rest)}.", "A layer without it is no Mistral layer."
            )
        # Buffers go where their layer goes.
        for rest in sorted(name for name in layers[layer].keys() - expected.keys() if not is_buffer(name)):
            raise CheckpointError(
                f"{path} has {model.names.join(layer, rest)}.",
                "A Mistral layer has no such tensor (no biases, no experts, no adapters, no quantisation scales).",
            )
        for rest in sorted(expected):
            _check_tensor(model, layers[layer][rest], layers[0][rest], expected[rest])


def _check_tensor(model: GivenModel, entry: TensorEntry, first: TensorEntry, stated: tuple[int | None, ...]) -> None:
    if entry.dtype not in FLOATS:
        raise CheckpointError(f"{entry.name} has dtype {entry.dtype}.", f"Supported: {', '.join(FLOATS)}.")
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
