"""Weights that transformers wrote of our models are read to the bit, by everything that reads weights.

The reference is the transformers model in memory. The commands that refusals name are run as they are printed.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_apriel.checkpoint.convert import convert, plan_conversion
from megatron_apriel.errors import CheckpointError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.kinds import Kind
from megatron_apriel.generate.transformers_model import TransformersModel
from megatron_apriel.planning.dry_run import print_plan
from megatron_apriel.surgery.average import average, plan_average
from megatron_apriel.surgery.average_inputs import AverageInput
from megatron_apriel.surgery.layer_maps import layer_map
from megatron_apriel.surgery.models import GivenModel
from megatron_apriel.surgery.upscale import plan_upscale, upscale
from megatron_apriel.testing.checkpoints import assert_same_tensors, write_hf_checkpoint
from megatron_apriel.testing.rigged_models import rigged_architecture
from megatron_apriel.testing.stages import small_stage

BESIDE = ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "generation_config.json")


@pytest.fixture(scope="module", params=["images and text", "text alone"])
def ours(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of our exports, with tokenizer and processor."""
    directory = tmp_path_factory.mktemp("ours") / "model"
    return write_hf_checkpoint(directory, rigged_architecture(tower=request.param != "text alone"), processor=True)


def kind_of(directory: Path) -> Any:
    import transformers

    return getattr(transformers, json.loads((directory / "config.json").read_text())["architectures"][0])


def in_memory(directory: Path) -> dict[str, torch.Tensor]:
    """What transformers reads, every weight from the files."""
    model, report = kind_of(directory).from_pretrained(directory, dtype="auto", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    return dict(model.state_dict())


def through_a_checkpoint(directory: Path, scratch: Path) -> Path:
    """As a run's checkpoint, and exported from it again."""
    convert(plan_conversion(directory, Kind.MEGATRON), scratch / "step_00000001", verify=True)
    convert(plan_conversion(scratch / "step_00000001", Kind.HF), scratch / "back", verify=True)
    return scratch / "back"


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("float32", {}),
        ("bfloat16", {"max_shard_size": "60KB"}),
        ("float16", {"save_original_format": False}),
        ("float32", {"save_original_format": False, "max_shard_size": "60KB"}),
    ],
    ids=["one file", "shards", "names in memory", "both"],
)
def test_what_transformers_saves_is_read_by_everything(
    ours: Path, tmp_path: Path, dtype: str, options: dict[str, Any]
) -> None:
    model = kind_of(ours).from_pretrained(ours, dtype=getattr(torch, dtype))
    model.save_pretrained(tmp_path / "saved", **options)
    for name in (*BESIDE, "chat_template.jinja"):
        if (ours / name).exists():
            shutil.copy(ours / name, tmp_path / "saved")
    saved, weights = tmp_path / "saved", dict(model.state_dict())
    assert_same_tensors(in_memory(through_a_checkpoint(saved, tmp_path)), weights)

    inputs = [AverageInput.from_directory(saved), AverageInput.from_directory(saved)]
    average(plan_average(inputs), tmp_path / "mean", verify=True)
    assert_same_tensors(in_memory(tmp_path / "mean"), weights)

    upscale(plan_upscale(GivenModel.open(saved), layer_map("interval", 4, 6)), tmp_path / "deeper", verify=True)
    deeper = in_memory(tmp_path / "deeper")
    assert all(torch.equal(deeper[name], tensor) for name, tensor in weights.items() if ".layers." not in name)
    assert Architecture.from_directory(tmp_path / "deeper") == Architecture.from_directory(ours).with_layers(6)

    print_plan(small_stage(64, init_from=str(saved)), 1)
    TransformersModel(saved)


@pytest.mark.parametrize("setting", ["torch_dtype", "dtype"])
def test_configs_of_either_version_of_transformers(ours: Path, tmp_path: Path, setting: str) -> None:
    """Version 4 writes torch_dtype, before 4.56, and rope_theta; the rest of its base class is harmless."""
    given = tmp_path / "given"
    shutil.copytree(ours, given)
    config = json.loads((given / "config.json").read_text())
    for part in (config, config.get("text_config", {}), config.get("vision_config", {})):
        part.pop("dtype", None)
        part.pop("rope_parameters", None)
        part.update({setting: "float32", "output_attentions": False, "use_bfloat16": False, "num_beams": 1})
    (given / "config.json").write_text(json.dumps(config | {"transformers_version": "4.51.3"}))
    back = through_a_checkpoint(given, tmp_path)
    assert_same_tensors(load_file(back / "model.safetensors"), load_file(ours / "model.safetensors"))
    assert json.loads((back / "config.json").read_text())[setting] == "float32"


def run_printed(error: CheckpointError, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Run the command that a refusal names, its words in capitals replaced, in this process."""
    _, option, code, *words = shlex.split(error.fix[error.fix.index("python -c") :])
    assert option == "-c"
    given = iter(map(str, arguments))
    monkeypatch.setattr(sys, "argv", [option, *(next(given) if word.isupper() else word for word in words)])
    exec(code, {})  # noqa: S102


def test_pickled_weights_are_read_after_the_command_that_is_named(
    ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ours, tmp_path / "bin")
    weights = load_file(ours / "model.safetensors")
    torch.save(weights, tmp_path / "bin" / "pytorch_model.bin")
    (tmp_path / "bin" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="pickled by torch") as caught:
        plan_conversion(tmp_path / "bin", Kind.MEGATRON)
    with pytest.raises(CheckpointError, match="pickled by torch"):
        TransformersModel(tmp_path / "bin")
    run_printed(caught.value, monkeypatch, tmp_path / "out")
    back = through_a_checkpoint(tmp_path / "out", tmp_path)
    assert_same_tensors(load_file(back / "model.safetensors"), weights)


def test_a_tied_head_is_read_after_the_command_that_is_named(
    ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers leaves a tied head out, and then writes the new one under its name in memory."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(ours)
    config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = True
    model = kind_of(ours)(config)
    model.tie_weights()
    model.save_pretrained(tmp_path / "tied")
    with pytest.raises(CheckpointError, match="tie_word_embeddings=True is not supported") as caught:
        plan_conversion(tmp_path / "tied", Kind.MEGATRON)
    run_printed(caught.value, monkeypatch, tmp_path / "tied", tmp_path / "out")
    assert_same_tensors(in_memory(through_a_checkpoint(tmp_path / "out", tmp_path)), dict(model.state_dict()))


def test_a_weight_under_both_of_its_names_is_left_over(tmp_path: Path) -> None:
    given = write_hf_checkpoint(tmp_path / "given", rigged_architecture())
    weights = load_file(given / "model.safetensors")
    save_file(weights | {"lm_head.weight": weights["language_model.lm_head.weight"] + 1}, given / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 left over \(lm_head\.weight\)"):
        plan_conversion(given, Kind.MEGATRON)


def test_a_model_without_its_head(ours: Path, tmp_path: Path) -> None:
    kind_of(ours).from_pretrained(ours).model.save_pretrained(tmp_path / "inner")
    with pytest.raises(CheckpointError, match=r"head(?s:.*)[Ss]ave the whole"):
        plan_conversion(tmp_path / "inner", Kind.MEGATRON)


def test_a_merge_that_made_layers_and_left_the_config(tmp_path: Path) -> None:
    given = write_hf_checkpoint(tmp_path / "given", rigged_architecture())
    config = json.loads((given / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] -= 1
    (given / "config.json").write_text(json.dumps(config))
    for read in (lambda: plan_conversion(given, Kind.MEGATRON), lambda: GivenModel.open(given)):
        with pytest.raises(CheckpointError, match="mergekit's passthrough"):
            read()


def test_a_bias_of_a_layer_is_no_further_layer(tmp_path: Path) -> None:
    given = write_hf_checkpoint(tmp_path / "given", rigged_architecture())
    weights = load_file(given / "model.safetensors")
    bias = next(name for name in weights if name.endswith("layers.0.self_attn.q_proj.weight")).replace("weight", "bias")
    save_file(weights | {bias: torch.zeros(4)}, given / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 left over \(.*q_proj\.bias\)") as caught:
        plan_conversion(given, Kind.MEGATRON)
    assert "further decoder layers" not in str(caught.value)


def with_adapters(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As PEFT's model inside is saved, before it is merged."""
    name = next(name for name in weights if name.endswith("layers.0.self_attn.q_proj.weight"))
    base = name.removesuffix(".weight")
    factor = torch.ones(4, weights[name].shape[1])
    left = {f"{base}.base_layer.weight": weights[name], f"{base}.lora_A.default.weight": factor}
    return {other: tensor for other, tensor in weights.items() if other != name} | left


def test_adapters_that_were_not_merged_never_answer(ours: Path, tmp_path: Path) -> None:
    """transformers would make up the matrices whose names it does not find, and go on."""
    shutil.copytree(ours, tmp_path / "left")
    save_file(with_adapters(load_file(ours / "model.safetensors")), tmp_path / "left" / "model.safetensors")
    reads: tuple[Callable[[], object], ...] = (
        lambda: TransformersModel(tmp_path / "left"),
        lambda: print_plan(small_stage(64, init_from=str(tmp_path / "left")), 1),
        lambda: plan_conversion(tmp_path / "left", Kind.HF),
    )
    for read in reads:
        with pytest.raises(CheckpointError, match=r"PEFT's adapters in it, not merged(?s:.*)merge_and_unload"):
            read()


def test_a_model_that_lacks_a_weight_never_answers(ours: Path, tmp_path: Path) -> None:
    shutil.copytree(ours, tmp_path / "lacking")
    weights = load_file(ours / "model.safetensors")
    del weights[next(name for name in weights if name.endswith("layers.1.mlp.up_proj.weight"))]
    save_file(weights, tmp_path / "lacking" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weight \(.*layers\.1\.mlp\.up_proj\.weight\)"):
        TransformersModel(tmp_path / "lacking")


def test_tokenizer_and_processor_that_no_merge_writes(
    ours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(ours / name, bare)
    tower = Architecture.from_directory(ours).tower is not None
    lacking = "tokenizer and processor" if tower else "tokenizer"
    with pytest.raises(CheckpointError, match=rf"has no {lacking}\.\n  Copy them(?s:.*)cp BASE/{{tokenizer,"):
        TransformersModel(bare)
    plan_conversion(bare, Kind.MEGATRON)
    assert f"has no {lacking}, and the result will have none. Copy them" in capsys.readouterr().err
    print_plan(small_stage(64, init_from=str(bare)), 1)
    assert f"has no {lacking}, and the result will have none. Copy them" in capsys.readouterr().out
    for name in BESIDE:
        if (ours / name).exists():
            shutil.copy(ours / name, bare)
    plan_conversion(bare, Kind.MEGATRON)
    assert "Copy them" not in capsys.readouterr().err
