"""Shapes from configs, against transformers' own reading of the same files and against published figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, LlavaForConditionalGeneration

from megatron_apriel.errors import CheckpointError
from megatron_apriel.formats.architecture import PRESETS, Architecture
from megatron_apriel.formats.json_files import read_json
from megatron_apriel.formats.mistral_params import architecture_from_params

PUBLISHED: dict[str, Any] = {
    # As the public Pixtral-12B config is written: what equals a default is left out.
    "architectures": ["LlavaForConditionalGeneration"],
    "ignore_index": -100,
    "image_seq_length": 1,
    "image_token_index": 10,
    "model_type": "llava",
    "projector_hidden_act": "gelu",
    "text_config": {
        "head_dim": 128,
        "hidden_size": 5120,
        "intermediate_size": 14336,
        "is_composition": True,
        "max_position_embeddings": 1024000,
        "model_type": "mistral",
        "num_hidden_layers": 40,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 1000000000.0,
        "sliding_window": None,
        "vocab_size": 131072,
    },
    "torch_dtype": "bfloat16",
    "vision_config": {
        "head_dim": 64,
        "hidden_act": "silu",
        "image_size": 1024,
        "is_composition": True,
        "model_type": "pixtral",
        "patch_size": 16,
        "rope_theta": 10000.0,
    },
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
}


def changed(**changes: Any) -> dict[str, Any]:
    """The published config with ``part__key`` (or ``key``) replaced; ``...`` removes it."""
    config = json.loads(json.dumps(PUBLISHED))
    for path, value in changes.items():
        *parents, key = path.split("__")
        section = config[parents[0]] if parents else config
        if value is ...:
            del section[key]
        else:
            section[key] = value
    return config


def test_the_published_config_is_the_preset() -> None:
    assert Architecture.from_hf_config(PUBLISHED) == PRESETS["pixtral-12b"]


def test_what_unsloth_notes_of_itself_changes_nothing() -> None:
    noted = changed(unsloth_fixed=True, unsloth_version="2025.3.1", model_name="unsloth/Pixtral-12B-2409")
    assert Architecture.from_hf_config(noted, "a") == Architecture.from_hf_config(PUBLISHED, "a")


def test_parameters_are_those_of_transformers_and_of_the_paper() -> None:
    import torch

    with torch.device("meta"):
        model = LlavaForConditionalGeneration(AutoConfig.for_model(**PRESETS["apriel-15b"].to_hf_config()))
    assert PRESETS["apriel-15b"].parameters == sum(parameter.numel() for parameter in model.parameters())
    assert round(PRESETS["pixtral-12b"].parameters / 1e9, 3) == 12.683
    assert round(PRESETS["apriel-15b"].parameters / 1e9, 3) == 14.864
    assert len(model.state_dict()) == 657


@pytest.mark.parametrize("keys", [(), ("hidden_size", "num_attention_heads"), ("head_dim",)])
def test_defaults_of_the_decoder_are_those_of_transformers(keys: tuple[str, ...]) -> None:
    known = {"hidden_size": 256, "num_attention_heads": 8, "head_dim": 48}
    config = {"model_type": "mistral", "sliding_window": None, **{key: known[key] for key in keys}}
    theirs = AutoConfig.for_model(**config)
    ours = Architecture.from_hf_config(config).decoder
    assert ours.hidden_size == theirs.hidden_size
    assert (ours.num_heads, ours.num_kv_heads) == (theirs.num_attention_heads, theirs.num_key_value_heads)
    assert ours.head_dim == (theirs.head_dim or theirs.hidden_size // theirs.num_attention_heads)
    assert (ours.num_layers, ours.ffn_hidden_size) == (theirs.num_hidden_layers, theirs.intermediate_size)
    assert (ours.vocab_size, ours.norm_eps, ours.activation) == (
        theirs.vocab_size,
        theirs.rms_norm_eps,
        theirs.hidden_act,
    )
    assert ours.max_positions == theirs.max_position_embeddings
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]


def test_defaults_of_the_tower_are_those_of_transformers() -> None:
    config = changed(vision_config={"model_type": "pixtral"})
    theirs, ours = AutoConfig.for_model(**config).vision_config, Architecture.from_hf_config(config).tower
    assert ours is not None
    for mine, name in (
        (ours.hidden_size, "hidden_size"),
        (ours.num_layers, "num_hidden_layers"),
        (ours.num_heads, "num_attention_heads"),
        (ours.ffn_hidden_size, "intermediate_size"),
        (ours.activation, "hidden_act"),
        (ours.patch_size, "patch_size"),
        (ours.image_size, "image_size"),
    ):
        assert mine == getattr(theirs, name), name


@pytest.mark.parametrize("name", PRESETS)
def test_configs_go_there_and_back(name: str) -> None:
    architecture = PRESETS[name]
    assert Architecture.from_hf_config(architecture.to_hf_config()) == architecture


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen2_vl"}, "model_type 'qwen2_vl' is not supported"),
        ({"vision_config__model_type": "clip_vision_model"}, "vision_config: model_type='clip_vision_model'"),
        ({"text_config__model_type": "llama"}, "text_config: model_type='llama'"),
        ({"vision_feature_layer": -2}, "vision_feature_layer=-2 is not supported"),
        ({"vision_feature_select_strategy": ...}, "vision_feature_select_strategy='default'"),
        ({"text_config__sliding_window": 4096}, "sliding_window=4096 with max_position_embeddings=1024000"),
        ({"text_config__sliding_window": ...}, "sliding_window=4096"),
        ({"text_config__tie_word_embeddings": True}, "tie_word_embeddings=True is not supported"),
        ({"text_config__hidden_act": "relu"}, "hidden_act='relu' is not supported"),
        ({"text_config__hidden_size": "wide"}, "hidden_size='wide' is not a positive whole number"),
        ({"text_config__num_hidden_layers": 10**9}, "num_hidden_layers=1000000000"),
        ({"vision_config__num_hidden_layers": 10**9}, "vision_config: num_hidden_layers=1000000000"),
        ({"text_config__head_dim": 127}, "heads of 127 are not supported"),
        ({"text_config__num_key_value_heads": 7}, "32 attention heads are not a multiple of 7"),
        ({"text_config__rope_parameters": {"rope_type": "yarn"}}, "rotary positions of type 'yarn'"),
        ({"text_config": "mistral"}, "text_config='mistral' is not an object"),
        ({"text_config__rope_parameters": [1]}, "rope_parameters=[1] is not an object"),
        ({"text_config__rms_norm_eps": "1e-5"}, "rms_norm_eps='1e-5' is not a positive number"),
        ({"text_config__sliding_window": "all"}, "sliding_window='all' is not a positive whole number"),
        ({"vision_config__rope_theta": None}, "rope_theta=None, and rope_parameters do not give another"),
        ({"text_config__rms_norm_eps": float("inf")}, "rms_norm_eps=inf is not a positive number"),
        ({"text_config__rms_norm_eps": 10**400}, "000 is not a positive number"),
        ({"image_token_index": "ten"}, "image_token_index='ten' is not a positive whole number"),
        ({"vision_config__image_size": 1000}, "image_size=1000 is not a multiple of patch_size=16"),
        ({"vision_config__head_dim": 32}, "hidden_size=1024 with 16 heads of 32"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        Architecture.from_hf_config(changed(**changes))
    assert message in str(caught.value)


def test_absent_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        Architecture.from_directory(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not valid JSON"):
        Architecture.from_directory(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config\.json holds a list, not an object"):
        Architecture.from_directory(tmp_path)
    for text in ("[" * 100_000, '{"hidden_size": 1' + "0" * 5000 + "}"):
        (tmp_path / "config.json").write_text(text)
        for read in (Architecture.from_directory, lambda path: architecture_from_params(path / "config.json")):
            with pytest.raises(CheckpointError, match="is not valid JSON"):
                read(tmp_path)
        with pytest.raises(CheckpointError, match="cannot be read"):
            read_json(tmp_path / "config.json")
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    for read in (Architecture.from_directory, lambda path: architecture_from_params(path / "config.json")):
        with pytest.raises(CheckpointError, match=r"config\.json cannot be read: Is a directory"):
            read(tmp_path)


def test_unknown_presets_name_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match=r"apriel-15b, mini, pixtral-12b, tiny"):
        Architecture.from_preset("apriel")


@pytest.mark.parametrize("token", ["absent", None])
def test_which_token_stands_for_a_patch_is_not_guessed(token: str | None) -> None:
    config = changed(image_token_index=token)
    if token == "absent":
        del config["image_token_index"]
    with pytest.raises(CheckpointError, match="has no image_token_index"):
        Architecture.from_hf_config(config)
