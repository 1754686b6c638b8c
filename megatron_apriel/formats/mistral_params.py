"""Mistral's ``params.json`` <-> Architecture.

The file that lies beside ``consolidated.safetensors`` in Mistral's own releases. It names fewer things than a Hugging
Face config does, and what it does not name is fixed by Mistral's code: gates are SiLU in both towers, the projector's
activation is GELU, RMSNorm's epsilon in the tower is 1e-5. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from megatron_apriel.errors import CheckpointError, printable, shown
from megatron_apriel.formats.architecture import (
    Architecture,
    DecoderArchitecture,
    ProjectorArchitecture,
    TowerArchitecture,
    layer_count,
    positive_count,
    positive_number,
)
from megatron_apriel.formats.json_files import read_json

IMAGE_BREAK_ID, IMAGE_END_ID = 12, 13
"""Ids of [IMG_BREAK] and [IMG_END] in Tekken's table; params.json names them, a Hugging Face config does not."""

_CHANGES_THE_MODEL = (
    "moe",
    "quantization",
    "yarn",
    "llama_4_scaling",
    "q_lora_rank",
    "mm_projector_id",
    "add_pre_mm_projector_layer_norm",
    "spatial_merge_size",
    "tied_embeddings",
    "use_biases",
)
"""Keys that, where set, mean a computation that this model does not do."""


def architecture_from_params(path: Path) -> Architecture:
    """Read ``params.json``. Raises CheckpointError if it is absent, damaged, incomplete or of an unsupported model."""
    params, origin = read_json(path, "The model's shapes are read from it."), printable(path)
    vision = params.get("vision_encoder") or {}
    if not isinstance(vision, dict):
        raise CheckpointError(f"{origin}: vision_encoder holds a {type(vision).__name__}, not an object.")
    _refuse_unsupported(params, origin)
    decoder = _decoder(params, origin)
    if not vision:
        return Architecture(decoder=decoder)
    _refuse_unsupported(vision, f"{origin}: vision_encoder")
    tower = _tower(vision, f"{origin}: vision_encoder")
    projector = ProjectorArchitecture(
        tower.hidden_size, decoder.hidden_size, bias=bool(vision.get("adapter_bias", True))
    )
    return Architecture(decoder, tower, projector, image_token_id=positive_count(vision, "image_token_id", origin, 10))


def params_from_architecture(architecture: Architecture) -> dict[str, Any]:
    """The content of ``params.json``; inverse of :func:`architecture_from_params`.

    Raises:
        CheckpointError: the model has an activation or epsilon that Mistral's form cannot say.
    """
    decoder, tower, projector = architecture.decoder, architecture.tower, architecture.projector
    _refuse_unsayable(architecture)
    params: dict[str, Any] = {
        "dim": decoder.hidden_size,
        "n_layers": decoder.num_layers,
        "head_dim": decoder.head_dim,
        "hidden_dim": decoder.ffn_hidden_size,
        "n_heads": decoder.num_heads,
        "n_kv_heads": decoder.num_kv_heads,
        "rope_theta": decoder.rope_theta,
        "norm_eps": decoder.norm_eps,
        "vocab_size": decoder.vocab_size,
        "max_position_embeddings": decoder.max_positions,
    }
    if tower is not None and projector is not None:
        params["vision_encoder"] = {
            "hidden_size": tower.hidden_size,
            "num_channels": tower.channels,
            "image_size": tower.image_size,
            "patch_size": tower.patch_size,
            "rope_theta": tower.rope_theta,
            "intermediate_size": tower.ffn_hidden_size,
            "num_hidden_layers": tower.num_layers,
            "num_attention_heads": tower.num_heads,
            "adapter_bias": projector.bias,
            "image_token_id": architecture.image_token_id,
            "image_break_token_id": IMAGE_BREAK_ID,
            "image_end_token_id": IMAGE_END_ID,
        }
    return params


def _decoder(params: Mapping[str, Any], origin: str) -> DecoderArchitecture:
    if "rope_theta" not in params:
        raise CheckpointError(
            f"{origin} has no rope_theta.",
            "Mistral's code has taken 10000 and, later, 1000000 where it is absent: the positions cannot be known.",
            'Add "rope_theta" with the value that the model was trained with.',
        )
    number = partial(positive_count, params, origin=origin)
    heads = number("n_heads")
    decoder = DecoderArchitecture(
        hidden_size=number("dim"),
        num_layers=layer_count(params, "n_layers", origin),
        num_heads=heads,
        num_kv_heads=number("n_kv_heads", default=heads),
        head_dim=number("head_dim", default=number("dim") // heads),
        ffn_hidden_size=number("hidden_dim"),
        vocab_size=number("vocab_size"),
        norm_eps=positive_number(params, "norm_eps", 1e-5, origin),
        rope_theta=positive_number(params, "rope_theta", 1e4, origin),
        max_positions=number("max_position_embeddings", default=number("max_seq_len", default=131072)),
    )
    window = params.get("sliding_window")
    if window is not None and not (isinstance(window, int) and window >= decoder.max_positions):
        raise CheckpointError(
            f"{origin}: sliding_window={window} is not supported.", "Attention here sees the whole document."
        )
    if decoder.num_heads % decoder.num_kv_heads:
        raise CheckpointError(f"{origin}: n_heads={heads} is not a multiple of n_kv_heads={decoder.num_kv_heads}.")
    return decoder


def _tower(vision: Mapping[str, Any], origin: str) -> TowerArchitecture:
    width, heads = positive_count(vision, "hidden_size", origin), positive_count(vision, "num_attention_heads", origin)
    if width % heads or width // heads % 4:
        raise CheckpointError(
            f"{origin}: hidden_size={width} with {heads} heads is not supported.",
            "Rotary positions in two dimensions need a head size in fours.",
        )
    return TowerArchitecture(
        hidden_size=width,
        num_layers=layer_count(vision, "num_hidden_layers", origin),
        num_heads=heads,
        head_dim=width // heads,
        ffn_hidden_size=positive_count(vision, "intermediate_size", origin),
        activation="silu",
        patch_size=positive_count(vision, "patch_size", origin),
        image_size=positive_count(vision, "image_size", origin),
        channels=positive_count(vision, "num_channels", origin, default=3),
        rope_theta=positive_number(vision, "rope_theta", 1e4, origin),
    )


def _refuse_unsupported(params: Mapping[str, Any], origin: str) -> None:
    for key in _CHANGES_THE_MODEL:
        # A merge of 1 merges nothing.
        if params.get(key) and not (key == "spatial_merge_size" and params[key] == 1):
            raise CheckpointError(
                f"{origin}: {key}={shown(params[key])} is not supported.",
                "The implementation is of Pixtral-12B's and Mistral-Nemo's architecture.",
            )


def _refuse_unsayable(architecture: Architecture) -> None:
    said: dict[str, tuple[object, object]] = {"decoder activation": (architecture.decoder.activation, "silu")}
    if architecture.tower is not None and architecture.projector is not None:
        said["tower activation"] = (architecture.tower.activation, "silu")
        said["tower norm_eps"] = (architecture.tower.norm_eps, 1e-5)
        said["projector activation"] = (architecture.projector.activation, "gelu")
    for what, (value, fixed) in said.items():
        if value != fixed:
            raise CheckpointError(
                f"{what} {value!r} cannot be said in Mistral's params.json.",
                f"Mistral's code fixes it to {fixed!r}: the converted model would compute something else.",
                "Keep this model in Hugging Face's form.",
            )
