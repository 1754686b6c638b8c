"""Shapes of a Pixtral-style model: text decoder, vision tower, projector; from and to a Hugging Face config.

Everything that depends on the model's size reads it from here: the model itself, the table of weight names, the
FLOPs rule, the memory estimate, the image-token arithmetic. A checkpoint's ``config.json`` says them; the presets
are for planning and for tests. What the implementation does not support is refused here, by name, before anything
is built. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_apriel.errors import CheckpointError, printable, shown
from megatron_apriel.formats.hf_config import LlavaSettings, MistralSettings, PixtralSettings, check_class
from megatron_apriel.formats.json_files import read_json
from megatron_apriel.formats.other_tools import refuse_adapter, refuse_leftovers, refuse_quantised
from megatron_apriel.inputs import what_was_meant


@dataclass(frozen=True)
class DecoderArchitecture:
    """Mistral-style causal decoder: RMSNorm, grouped-query attention, rotary positions, gated MLP, untied head.

    ``head_dim`` is a number of its own: Mistral-Nemo has hidden 5120 and 32 heads of 128, not of 160.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_hidden_size: int
    vocab_size: int
    norm_eps: float = 1e-5
    rope_theta: float = 1e9
    activation: str = "silu"
    max_positions: int = 131072

    @property
    def layer_parameters(self) -> int:
        """Parameters of one layer, norms included."""
        attention = self.hidden_size * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
        return attention + 3 * self.hidden_size * self.ffn_hidden_size + 2 * self.hidden_size

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the input embedding; the output head has as many."""
        return self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        return self.num_layers * self.layer_parameters + 2 * self.embedding_parameters + self.hidden_size


@dataclass(frozen=True)
class TowerArchitecture:
    """Pixtral vision transformer: patch convolution, RMSNorm, layers with 2-D rotary positions, no final norm."""

    hidden_size: int
    num_layers: int
    num_heads: int
    head_dim: int
    ffn_hidden_size: int
    activation: str
    patch_size: int = 16
    image_size: int = 1024
    channels: int = 3
    norm_eps: float = 1e-5
    rope_theta: float = 1e4

    @property
    def patch_values(self) -> int:
        """Numbers in one patch: channels x patch_size x patch_size."""
        return self.channels * self.patch_size**2

    @property
    def layer_parameters(self) -> int:
        return 4 * self.hidden_size**2 + 3 * self.hidden_size * self.ffn_hidden_size + 2 * self.hidden_size

    @property
    def parameters(self) -> int:
        return self.num_layers * self.layer_parameters + self.hidden_size * (self.patch_values + 1)


@dataclass(frozen=True)
class ProjectorArchitecture:
    """Two linear layers with an activation between, from the tower's width to the decoder's."""

    input_size: int
    output_size: int
    activation: str = "gelu"
    bias: bool = True

    @property
    def parameters(self) -> int:
        return (self.input_size + self.output_size + 2 * self.bias) * self.output_size


@dataclass(frozen=True)
class Architecture:
    """A whole model. ``tower`` and ``projector`` are None together for a text-only model."""

    decoder: DecoderArchitecture
    tower: TowerArchitecture | None = None
    projector: ProjectorArchitecture | None = None
    image_token_id: int = 10

    def checked(self, origin: str) -> Architecture:
        """The model itself. Raises CheckpointError where the token of a patch is beyond its vocabulary."""
        if self.tower is not None and self.image_token_id >= self.decoder.vocab_size:
            raise CheckpointError(
                f"{origin}: the image token {self.image_token_id} is beyond the vocabulary of"
                f" {self.decoder.vocab_size}.",
                "It has a row in the embedding, like every token, which the image's features replace.",
                "Set it to the tokenizer's id of [IMG]; Pixtral's is 10.",
            )
        return self

    @property
    def parameters(self) -> int:
        return sum(part.parameters for part in (self.decoder, self.tower, self.projector) if part is not None)

    def with_layers(self, num_layers: int) -> Architecture:
        """The same model with a decoder of ``num_layers`` layers."""
        return replace(self, decoder=replace(self.decoder, num_layers=num_layers))

    @classmethod
    def from_preset(cls, name: str) -> Architecture:
        """One of ``PRESETS``; raises CheckpointError with the valid names."""
        if name not in PRESETS:
            raise CheckpointError(
                f"no architecture preset {shown(name)}.", fix=f"Presets: {', '.join(sorted(PRESETS))}."
            )
        return PRESETS[name]

    @classmethod
    def from_directory(cls, path: str | Path) -> Architecture:
        """From ``config.json`` of a Hugging Face directory. Raises CheckpointError if absent, damaged, unsupported."""
        directory = Path(path)
        if not directory.exists():
            fix = "Give a directory with a checkpoint; weights are never downloaded."
            raise CheckpointError(f"{directory} does not exist.", what_was_meant(directory, "model"), fix)
        refuse_adapter(directory)
        file = directory / "config.json"
        if not file.exists():
            refuse_leftovers(directory)
        config = read_json(
            file,
            "The model's shapes are read from a Hugging Face config.json.",
            "Give a Hugging Face directory; tools/convert_checkpoint.py makes one from Mistral's own form.",
        )
        return cls.from_hf_config(config, origin=printable(file))

    @classmethod
    def from_hf_config(cls, config: Mapping[str, Any], origin: str = "config.json") -> Architecture:
        """From the dictionary of a ``LlavaConfig`` with a Pixtral tower, or of a text-only ``MistralConfig``.

        Args:
            config: parsed ``config.json``, in the form of transformers 4 (``rope_theta``) or 5 (``rope_parameters``).
            origin: where it came from, for error messages.
        """
        refuse_quantised(config, origin)
        model_type = config.get("model_type")
        if model_type == "mistral":
            text = MistralSettings.read(config, origin)
            check_class(config, origin)
            return cls(decoder=_decoder_from_hf(text, origin))
        if model_type != "llava":
            raise CheckpointError(
                f"{origin}: model_type {shown(model_type)} is not supported.",
                "The implementation is of LlavaForConditionalGeneration with a Pixtral tower and a Mistral decoder.",
                "Supported: 'llava' (Pixtral), 'mistral' (text only).",
            )
        settings = LlavaSettings.read(config, origin)
        check_class(config, origin)
        decoder = _decoder_from_hf(settings.text_config, f"{origin}: text_config")
        tower = _tower_from_hf(settings.vision_config, f"{origin}: vision_config")
        projector = ProjectorArchitecture(
            input_size=tower.hidden_size,
            output_size=decoder.hidden_size,
            activation=settings.projector_hidden_act,
            bias=settings.multimodal_projector_bias,
        )
        token = settings.resolved_image_token(origin)
        return cls(decoder=decoder, tower=tower, projector=projector, image_token_id=token).checked(origin)

    def to_hf_config(self, dtype: str = "bfloat16") -> dict[str, Any]:
        """A ``config.json`` that transformers loads; inverse of :meth:`from_hf_config`."""
        text = _decoder_to_hf(self.decoder)
        if self.tower is None or self.projector is None:
            return {"architectures": ["MistralForCausalLM"], "dtype": dtype, **text}
        return {
            "architectures": ["LlavaForConditionalGeneration"],
            "model_type": "llava",
            "dtype": dtype,
            "image_token_index": self.image_token_id,
            "multimodal_projector_bias": self.projector.bias,
            "projector_hidden_act": self.projector.activation,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "tie_word_embeddings": False,
            "text_config": text,
            "vision_config": _tower_to_hf(self.tower),
        }


def checked_decoder(decoder: DecoderArchitecture, origin: str) -> DecoderArchitecture:
    """The decoder itself. Raises CheckpointError where its heads cannot be computed."""
    if decoder.num_heads % decoder.num_kv_heads:
        raise CheckpointError(
            f"{origin}: {decoder.num_heads} attention heads are not a multiple of {decoder.num_kv_heads} key-value"
            " heads."
        )
    if decoder.head_dim < 1 or decoder.head_dim % 2:
        raise CheckpointError(
            f"{origin}: heads of {decoder.head_dim} are not supported.",
            "Rotary positions turn pairs of numbers, so that a head's size must be even.",
        )
    return decoder


def checked_tower(tower: TowerArchitecture, origin: str) -> TowerArchitecture:
    """The tower itself. Raises CheckpointError where its heads or patches cannot be computed."""
    if tower.head_dim * tower.num_heads != tower.hidden_size or tower.head_dim % 4:
        raise CheckpointError(
            f"{origin}: hidden_size={tower.hidden_size} with {tower.num_heads} heads of {tower.head_dim} is not"
            " supported.",
            "The tower's heads fill its width, and rotary positions in two dimensions need a head size in fours.",
        )
    if tower.image_size % tower.patch_size:
        raise CheckpointError(
            f"{origin}: image_size={tower.image_size} is not a multiple of patch_size={tower.patch_size}."
        )
    return tower


def _decoder_from_hf(settings: MistralSettings, origin: str) -> DecoderArchitecture:
    heads, window = settings.num_attention_heads, settings.sliding_window
    # MistralConfig's own default is 4096 where the key is absent, so that absence is not "no window".
    if window is not None and window < settings.max_position_embeddings:
        raise CheckpointError(
            f"{origin}: sliding_window={window} with max_position_embeddings={settings.max_position_embeddings} is not"
            " supported.",
            "Attention here sees the whole document; a shorter window would train another model.",
            'Set "sliding_window": null if the model was trained without one.',
        )
    if settings.layer_types is not None and len(settings.layer_types) != settings.num_hidden_layers:
        raise CheckpointError(
            f"{origin}: layer_types has {len(settings.layer_types)} entries, and num_hidden_layers is"
            f" {settings.num_hidden_layers}.",
            "There is one for each layer.",
        )
    decoder = DecoderArchitecture(
        hidden_size=settings.hidden_size,
        num_layers=settings.num_hidden_layers,
        num_heads=heads,
        num_kv_heads=settings.num_key_value_heads or heads,
        head_dim=settings.head_dim or settings.hidden_size // heads,
        ffn_hidden_size=settings.intermediate_size,
        vocab_size=settings.vocab_size,
        norm_eps=settings.rms_norm_eps,
        rope_theta=settings.resolved_rope_theta(origin),
        activation=settings.hidden_act,
        max_positions=settings.max_position_embeddings,
    )
    return checked_decoder(decoder, origin)


def _decoder_to_hf(decoder: DecoderArchitecture) -> dict[str, Any]:
    return {
        "model_type": "mistral",
        "hidden_size": decoder.hidden_size,
        "num_hidden_layers": decoder.num_layers,
        "num_attention_heads": decoder.num_heads,
        "num_key_value_heads": decoder.num_kv_heads,
        "head_dim": decoder.head_dim,
        "intermediate_size": decoder.ffn_hidden_size,
        "vocab_size": decoder.vocab_size,
        "hidden_act": decoder.activation,
        "rms_norm_eps": decoder.norm_eps,
        "rope_theta": decoder.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": decoder.rope_theta},
        "max_position_embeddings": decoder.max_positions,
        "sliding_window": None,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _tower_from_hf(settings: PixtralSettings, origin: str) -> TowerArchitecture:
    hidden_size, num_heads = settings.hidden_size, settings.num_attention_heads
    tower = TowerArchitecture(
        hidden_size=hidden_size,
        num_layers=settings.num_hidden_layers,
        num_heads=num_heads,
        head_dim=settings.head_dim or hidden_size // num_heads,
        ffn_hidden_size=settings.intermediate_size,
        activation=settings.hidden_act,
        patch_size=settings.patch_size,
        image_size=settings.image_size,
        channels=settings.num_channels,
        rope_theta=settings.resolved_rope_theta(origin),
    )
    return checked_tower(tower, origin)


def _tower_to_hf(tower: TowerArchitecture) -> dict[str, Any]:
    return {
        "model_type": "pixtral",
        "hidden_size": tower.hidden_size,
        "num_hidden_layers": tower.num_layers,
        "num_attention_heads": tower.num_heads,
        "head_dim": tower.head_dim,
        "intermediate_size": tower.ffn_hidden_size,
        "hidden_act": tower.activation,
        "patch_size": tower.patch_size,
        "image_size": tower.image_size,
        "num_channels": tower.channels,
        "rope_theta": tower.rope_theta,
        "attention_dropout": 0.0,
    }


def _pixtral(num_layers: int) -> Architecture:
    return Architecture(
        decoder=DecoderArchitecture(5120, num_layers, 32, 8, 128, 14336, 131072, max_positions=1024000),
        tower=TowerArchitecture(1024, 24, 16, 64, 4096, "silu"),
        projector=ProjectorArchitecture(1024, 5120),
    )


def _small(num_layers: int, hidden_size: int, vocab_size: int) -> Architecture:
    return Architecture(
        decoder=DecoderArchitecture(
            hidden_size,
            num_layers,
            4,
            2,
            hidden_size // 2,
            2 * hidden_size,
            vocab_size,
            rope_theta=1e6,
            max_positions=4096,
        ),
        tower=TowerArchitecture(48, 2, 3, 16, 96, "silu", image_size=256),
        projector=ProjectorArchitecture(48, hidden_size),
    )


PRESETS: dict[str, Architecture] = {
    "pixtral-12b": _pixtral(40),
    "apriel-15b": _pixtral(48),
    # tiny: for unit and multi-process tests. mini: large enough for the quickstart to learn something on two cores.
    "tiny": _small(4, 64, 256),
    "mini": _small(5, 128, 8192),
}
