"""Mistral's ``params.json`` <-> Architecture.

The file that lies beside ``consolidated.safetensors`` in Mistral's own releases. It names fewer things than a Hugging
Face config does, and what it does not name is fixed by Mistral's code: gates are SiLU in both towers, the projector's
activation is GELU, RMSNorm's epsilon in the tower is 1e-5. No torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from megatron_apriel.errors import CheckpointError, printable, shown
from megatron_apriel.formats.architecture import (
    Architecture,
    DecoderArchitecture,
    ProjectorArchitecture,
    TowerArchitecture,
    checked_decoder,
    checked_tower,
)
from megatron_apriel.formats.json_files import read_json
from megatron_apriel.formats.other_tools import refuse_quantised
from megatron_apriel.formats.settings import Count, LayerCount, Positive, Settings, Unset


class VisionParams(Settings):
    """``vision_encoder``: the tower, and the projector behind it."""

    hidden_size: Count
    num_hidden_layers: LayerCount
    num_attention_heads: Count
    intermediate_size: Count
    patch_size: Count
    image_size: Count
    max_image_size: Count | None = None
    num_channels: Count = 3
    rope_theta: Positive = 1e4
    adapter_bias: bool = True
    image_token_id: Count = 10
    image_break_token_id: Count | None = None
    image_end_token_id: Count | None = None
    spatial_merge_size: Literal[1, None] = 1
    mm_projector_id: Unset = None
    add_pre_mm_projector_layer_norm: Unset = None


class MistralParams(Settings):
    """The whole file."""

    harmless: ClassVar[frozenset[str]] = frozenset({"max_batch_size"})

    dim: Count
    n_layers: LayerCount
    n_heads: Count
    n_kv_heads: Count | None = None
    head_dim: Count | None = None
    hidden_dim: Count
    vocab_size: Count
    norm_eps: Positive = 1e-5
    rope_theta: Positive | None = None
    max_position_embeddings: Count | None = None
    max_seq_len: Count | None = None
    sliding_window: Any = None
    sliding_window_by_layer: Any = Field(None, alias="_sliding_window")
    vision_encoder: VisionParams | None = None
    model_type: Literal["transformer"] = "transformer"
    activation: Literal["silu", None] = "silu"
    causal: Literal[True, None] = True
    tied_embeddings: Unset = None
    use_biases: Unset = None
    moe: Unset = None
    lora: Unset = None
    quantization: Unset = None
    quantization_config: Unset = None
    yarn: Unset = None
    llama_4_scaling: Unset = None
    q_lora_rank: Unset = None
    kv_lora_rank: Unset = None

    @field_validator("vision_encoder", mode="before")
    @classmethod
    def _none_where_empty(cls, given: Any) -> Any:
        return None if given == {} else given


def architecture_from_params(path: Path) -> Architecture:
    """Read ``params.json``. Raises CheckpointError if it is absent, damaged, incomplete or of an unsupported model."""
    origin = printable(path)
    params = read_params(path)
    decoder = _decoder(params, origin)
    if params.vision_encoder is None:
        return Architecture(decoder=decoder)
    tower = _tower(params.vision_encoder, f"{origin}: vision_encoder")
    projector = ProjectorArchitecture(tower.hidden_size, decoder.hidden_size, bias=params.vision_encoder.adapter_bias)
    token = params.vision_encoder.image_token_id
    return Architecture(decoder, tower, projector, image_token_id=token).checked(origin)


def read_params(path: Path) -> MistralParams:
    """The settings in ``params.json``. Raises CheckpointError as :func:`architecture_from_params`."""
    params = read_json(path, "The model's shapes are read from it.")
    refuse_quantised(params, printable(path))
    return MistralParams.read(params, printable(path))


def params_from_architecture(
    architecture: Architecture, break_and_end_ids: tuple[int, int] | None = None
) -> dict[str, Any]:
    """The content of ``params.json``; inverse of :func:`architecture_from_params`.

    Args:
        architecture: of the model.
        break_and_end_ids: what the tokenizer gives to [IMG_BREAK] and [IMG_END]; left out where it is not known.

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
        }
        if break_and_end_ids is not None:
            params["vision_encoder"] |= dict(
                zip(("image_break_token_id", "image_end_token_id"), break_and_end_ids, strict=True)
            )
    return params


def _decoder(params: MistralParams, origin: str) -> DecoderArchitecture:
    if params.rope_theta is None:
        raise CheckpointError(
            f"{origin} has no rope_theta.",
            "Mistral's code has taken 10000 and, later, 1000000 where it is absent: the positions cannot be known.",
            'Add "rope_theta" with the value that the model was trained with.',
        )
    decoder = DecoderArchitecture(
        hidden_size=params.dim,
        num_layers=params.n_layers,
        num_heads=params.n_heads,
        num_kv_heads=params.n_kv_heads or params.n_heads,
        head_dim=params.head_dim or params.dim // params.n_heads,
        ffn_hidden_size=params.hidden_dim,
        vocab_size=params.vocab_size,
        norm_eps=params.norm_eps,
        rope_theta=params.rope_theta,
        max_positions=params.max_position_embeddings or params.max_seq_len or 131072,
    )
    for name, window in (
        ("sliding_window", params.sliding_window),
        ("_sliding_window", params.sliding_window_by_layer),
    ):
        for one in window if isinstance(window, list) else [window]:
            if one is not None and not (isinstance(one, int) and one >= decoder.max_positions):
                raise CheckpointError(
                    f"{origin}: {name}={shown(window)} is not supported.",
                    "Attention here sees the whole document; a shorter window would train another model.",
                    f"Remove {name} if the model was trained without one.",
                )
    return checked_decoder(decoder, origin)


def _tower(vision: VisionParams, origin: str) -> TowerArchitecture:
    width, heads = vision.hidden_size, vision.num_attention_heads
    if vision.max_image_size not in (None, vision.image_size):
        raise CheckpointError(
            f"{origin}: image_size={vision.image_size} and max_image_size={vision.max_image_size} are not supported.",
            "An image is resized to one largest side.",
        )
    tower = TowerArchitecture(
        hidden_size=width,
        num_layers=vision.num_hidden_layers,
        num_heads=heads,
        head_dim=width // heads,
        ffn_hidden_size=vision.intermediate_size,
        activation="silu",
        patch_size=vision.patch_size,
        image_size=vision.image_size,
        channels=vision.num_channels,
        rope_theta=vision.rope_theta,
    )
    return checked_tower(tower, origin)


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
