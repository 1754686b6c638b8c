"""What other tools leave behind is refused by the tool's name and with the next step: names of files and tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_apriel.errors import CheckpointError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.kinds import recognise
from megatron_apriel.formats.mistral_params import architecture_from_params, params_from_architecture
from megatron_apriel.formats.tensor_files import TensorDirectory
from megatron_apriel.surgery.average_inputs import AverageInput
from megatron_apriel.surgery.models import GivenModel
from megatron_apriel.testing.plain_safetensors import write_model

TEXT = Architecture(Architecture.from_preset("tiny").decoder)
LAYER = "model.layers.0.self_attn.q_proj"

FILES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "pickled": (("config.json", "pytorch_model.bin"), "pickled by torch", "save_pretrained(out)"),
    "pickled shards": (
        ("config.json", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"),
        "pickled by torch",
        "save_pretrained(out)",
    ),
    "Mistral's first form": (("params.json", "consolidated.00.pth"), "Mistral that were pickled", "weights_only=True"),
    "a state dict": (("config.json", "state.pt"), "pickled by torch", "save_pretrained"),
    "Lightning": (("last.ckpt",), "pickled by torch", "save_pretrained"),
    "a corpus": (("corpus.json", "images.bin", "tokens.bin"), "a prepared corpus", "named in the mixture of a stage"),
    "GGUF": (("model-q4_k_m.gguf",), "llama.cpp (GGUF)", "Hugging Face directory that it was made from"),
    "DeepSpeed": (
        ("latest", "zero_to_fp32.py", "global_step500/mp_rank_00_model_states.pt", "config.json"),
        "DeepSpeed",
        "deepspeed.utils.zero_to_fp32 . OUT --safe_serialization",
    ),
    "DeepSpeed's ranks": (
        ("mp_rank_00_model_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"),
        "DeepSpeed",
        "above its global_step folder",
    ),
    "accelerate": (
        ("pytorch_model_fsdp_0/.metadata", "pytorch_model_fsdp_0/__0_0.distcp", "optimizer_0/__0_0.distcp"),
        "FSDP, saved by accelerate",
        "accelerate merge-weights",
    ),
    "torchtitan": ((".metadata", "__0_0.distcp"), "(DCP), as torchtitan", "checkpoint.last_save_in_hf"),
    "torchtitan's run": (("step-10/.metadata", "step-10/__0_0.distcp"), "(DCP), as torchtitan", "convert_to_hf.py"),
    "shards of an export": (("shard-00001-model-00001-of-00002.safetensors",), "shards", "the directory above"),
    "torchtitan's export": (
        ("model-00001-of-00001.safetensors", "model.safetensors.index.json"),
        "config.json does not exist",
        "cp BASE/{config,",
    ),
    "Megatron": (
        ("latest_checkpointed_iteration.txt", "iter_0000500/mp_rank_00/model_optim_rng.pt"),
        "Megatron-LM",
        "export_ckpt(",
    ),
    "Megatron's distributed form": ((".metadata", "common.pt", "__0_0.distcp"), "Megatron-LM", "Bridge"),
    "NeMo": (("model.nemo",), "NeMo", "Bridge"),
    "JAX": (("config.json", "flax_model.msgpack"), "another framework", "Hugging Face directory"),
    "ONNX": (("model.onnx",), "another framework", "Hugging Face directory"),
}  # fmt: skip


def touch(directory: Path, names: tuple[str, ...]) -> Path:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(TEXT.to_hf_config()) if name == "config.json" else ""
        (directory / name).write_text(text)
    return directory


@pytest.mark.parametrize("names, tool, next_step", FILES.values(), ids=FILES.keys())
def test_files_of_other_tools(tmp_path: Path, names: tuple[str, ...], tool: str, next_step: str) -> None:
    directory = touch(tmp_path / "it's here", names)
    # A directory with a config is known for a model before its weights are looked for.
    if "config.json" not in names:
        with pytest.raises(CheckpointError) as caught:
            recognise(directory)
        assert tool in caught.value.what and next_step in caught.value.fix
        assert str(directory) in caught.value.what
    if "config.json does not exist" not in tool:
        with pytest.raises(CheckpointError) as caught:
            TensorDirectory.open(directory)
        assert tool in caught.value.what and next_step in caught.value.fix


def test_a_path_is_quoted_in_a_command(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        TensorDirectory.open(touch(tmp_path / "a $(b) c", ("config.json", "pytorch_model.bin")))
    assert f"'{tmp_path}/a $(b) c' OUT" in caught.value.fix


@pytest.mark.parametrize(
    ("name", "tool"), [("model.gguf", "GGUF"), ("pytorch_model.bin", "pickled"), ("model.safetensors", "is a file")]
)
def test_a_file_in_place_of_a_directory(tmp_path: Path, name: str, tool: str) -> None:
    touch(tmp_path, (name,))
    for read in (recognise, TensorDirectory.open):
        with pytest.raises(CheckpointError, match=tool) as caught:
            read(tmp_path / name)
        assert str(tmp_path) in str(caught.value)


def test_what_a_trainer_leaves_beside_a_model_is_no_model(tmp_path: Path) -> None:
    """transformers' Trainer pickles its own state; a directory with nothing else is not refused as pickled weights."""
    touch(tmp_path, ("config.json", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth"))
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        TensorDirectory.open(tmp_path)
    write_model(tmp_path, {"a": ("F32", np.ones(1, "<f4"))}, TEXT.to_hf_config())
    assert TensorDirectory.open(tmp_path).entries.keys() == {"a"}


def test_the_directory_above_names_the_one_below(tmp_path: Path) -> None:
    for name in ("checkpoint-500", "checkpoint-1500"):
        touch(tmp_path / "run" / name, ("config.json",))
    touch(tmp_path / "models--a--b" / "snapshots" / "5f2c", ("config.json",))
    with pytest.raises(CheckpointError, match=r"Did you mean .*run/checkpoint-1500\?"):
        recognise(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"Did you mean .*snapshots/5f2c\?"):
        recognise(tmp_path / "models--a--b")


NAMES: dict[str, tuple[str, str, str]] = {
    f"{LAYER}.base_layer.weight": ("F32", "PEFT", "merge_and_unload()"),
    f"{LAYER}.lora_A.default.weight": ("F32", "PEFT", "merge_and_unload()"),
    f"{LAYER}.lora_magnitude_vector.default.weight": ("F32", "PEFT", "merge_and_unload()"),
    f"{LAYER}.ia3_l.default": ("F32", "PEFT", "merge_and_unload()"),
    f"{LAYER}.oft_R.default.weight": ("F32", "PEFT", "merge_and_unload()"),
    "base_model.model.lm_head.weight": ("F32", "PEFT", "merge_and_unload()"),
    "lm_head.modules_to_save.default.weight": ("F32", "PEFT", "merge_and_unload()"),
    f"{LAYER}.qweight": ("I32", "GPTQ or AWQ", "bfloat16 or float32"),
    f"{LAYER}.weight.absmax": ("U8", "bitsandbytes", "bfloat16 or float32"),
    f"{LAYER}.weight.quant_state.bitsandbytes__nf4": ("U8", "bitsandbytes", "bfloat16 or float32"),
    f"{LAYER}.SCB": ("F32", "bitsandbytes", "bfloat16 or float32"),
    f"{LAYER}.weight_packed": ("I32", "compressed-tensors", "bfloat16 or float32"),
    f"{LAYER}.weight_scale": ("F32", "FP8", "bfloat16 or float32"),
    f"{LAYER}.weight_scale_inv": ("F32", "FP8", "bfloat16 or float32"),
    "layers.0.attention.wq.qscale_weight": ("F32", "FP8", "bfloat16 or float32"),
    f"{LAYER}.scales": ("F16", "MLX", "bfloat16 or float32"),
    f"_orig_mod.{LAYER}.weight": ("F32", "torch.compile", "unwrap_model"),
    f"module.{LAYER}.weight": ("F32", "DDP", "unwrap_model"),
    "model._fsdp_wrapped_module.layers.0._fsdp_wrapped_module.mlp.up_proj.weight": ("F32", "FSDP", "unwrap_model"),
    "layers.0.attention.qkv_linear.wq.weight": ("F32", "torchtitan", "last_save_in_hf"),
    "decoder.layers.0.self_attention.linear_qkv.weight": ("F32", "Megatron Core", "Bridge"),
    "layers.0.self_attn.q_proj.weight": ("F32", "without its head", "whole model"),
    "language_model.layers.0.self_attn.q_proj.weight": ("F32", "without its head", "whole model"),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_of_tensors_that_tell_the_tool(tmp_path: Path, name: str) -> None:
    """Whatever is to be done with the weights; averages would go through, since they look at no name."""
    dtype, tool, next_step = NAMES[name]
    numbers = np.ones(4, {"F32": "<f4", "F16": "<f2", "I32": "<i4", "U8": "u1"}[dtype])
    tensors = {f"{LAYER}.weight": ("F32", np.ones((2, 2), "<f4")), name: (dtype, numbers)}
    write_model(tmp_path, tensors, TEXT.to_hf_config())
    for read in (TensorDirectory.open, GivenModel.open, AverageInput.from_directory):
        with pytest.raises(CheckpointError) as caught:
            read(tmp_path)
        assert tool in caught.value.what and name in caught.value.what
        assert next_step in caught.value.fix


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.input_layernorm.weight",
        "model.language_model.layers.0.mlp.gate_proj.weight",
        "language_model.model.layers.0.self_attn.o_proj.weight",
        "model.vision_tower.transformer.layers.0.feed_forward.up_proj.weight",
        "multi_modal_projector.linear_1.bias",
        "layers.0.attention.wq.weight",
        "vision_encoder.transformer.layers.0.attention_norm.weight",
        "tok_embeddings.weight",
    ],
)
def test_names_of_plain_models_are_taken(tmp_path: Path, name: str) -> None:
    write_model(tmp_path, {name: ("F32", np.ones(4, "<f4"))}, {})
    assert TensorDirectory.open(tmp_path).entries.keys() == {name}


def test_weights_that_deepspeed_did_not_gather(tmp_path: Path) -> None:
    empty = ("BF16", np.empty(0, "<u2"))
    write_model(tmp_path, {f"{LAYER}.weight": empty, "model.norm.weight": empty}, TEXT.to_hf_config())
    with pytest.raises(CheckpointError, match=r"2 tensors without a number(?s:.*)DeepSpeed(?s:.*)zero_to_fp32"):
        TensorDirectory.open(tmp_path)


def test_a_merge_that_lost_its_decoder(tmp_path: Path) -> None:
    tower = {"model.vision_tower.transformer.layers.0.attention.q_proj.weight": ("F32", np.ones((2, 2), "<f4"))}
    write_model(tmp_path, tower, {})
    (tmp_path / "mergekit_config.yml").write_text("merge_method: linear\n")
    with pytest.raises(CheckpointError, match=r"mergekit left the decoder out(?s:.*)save_original_format=False"):
        TensorDirectory.open(tmp_path)
    decoder = {"model.language_model.layers.0.self_attn.q_proj.weight": ("F32", np.ones((2, 2), "<f4"))}
    write_model(tmp_path, tower | decoder, {})
    assert len(TensorDirectory.open(tmp_path).entries) == 2


@pytest.mark.parametrize("part", ["", "text_config"])
@pytest.mark.parametrize(
    "setting",
    [
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}},
        {"compression_config": {"quant_method": "compressed-tensors"}},
        {"quantization": {"group_size": 64, "bits": 4}},
    ],
    ids=lambda setting: str(next(iter(setting.values())).get("quant_method", "MLX")),
)
def test_quantised_weights_are_refused_by_their_config(tmp_path: Path, part: str, setting: dict[str, Any]) -> None:
    config: dict[str, Any] = Architecture.from_preset("tiny").to_hf_config()
    (config[part] if part else config).update(setting)
    write_model(tmp_path, {"a": ("BF16", np.ones(4, "<u2"))}, config)
    for read in (Architecture.from_directory, GivenModel.open, AverageInput.from_directory):
        with pytest.raises(CheckpointError, match="Give the weights that they were made from") as caught:
            read(tmp_path)
        said = next(iter(setting.values()))
        assert next(iter(setting)) in caught.value.what and said.get("quant_method", "bits") in caught.value.what
    (tmp_path / "params.json").write_text(json.dumps(params_from_architecture(TEXT) | setting))
    with pytest.raises(CheckpointError, match="Give the weights that they were made from"):
        architecture_from_params(tmp_path / "params.json")
