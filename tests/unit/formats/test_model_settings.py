"""Settings in config.json and params.json: what transformers writes is taken, what is not understood is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, GenerationConfig

from megatron_apriel.errors import CheckpointError
from megatron_apriel.formats.architecture import PRESETS, Architecture
from megatron_apriel.formats.kinds import recognise
from megatron_apriel.formats.mistral_params import architecture_from_params, params_from_architecture
from megatron_apriel.formats.tensor_files import TensorDirectory
from megatron_apriel.testing.limits import refused_within

TINY = PRESETS["tiny"]
SECTIONS = ("", "text_config", "vision_config")

OLD_BASE_CLASS: dict[str, Any] = {
    # What transformers 4 wrote into every section of a config, beside the generation defaults.
    "_attn_implementation_autoset": True, "_name_or_path": "", "add_cross_attention": False, "architectures": None,
    "bos_token_id": 1, "chunk_size_feed_forward": 0, "cross_attention_hidden_size": None,
    "decoder_start_token_id": None, "eos_token_id": [2, 4], "finetuning_task": None,
    "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "is_decoder": False, "is_encoder_decoder": False,
    "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "output_attentions": False, "output_hidden_states": False,
    "pad_token_id": 11, "prefix": None, "problem_type": None, "pruned_heads": {}, "return_dict": True,
    "sep_token_id": None, "unk_token_id": 0, "task_specific_params": None, "tf_legacy_loss": False,
    "tie_encoder_decoder": False, "tokenizer_class": None, "torch_dtype": "bfloat16", "torchscript": False,
    "use_bfloat16": False, "transformers_version": "4.51.3", "quantization_config": None,
}  # fmt: skip


def config_with(section: str, **changes: Any) -> dict[str, Any]:
    """The tiny model's config with keys added to one of its sections."""
    config = TINY.to_hf_config()
    (config[section] if section else config).update(changes)
    return config


def params_with(tmp_path: Path, section: str, **changes: Any) -> Path:
    """A params.json of the tiny model with keys added to the file, or to ``vision_encoder``."""
    params = params_from_architecture(TINY)
    (params[section] if section else params).update(changes)
    file = tmp_path / "params.json"
    file.write_text(json.dumps(params))
    return file


@pytest.mark.parametrize("section", SECTIONS)
def test_what_transformers_writes_is_taken(section: str) -> None:
    whole = AutoConfig.for_model(**TINY.to_hf_config())
    assert Architecture.from_hf_config(json.loads(whole.to_json_string(use_diff=False))) == TINY
    assert Architecture.from_hf_config(json.loads(whole.to_json_string())) == TINY
    generation = GenerationConfig._get_default_generation_params()
    assert len(generation) > 20
    assert Architecture.from_hf_config(config_with(section, **OLD_BASE_CLASS, **generation)) == TINY


@pytest.mark.parametrize("tied", [True, False])
def test_a_tower_has_nothing_to_tie(tied: bool) -> None:
    # The base class wrote it into every section: true where a class said nothing else.
    assert Architecture.from_hf_config(config_with("vision_config", tie_word_embeddings=tied)) == TINY


@pytest.mark.parametrize("section", ["text_config", "vision_config"])
def test_defaults_that_are_written_out_are_taken(section: str) -> None:
    changes: dict[str, Any] = {"attention_dropout": 0, "initializer_range": 0.02, "rope_scaling": None}
    if section == "text_config":
        changes |= {
            "attention_bias": False, "mlp_bias": False, "is_causal": True, "pretraining_tp": 1, "sliding_window": 4096,
            "layer_types": ["full_attention"] * 4, "use_sliding_window": False, "partial_rotary_factor": 1.0,
        }  # fmt: skip
    assert Architecture.from_hf_config(config_with(section, **changes)) == TINY


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        *((section, "somebodys_switch", value) for section in SECTIONS for value in (False, True, 0, 1.5, "x", [], {})),
        *((section, "quantization_config", {"quant_method": "fp8"}) for section in SECTIONS),
        *((section, "per_layer_config", {"0": {"sliding_window": 8}}) for section in SECTIONS),
        *((section, "_sliding_window", 8) for section in SECTIONS),
        ("", "auto_map", {"AutoModel": "modeling.Model"}),
        ("", "lora", {"rank": 8}),
        ("", "architectures", ["LlavaNextForConditionalGeneration"]),
        ("", "architectures", ["LlavaForConditionalGeneration", "MistralForSequenceClassification"]),
        ("", "architectures", "LlavaForConditionalGeneration"),
        ("", "vocab_size", 512),
        ("", "spatial_merge_size", 2),
        ("", "vision_feature_layer", [-1, -2]),
        ("", "multimodal_projector_bias", "no"),
        ("", "pruned_heads", {"1": [0]}),
        ("text_config", "sliding_window", 8),
        ("text_config", "attention_bias", True),
        ("text_config", "mlp_bias", True),
        ("text_config", "causal", False),
        ("text_config", "is_causal", False),
        ("text_config", "use_bidirectional_attention", True),
        ("text_config", "attention_dropout", 0.1),
        ("text_config", "layer_types", ["full_attention", "sliding_attention"] * 2),
        ("text_config", "layer_types", ["full_attention"]),
        ("text_config", "num_local_experts", 8),
        ("text_config", "partial_rotary_factor", 0.5),
        ("text_config", "rope_scaling", {"type": "linear", "factor": 2.0}),
        ("text_config", "rope_scaling", {"rope_type": "default", "factor": 2.0}),
        ("text_config", "rope_parameters", {"rope_type": "default", "rope_theta": 5.0}),
        ("text_config", "rope_parameters", {"type": "yarn", "rope_type": "default"}),
        ("text_config", "rope_parameters", {"full_attention": {"rope_type": "default"}}),
        ("text_config", "is_encoder_decoder", True),
        ("vision_config", "attention_dropout", 0.1),
        ("vision_config", "spatial_merge_size", 2),
        ("vision_config", "rope_parameters", {"rope_type": "axial", "rope_theta": 5.0}),
        ("vision_config", "image_size", [256, 128]),
        ("vision_config", "num_experts", 4),
    ],
)
def test_what_could_change_the_model_is_refused_by_name(section: str, key: str, value: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        Architecture.from_hf_config(config_with(section, **{key: value}))
    what = str(caught.value).partition("\n")[0]
    assert key in what and (section in what or section == "")


def test_a_text_model_with_another_head_is_refused() -> None:
    text = {**TINY.to_hf_config()["text_config"], "model_type": "mistral"}
    assert Architecture.from_hf_config(text | {"architectures": ["MistralForCausalLM"]}).tower is None
    with pytest.raises(CheckpointError, match=r"architectures=\['MistralForSequenceClassification'\] is not supported"):
        Architecture.from_hf_config(text | {"architectures": ["MistralForSequenceClassification"]})


def test_the_class_of_a_section_is_only_where_it_came_from() -> None:
    assert Architecture.from_hf_config(config_with("text_config", architectures=["MistralModel"])) == TINY


def test_all_keys_of_a_config_that_are_not_understood_stand_in_one_message() -> None:
    with pytest.raises(CheckpointError) as caught:
        Architecture.from_hf_config(config_with("", one=1) | {"text_config": config_with("", two=2)})
    assert "model_type='llava' is not supported" in str(caught.value)  # what it is comes first
    config = config_with("text_config", two=2) | {"one": 1}
    with pytest.raises(CheckpointError, match=r"config\.json: text_config: two=2, one=1 are not understood"):
        Architecture.from_hf_config(config)


def test_a_million_keys_cost_little(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(config_with("text_config", **{f"k{n}": 1 for n in range(500_000)}))
    )
    assert "k0=1" in refused_within(Architecture.from_directory, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config_with("text_config", layer_types=[1] * 2_000_000)))
    assert "layer_types" in refused_within(Architecture.from_directory, tmp_path)


@pytest.mark.parametrize(
    "ids",
    [{"image_token_index": 10}, {"image_token_id": 10}, {"image_token_id": 10, "image_token_index": 10}],
)
def test_the_image_token_is_the_one_that_transformers_takes(ids: dict[str, int]) -> None:
    config = {**TINY.to_hf_config(), "text_config": TINY.to_hf_config()["text_config"]}
    del config["image_token_index"]
    config |= ids
    assert Architecture.from_hf_config(config).image_token_id == AutoConfig.for_model(**config).image_token_id == 10


def test_a_patch_has_a_token_of_the_vocabulary(tmp_path: Path) -> None:
    size = TINY.decoder.vocab_size
    assert Architecture.from_hf_config(config_with("", image_token_index=size - 1)).image_token_id == size - 1
    with pytest.raises(CheckpointError, match=rf"image token {size} is beyond the vocabulary of {size}"):
        Architecture.from_hf_config(config_with("", image_token_index=size))
    with pytest.raises(CheckpointError, match=rf"image token {size} is beyond the vocabulary of {size}"):
        architecture_from_params(params_with(tmp_path, "vision_encoder", image_token_id=size))


@pytest.mark.parametrize("section", ["text_config", "vision_config"])
def test_a_base_that_is_null_is_said_elsewhere(section: str) -> None:
    config = config_with(section, rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 5.0})
    theirs = getattr(AutoConfig.for_model(**json.loads(json.dumps(config))), section).rope_parameters
    part = "decoder" if section == "text_config" else "tower"
    assert getattr(Architecture.from_hf_config(config), part).rope_theta == theirs["rope_theta"] == 5.0
    with pytest.raises(CheckpointError, match=rf"{section}: rope_theta=None, and rope_parameters do not give another"):
        Architecture.from_hf_config(config_with(section, rope_theta=None, rope_parameters=None))


@pytest.mark.parametrize("section", SECTIONS)
def test_what_other_programs_note_of_a_tokenizer_changes_nothing(section: str) -> None:
    noted = {
        "keys_to_ignore_at_inference": ["past_key_values"], "transformers.js_config": {"dtype": "q4"},
        "model_max_length": 4096, "max_sequence_length": 4096, "tokenizer_model_max_length": 4096,
        "tokenizer_padding_side": "right",
    }  # fmt: skip
    assert Architecture.from_hf_config(config_with(section, **noted)) == TINY


@pytest.mark.parametrize(("index", "id_"), [(10, 17), (17, 10), (10, None), (None, 10)])
def test_two_image_tokens_are_refused(index: int | None, id_: int | None) -> None:
    with pytest.raises(CheckpointError, match=rf"image_token_index={index} and image_token_id={id_} contradict"):
        Architecture.from_hf_config(config_with("", image_token_index=index, image_token_id=id_))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        *((section, "somebodys_switch", value) for section in ("", "vision_encoder") for value in (False, 1, "x", {})),
        *((section, key, 8) for section in ("", "vision_encoder") for key in ("_sliding_window", "sliding_window")),
        *((section, "causal", False) for section in ("", "vision_encoder")),
        ("", "_sliding_window", [8, None, 8, None]),
        ("", "sliding_window", {"0": 8}),
        ("", "lora", {"rank": 8, "scaling": 2.0}),
        ("", "moe", {"num_experts": 8}),
        ("", "quantization", {"qformat_weight": "fp8_e4m3"}),
        ("", "yarn", {"factor": 16.0}),
        ("", "llama_4_scaling", {"beta": 0.1}),
        ("", "rope_scaling", {"factor": 2.0}),
        ("", "q_lora_rank", 12),
        ("", "tied_embeddings", True),
        ("", "use_biases", True),
        ("", "activation", "gelu"),
        ("", "model_type", "mamba"),
        ("", "multimodal", {"whisper_model_args": {}}),
        ("vision_encoder", "spatial_merge_size", 2),
        ("vision_encoder", "mm_projector_id", "patch_merge"),
        ("vision_encoder", "add_pre_mm_projector_layer_norm", True),
        ("vision_encoder", "max_image_size", 512),
        ("vision_encoder", "lora", {"rank": 8}),
        ("vision_encoder", "adapter_bias", 3),
    ],
)
def test_params_that_could_change_the_model_are_refused_by_name(
    tmp_path: Path, section: str, key: str, value: Any
) -> None:
    with pytest.raises(CheckpointError) as caught:
        architecture_from_params(params_with(tmp_path, section, **{key: value}))
    what = str(caught.value).partition("\n")[0]
    assert key in what and (section in what or section == "")


def test_params_that_say_nothing_new_are_taken(tmp_path: Path) -> None:
    none = dict.fromkeys(("moe", "lora", "yarn", "quantization", "llama_4_scaling", "_sliding_window", "unheard_of"))
    file = params_with(
        tmp_path, "", **none, sliding_window=[None, 4096], causal=True, tied_embeddings=False, model_type="transformer",
        activation="silu", max_batch_size=32, max_seq_len=4096, use_biases=False,
    )  # fmt: skip
    assert architecture_from_params(file) == TINY
    file = params_with(
        tmp_path, "vision_encoder", spatial_merge_size=1, mm_projector_id="", add_pre_mm_projector_layer_norm=False,
        max_image_size=256, image_break_token_id=14, image_end_token_id=15,
    )  # fmt: skip
    assert architecture_from_params(file) == TINY


@pytest.mark.parametrize(
    "name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model-00001-of-2.bin", "lora.safetensors"]
)
@pytest.mark.parametrize("model", [False, True], ids=["alone", "beside a model"])
def test_an_adapter_is_to_be_merged_first(tmp_path: Path, name: str, model: bool) -> None:
    (tmp_path / name).write_text("{}")
    if model:
        (tmp_path / "config.json").write_text(json.dumps(TINY.to_hf_config()))
        (tmp_path / "model.safetensors").write_bytes(b"")
    for read in (recognise, Architecture.from_directory, TensorDirectory.open):
        with pytest.raises(CheckpointError, match=rf"holds a PEFT adapter \({name}\)[\s\S]*Merge it first"):
            read(tmp_path)
