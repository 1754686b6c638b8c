"""What a Hugging Face ``config.json`` may say: LLaVA with a Pixtral tower and a Mistral decoder, or Mistral alone.

The defaults are those of transformers' LlavaConfig, MistralConfig and PixtralVisionConfig, since published configs
leave out what equals them (Pixtral-12B its 32 heads). Versions of transformers before 5 write the whole of their base
class into each section: generation defaults, labels of classifiers, how attention is run. All that is harmless here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from megatron_apriel.errors import CheckpointError, shown
from megatron_apriel.formats.settings import MOST_LAYERS, Count, LayerCount, One, Positive, Settings, Unset, Zero

Activation = Literal["silu", "gelu"]
"""Gate activations that both the Hugging Face reference and this model know; ``gelu`` is the exact (erf) form."""

_ORIGIN = {"architectures", "dtype", "torch_dtype", "transformers_version", "name_or_path", "_name_or_path"}
_ORIGIN |= {"keys_to_ignore_at_inference", "transformers.js_config"}
_ORIGIN |= {"_commit_hash", "unsloth_version", "unsloth_fixed", "model_name", "is_composition"}
_RUNNING = {"use_cache", "cache_implementation", "gradient_checkpointing", "chunk_size_feed_forward"}
_RUNNING |= {"attn_implementation", "_attn_implementation", "_attn_implementation_autoset"}
_RUNNING |= {"_attn_implementation_internal", "experts_implementation", "_experts_implementation"}
_RUNNING |= {"_experts_implementation_internal", "_flash_attn_2_enabled"}
_RUNNING |= {"output_attentions", "_output_attentions", "output_hidden_states", "return_dict", "use_return_dict"}
_RUNNING |= {"torchscript", "use_bfloat16", "tf_legacy_loss"}
_TOKENS = {"bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id"}
_TOKENS |= {"unk_token_id", "tokenizer_class", "prefix", "max_sequence_length", "model_max_length"}
_TOKENS |= {"tokenizer_model_max_length", "tokenizer_padding_side"}
_CLASSIFIER = {"id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params"}
_GENERATION = {"assistant_confidence_threshold", "assistant_lookbehind", "bad_words_ids", "begin_suppress_tokens"}
_GENERATION |= {"diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size"}
_GENERATION |= {"encoder_repetition_penalty", "epsilon_cutoff", "eta_cutoff", "exponential_decay_length_penalty"}
_GENERATION |= {"forced_bos_token_id", "forced_eos_token_id", "length_penalty", "max_length", "max_new_tokens"}
_GENERATION |= {"min_length", "no_repeat_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule"}
_GENERATION |= {"num_beam_groups", "num_beams", "num_return_sequences", "output_scores", "remove_invalid_values"}
_GENERATION |= {"repetition_penalty", "return_dict_in_generate", "suppress_tokens", "target_lookbehind"}
_GENERATION |= {"temperature", "top_k", "top_p", "typical_p"}


class _Section(Settings):
    """What transformers' base class gives to every section."""

    harmless: ClassVar[frozenset[str]] = frozenset(
        {*_ORIGIN, *_RUNNING, *_TOKENS, *_CLASSIFIER, *_GENERATION, "is_decoder", "initializer_range"}
    )

    add_cross_attention: Literal[False] = False
    is_encoder_decoder: Literal[False] = False
    tie_encoder_decoder: Literal[False] = False
    per_layer_config: Unset = None
    pruned_heads: Unset = None
    quantization_config: Unset = None


_CLASSES = {
    "llava": ("LlavaForConditionalGeneration", "LlavaModel", "PixtralForConditionalGeneration"),
    "mistral": ("MistralForCausalLM", "MistralModel"),
}
"""What computes a model of each kind, as transformers and vLLM call it."""


def check_class(config: Mapping[str, Any], origin: str) -> None:
    """Raise CheckpointError if a config names a class that computes something else than its kind of model does.

    Servers choose by this name: a classifier has another head, and Llava-NeXT cuts images into tiles.
    """
    named, known = config.get("architectures"), _CLASSES[str(config.get("model_type"))]
    if named and not (isinstance(named, list) and all(name in known for name in named)):
        raise CheckpointError(
            f"{origin}: architectures={shown(named)} is not supported for model_type={config['model_type']!r}.",
            "Servers choose by it what is computed.",
            f"Supported: {', '.join(known)}.",
        )


class RopeSettings(Settings):
    """Rotary positions, in ``rope_parameters`` (transformers 5) or ``rope_scaling`` (before)."""

    rope_type: str | None = None
    type: str | None = None
    rope_theta: Positive | None = None
    partial_rotary_factor: One | None = None


class _RotarySection(_Section):
    """A section whose model turns queries and keys."""

    rope_types: ClassVar[tuple[str, ...]] = ("default",)

    attention_dropout: Zero | None = 0.0
    partial_rotary_factor: One | None = None
    rope_theta: Positive | None = 1e4
    rope_parameters: RopeSettings | None = None
    rope_scaling: RopeSettings | None = None

    def resolved_rope_theta(self, origin: str) -> float:
        """The base of the angles. Raises CheckpointError for another kind of positions, and for two bases."""
        given = [("rope_theta", self.rope_theta)] if "rope_theta" in self.model_fields_set and self.rope_theta else []
        for name, block in (("rope_parameters", self.rope_parameters), ("rope_scaling", self.rope_scaling)):
            if block is None:
                continue
            for kind in (block.rope_type, block.type):
                if kind is not None and kind not in self.rope_types:
                    raise CheckpointError(
                        f"{origin}: rotary positions of type {kind!r} are not supported ({name}).",
                        fix=f"Supported: {', '.join(self.rope_types)}.",
                    )
            if block.rope_theta is not None:
                given.append((f"{name}.rope_theta", block.rope_theta))
        for name, theta in given[1:]:
            if theta != given[0][1]:
                raise CheckpointError(
                    f"{origin}: {given[0][0]}={given[0][1]:g} and {name}={theta:g} contradict each other.",
                    "Versions of transformers and other readers take the one or the other.",
                    "Remove the one that the model was not trained with.",
                )
        if given:
            return given[0][1]
        if self.rope_theta is None:
            raise CheckpointError(
                f"{origin}: rope_theta=None, and rope_parameters do not give another.",
                "The positions cannot be known without it.",
                "Set rope_theta to the value that the model was trained with.",
            )
        return self.rope_theta


class MistralSettings(_RotarySection):
    """Of the decoder: ``text_config``, or the whole file of a text-only model."""

    model_type: Annotated[Literal["mistral"], Field(validate_default=True)] = None  # type: ignore[assignment]
    hidden_size: Count = 4096
    num_hidden_layers: LayerCount = 32
    num_attention_heads: Count = 32
    num_key_value_heads: Count | None = 8
    head_dim: Count | None = None
    intermediate_size: Count = 14336
    vocab_size: Count = 32000
    hidden_act: Activation = "silu"
    rms_norm_eps: Positive = 1e-6
    max_position_embeddings: Count = 131072
    sliding_window: Count | None = 4096
    layer_types: Annotated[list[Literal["full_attention"]], Field(max_length=MOST_LAYERS)] | None = None
    attention_bias: Literal[False, None] = False
    mlp_bias: Literal[False, None] = False
    tie_word_embeddings: Literal[False, None] = False
    is_causal: Literal[True, None] = True
    use_bidirectional_attention: Literal[False, None] = False
    use_sliding_window: Literal[False, None] = False
    pretraining_tp: Literal[1, None] = 1


class PixtralSettings(_RotarySection):
    """Of the tower: ``vision_config``.

    transformers' base class gave every section ``tie_word_embeddings``; a tower has neither embedding nor head.
    """

    harmless: ClassVar[frozenset[str]] = _Section.harmless | {"tie_word_embeddings"}

    rope_types: ClassVar[tuple[str, ...]] = ("default", "axial")

    model_type: Annotated[Literal["pixtral"], Field(validate_default=True)] = None  # type: ignore[assignment]
    hidden_size: Count = 1024
    num_hidden_layers: LayerCount = 24
    num_attention_heads: Count = 16
    head_dim: Count | None = None
    intermediate_size: Count = 4096
    hidden_act: Activation = "gelu"
    """Published Pixtral configs name silu; this is what transformers takes where the key is absent."""
    patch_size: Count = 16
    image_size: Count = 1024
    num_channels: Count = 3
    spatial_merge_size: Literal[1, None] = 1


class LlavaSettings(_Section):
    """The whole file of a vision-language model."""

    harmless: ClassVar[frozenset[str]] = _Section.harmless | {"ignore_index", "image_seq_length"}

    model_type: Literal["llava"]
    text_config: MistralSettings
    vision_config: PixtralSettings
    image_token_index: Count | None = None
    image_token_id: Count | None = None
    projector_hidden_act: Activation = "gelu"
    multimodal_projector_bias: bool = True
    vision_feature_layer: Annotated[Literal[-1], Field(validate_default=True)] = -2  # type: ignore[assignment]
    vision_feature_select_strategy: Annotated[Literal["full"], Field(validate_default=True)] = "default"  # type: ignore[assignment]
    tie_word_embeddings: Literal[False, None] = False
    spatial_merge_size: Literal[1, None] = 1

    @model_validator(mode="before")
    @classmethod
    def _without_repetitions(cls, given: Any) -> Any:
        """Take out what the first LLaVA configs say of the decoder once more, where it is the same."""
        text = given.get("text_config") if isinstance(given, Mapping) else None
        if not isinstance(text, Mapping):
            return given
        return {
            name: value
            for name, value in given.items()
            if name not in ("vocab_size", "hidden_size") or value != text.get(name)
        }

    def resolved_image_token(self, origin: str) -> int:
        """The id that stands for a patch. Raises CheckpointError where it is not said, or said in two ways.

        transformers 5 renamed ``image_token_index`` to ``image_token_id`` and writes either; of both it takes the
        second, even where that is null, and earlier versions take the first.
        """
        names = ("image_token_index", "image_token_id")
        given = {name: getattr(self, name) for name in names if name in self.model_fields_set}
        if not any(given.values()):
            raise CheckpointError(
                f"{origin} has no image_token_index.",
                "Which token stands for a patch would have to be guessed, and readers guess differently.",
                "Add it from the published config; Pixtral's is 10.",
            )
        if len(set(given.values())) > 1:
            raise CheckpointError(
                f"{origin}: {' and '.join(f'{name}={value}' for name, value in given.items())} contradict each other.",
                "transformers 5 takes the second, earlier versions the first.",
                "Remove the one that the tokenizer does not give to [IMG].",
            )
        return int(next(iter(given.values())))


_KINDS: Mapping[str, type[_Section]] = {"llava": LlavaSettings, "mistral": MistralSettings, "pixtral": PixtralSettings}
_SECTIONS = ("text_config", "vision_config")


_TRAINING_ALONE = re.compile(r"drop(out)?$|_loss_coef$|^output_router_logits$|^router_jitter_noise$")
"""Of any kind of model: what was done in training, and not what its weights mean."""


def is_known(section: Mapping[str, Any]) -> bool:
    """Whether a section is of a kind whose settings, and what they are where absent, are known."""
    return str(section.get("model_type")) in _KINDS


def comparable(section: Mapping[str, Any]) -> dict[str, Any]:
    """What a section says of its model, in one spelling, so that two can be compared key by key.

    Of a known kind, absent keys have their defaults. Left out are keys that change nothing or only training, how far
    positions went, what is null, false or empty, and sections inside.

    Args:
        section: the whole config, its ``text_config`` or its ``vision_config``; of any kind of model.
    """
    kind = _KINDS.get(str(section.get("model_type")))
    fields = kind.model_fields if kind is not None else {}
    said = {name: field.default for name, field in fields.items() if not field.is_required()} | dict(section)
    for name in ("rope_scaling", "rope_parameters"):
        block = said.pop(name, None)
        if isinstance(block, Mapping):
            said |= {f"rope_{key.removeprefix('rope_')}": value for key, value in block.items() if value is not None}
    said["rope_type"] = said.get("rope_type") if said.get("rope_type") != "default" else None
    if said.get("image_token_index") is None:
        said["image_token_index"] = said.pop("image_token_id", None)
    if kind is MistralSettings:
        said["num_key_value_heads"] = said["num_key_value_heads"] or said["num_attention_heads"]
        sizes = said["hidden_size"], said["num_attention_heads"]
        if not said["head_dim"] and all(type(size) is int and size > 0 for size in sizes):
            said["head_dim"] = sizes[0] // sizes[1]
    if isinstance(types := said.get("layer_types"), list) and set(map(str, types)) == {"full_attention"}:
        del said["layer_types"]
    left_out = {
        *(kind or _Section).harmless,
        *_SECTIONS,
        "max_position_embeddings",
        *filter(_TRAINING_ALONE.search, said),
    }
    return {
        name: value for name, value in said.items() if name not in left_out and value not in (None, False, "", [], {})
    }
