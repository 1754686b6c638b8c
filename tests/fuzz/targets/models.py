"""Model directories: safetensors with their index, config.json and params.json, read by all that opens a model."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import safetensors
import torch

from megatron_apriel.checkpoint.convert import convert, plan_conversion
from megatron_apriel.checkpoint.weights import Weights, open_weights
from megatron_apriel.formats.architecture import (
    Architecture,
    DecoderArchitecture,
    ProjectorArchitecture,
    TowerArchitecture,
)
from megatron_apriel.formats.kinds import Kind, architecture_of, recognise
from megatron_apriel.formats.tensor_names import Form
from megatron_apriel.surgery.average import plan_average
from megatron_apriel.surgery.average_inputs import AverageInput
from megatron_apriel.surgery.layer_maps import layer_map
from megatron_apriel.surgery.models import GivenModel
from megatron_apriel.surgery.upscale import plan_upscale
from megatron_apriel.testing.checkpoints import write_hf_checkpoint

from ..byte_changes import change_bytes, edge
from ..canary import try_all
from ..case import Target, Wrong
from ..file_changes import Changes, change_json, copy_honest
from ..json_changes import change_value, write_json

SMALL = Architecture(
    decoder=DecoderArchitecture(16, 3, 4, 2, 4, 24, 1256, rope_theta=1e6, max_positions=512),
    tower=TowerArchitecture(16, 1, 2, 8, 24, "silu", image_size=64),
    projector=ProjectorArchitecture(16, 16),
)
TEXT = Architecture(decoder=DecoderArchitecture(16, 2, 4, 2, 8, 24, 64, rope_theta=1e4, max_positions=512))

CONFIG_NAMES = (
    "text_config", "vision_config", "model_type", "num_hidden_layers", "hidden_size", "head_dim",
    "num_key_value_heads", "rope_scaling",
    "rope_parameters", "rope_theta", "sliding_window", "layer_types", "tie_word_embeddings", "attention_bias",
    "quantization_config",
    "torch_dtype", "image_token_id", "image_token_index", "image_seq_length", "spatial_merge_size", "auto_map",
    "weight_map", "metadata",
    "moe", "quantization", "yarn", "vision_encoder", "_sliding_window", "q_norm", "tied_embeddings", "__metadata__",
    "partial_rotary_factor",
)  # fmt: skip


class ModelDirectories(Target):
    """Refused, or every tensor has the bytes that the package safetensors reads, and every size is transformers'."""

    name = "models"
    about = "safetensors, index, config.json and params.json of a model"

    def make(self, directory: Path) -> None:
        legacy = write_hf_checkpoint(
            directory / "legacy", SMALL, dtype="bfloat16", max_shard_size="30KB", processor=True
        )
        write_hf_checkpoint(directory / "v5", SMALL, names="v5")
        write_hf_checkpoint(directory / "text", TEXT, dtype="float16")
        convert(plan_conversion(legacy, Kind.MISTRAL), directory / "mistral")

    def open(self, directory: Path) -> None:
        super().open(directory)
        self.names = sorted(path.name for path in directory.iterdir())

    def mutate(self, random: Random, directory: Path, changes: int) -> str:
        name = random.choice(self.names)
        model = directory / name
        copy_honest(self.honest / name, model)
        done = Changes(random, model)
        for _ in range(changes):
            kind = random.random()
            if kind < 0.1:
                done.files()
                continue
            pattern = "*.safetensors" if kind < 0.5 else "*config.json" if kind < 0.75 else "*.json"
            named = sorted(path.name for path in model.glob(pattern))
            if kind >= 0.5 and (model / "params.json").exists() and random.random() < 0.7:
                named = ["params.json"]
            if not named:
                continue
            chosen = random.choice(named)
            if chosen.endswith(".safetensors"):
                done.file(chosen, lambda data: change_safetensors(random, data))
            else:
                done.file(chosen, lambda data: change_json(random, data, CONFIG_NAMES))
        return f"{name}: {done.finish()}"

    def check(self, directory: Path) -> None:
        (model,) = (path for path in directory.iterdir() if path.name in self.names)
        honest = self.honest / model.name
        uses: list[Callable[[], None]] = [
            lambda: _surgery(model),
            lambda: _weights(model),
            lambda: _average(model, honest),
            *(lambda to=to: _conversion(model, to, directory / f"to-{to}") for to in Kind),  # type: ignore[misc]
        ]
        try_all(uses)


def _surgery(model: Path) -> None:
    source = GivenModel.open(model)
    plan_upscale(source, layer_map("block", source.num_layers, source.num_layers + 1))
    stored = _by_package(model, source.tensors.base)
    if source.tensors.entries.keys() != stored.keys():
        raise Wrong(f"tensors {source.tensors.entries.keys() ^ stored.keys()} are in one reading only")
    for name, entry in source.tensors.entries.items():
        dtype, shape, data = stored[name]
        if (entry.dtype, list(entry.shape)) != (dtype, shape):
            raise Wrong(f"{name} is {entry.dtype} {entry.shape}, the package safetensors says {dtype} {shape}")
        if b"".join(map(bytes, entry.pieces())) != data:
            raise Wrong(f"{name} has other bytes than the package safetensors reads")


def _weights(model: Path) -> None:
    architecture = architecture_of(model)
    kind = recognise(model)
    if kind is Kind.HF:
        _compare_with_transformers(architecture, json.loads((model / "config.json").read_bytes()))
    weights = open_weights(model, architecture)
    compare_weights(weights, _by_package(model, "consolidated" if kind is Kind.MISTRAL else "model"), architecture)


def compare_weights(
    weights: Weights, stored: dict[str, tuple[str, list[int], bytes]], architecture: Architecture
) -> None:
    """Raise Wrong if a weight's bytes are not those of a tensor that was read otherwise."""
    for name, weight in weights.table.items():
        found = weights.read(name, 0, weight.matrix[0])
        for form in Form:
            if weight.stored_as(form) in stored:
                data = stored[weight.stored_as(form)][2]
                if form is Form.MISTRAL and weight.interleaved_head:
                    data = _from_pairs(data, weight.matrix, found.element_size(), weight.interleaved_head)
                if bytes(found.contiguous().flatten().view(torch.uint8).numpy()) != data:
                    raise Wrong(f"{name} has other bytes than the files")
                break
        else:
            raise Wrong(f"{name} is in no file")


def _from_pairs(data: bytes, matrix: tuple[int, int], width: int, head: int) -> bytes:
    """Rows of a query or key matrix in the order of Hugging Face's own conversion of Mistral's files."""
    rows = np.frombuffer(data, dtype=np.uint8).reshape(matrix[0] // head, head // 2, 2, matrix[1] * width)
    return rows.transpose(0, 2, 1, 3).tobytes()


def _average(model: Path, honest: Path) -> None:
    given = AverageInput.from_directory(model)
    plan_average([AverageInput.from_directory(honest), given], max_memory=2**36)
    stored = _by_package(model, "model")
    for name, spec in given.reader.tensors.items():
        if given.reader.read(name, 0, spec.rows).tobytes() != stored[name][2]:
            raise Wrong(f"averaging reads other bytes of {name}")


def _conversion(model: Path, to: Kind, destination: Path) -> None:
    conversion = plan_conversion(model, to)
    convert(conversion, destination)
    result = open_weights(destination, architecture_of(destination))
    for name, weight in conversion.weights.table.items():
        wanted, found = (one.read(name, 0, weight.matrix[0]) for one in (conversion.weights, result))
        if wanted.dtype != found.dtype or not torch.equal(wanted.view(torch.uint8), found.view(torch.uint8)):
            raise Wrong(f"{name} is another after conversion to {to}")


def _by_package(model: Path, base: str) -> dict[str, tuple[str, list[int], bytes]]:
    """All tensors as the package safetensors reads them; what it refuses may not have been accepted."""
    found: dict[str, tuple[str, list[int], bytes]] = {}
    for file in sorted(model.glob(f"{base}*.safetensors")):
        try:
            tensors = safetensors.deserialize(file.read_bytes())
        except safetensors.SafetensorError as error:
            raise Wrong(f"the package safetensors refuses the file: {error}") from None
        for name, field in tensors:
            found[name] = (field["dtype"], list(field["shape"]), bytes(field["data"]))
    return found


def _compare_with_transformers(architecture: Architecture, config: dict[str, Any]) -> None:
    from transformers import LlavaConfig, MistralConfig

    try:
        full: Any = (LlavaConfig if config["model_type"] == "llava" else MistralConfig).from_dict(config)
        text: Any = full.get_text_config()
        theta = float(text.rope_parameters["rope_theta"])
    except Exception:  # its refusals are of any kind, and are not what is looked at here
        return
    decoder = architecture.decoder
    pairs: list[tuple[str, Any, Any]] = [
        ("hidden_size", decoder.hidden_size, text.hidden_size),
        ("num_hidden_layers", decoder.num_layers, text.num_hidden_layers),
        ("num_attention_heads", decoder.num_heads, text.num_attention_heads),
        ("num_key_value_heads", decoder.num_kv_heads, text.num_key_value_heads),
        ("head_dim", decoder.head_dim, text.head_dim or text.hidden_size // text.num_attention_heads),
        ("intermediate_size", decoder.ffn_hidden_size, text.intermediate_size),
        ("vocab_size", decoder.vocab_size, text.vocab_size),
        ("rms_norm_eps", decoder.norm_eps, text.rms_norm_eps),
        ("rope_theta", decoder.rope_theta, theta),
        ("hidden_act", decoder.activation, text.hidden_act),
        ("max_position_embeddings", decoder.max_positions, text.max_position_embeddings),
    ]
    if architecture.tower is not None and architecture.projector is not None:
        tower, vision = architecture.tower, full.vision_config
        pairs += [
            ("vision hidden_size", tower.hidden_size, vision.hidden_size),
            ("vision num_hidden_layers", tower.num_layers, vision.num_hidden_layers),
            ("vision num_attention_heads", tower.num_heads, vision.num_attention_heads),
            # Its code takes the quotient where the configuration says null.
            ("vision head_dim", tower.head_dim, vision.head_dim or vision.hidden_size // vision.num_attention_heads),
            ("vision intermediate_size", tower.ffn_hidden_size, vision.intermediate_size),
            ("vision hidden_act", tower.activation, vision.hidden_act),
            ("vision patch_size", tower.patch_size, vision.patch_size),
            ("vision image_size", tower.image_size, vision.image_size),
            ("vision rope_theta", tower.rope_theta, float(vision.rope_parameters["rope_theta"])),
            ("image_token_id", architecture.image_token_id, full.image_token_id),
            ("multimodal_projector_bias", architecture.projector.bias, bool(full.multimodal_projector_bias)),
        ]
    for name, ours, theirs in pairs:
        if ours != theirs:
            raise Wrong(f"{name} is {ours!r} here and {theirs!r} in transformers")


def change_safetensors(random: Random, data: bytes) -> tuple[bytes, str]:
    """A safetensors file with its header, its header's length or its bytes changed."""
    (length,) = struct.unpack("<Q", data[:8]) if len(data) >= 8 else (0,)
    header, body = data[8 : 8 + length], data[8 + length :]
    kind = random.random()
    try:
        fields = json.loads(header)
    except (ValueError, RecursionError):
        fields = None
    if kind < 0.45 and isinstance(fields, dict):
        fields, what = change_value(random, fields, ("__metadata__", "dtype", "shape", "data_offsets"))
        text = write_json(fields, separators=random.choice(((",", ":"), (", ", ": ")))).encode("utf-8", "surrogatepass")
        return struct.pack("<Q", len(text)) + text + body, f"header: {what}"
    if kind < 0.65 and isinstance(fields, dict) and fields:
        return _related_change(random, fields, body)
    if kind < 0.75:
        value = random.choice((length + 1, length - 1, edge(random, 64), len(data) - 8, 100_000_001)) % 2**64
        return struct.pack("<Q", value) + data[8:], f"header's length {value}"
    if kind < 0.85:
        padded = header + random.choice((b" " * 8, b"\0" * 8, b"\n", b"{}", b"\t \r\n"))
        return struct.pack("<Q", len(padded)) + padded + body, "something behind the header"
    return change_bytes(random, data)


def _related_change(random: Random, fields: dict[str, Any], body: bytes) -> tuple[bytes, str]:
    """A change of one tensor that the others follow, so that ranges still meet: another dtype, shape, order or size."""
    names = [name for name, field in fields.items() if isinstance(field, dict) and "data_offsets" in field]
    what = "nothing"
    if names:
        name = random.choice(names)
        field = fields[name]
        match random.randrange(6):
            case 0:
                field["dtype"] = random.choice(
                    ("F16", "BF16", "I16", "U16", "F32", "I32", "F8_E4M3", "BOOL", "F4", "f16", "C64")
                )
                what = f"{name} has dtype {field['dtype']}"
            case 1:
                field["shape"] = random.choice(
                    (field["shape"][::-1], [*field["shape"], 1], [0, *field["shape"]], [2**31, 2**33], [True])
                )
                what = f"{name} has shape {field['shape']}"
            case 2:
                other = random.choice(names)
                fields[name], fields[other] = fields[other], fields[name]
                what = f"{name} and {other} exchange places"
            case 3:
                fields[f"empty.{name}"] = {"dtype": "F32", "shape": [0], "data_offsets": [field["data_offsets"][1]] * 2}
                what = f"an empty tensor behind {name}"
            case 4:
                fields[random.choice((f"{name}.extra", "a\nb", "model.layers.0.self_attn.rotary_emb.inv_freq"))] = {
                    "dtype": "U8",
                    "shape": [4],
                    "data_offsets": [len(body), len(body) + 4],
                }
                body += b"\0\0\0\0"
                what = "one more tensor at the end"
            case _:
                what = f"without {name}'s entry, its bytes stay"
                del fields[name]
    text = json.dumps(fields).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + body, what
