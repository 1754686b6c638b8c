"""Weights of every form, read into shards."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_apriel.checkpoint import loading
from megatron_apriel.checkpoint.loading import load_weights
from megatron_apriel.checkpoint.parameter_shards import Place
from megatron_apriel.checkpoint.weights import open_weights
from megatron_apriel.errors import CheckpointError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.testing.checkpoints import write_hf_checkpoint

TINY = Architecture.from_preset("tiny")
TEXT = Architecture(TINY.decoder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf_checkpoint(tmp_path_factory.mktemp("hf"), TINY, dtype="bfloat16")


def test_every_shard_is_read_once(checkpoint, stand_in, monkeypatch):
    """The bytes that two tensor-parallel ranks read are those of their own parameters, and none besides."""
    for rank in range(2):
        model = stand_in(TINY, tensor_size=2, dtype=torch.bfloat16)
        monkeypatch.setattr(loading.Place, "current", lambda rank=rank: Place(tensor=rank, tensor_size=2))
        report = load_weights([model], checkpoint, TINY)
        mine = sum(parameter.numel() for parameter in model.parameters())
        assert report.bytes_read == 2 * mine
        assert report.elements == mine < TINY.parameters
        assert not report.casts


def test_megatron_layout(checkpoint, stand_in):
    """q, k, v by group and gate above up, assembled here by hand from transformers' file."""
    model = stand_in(TINY)
    report = load_weights([model], checkpoint, TINY)
    stored = load_file(checkpoint / "model.safetensors")
    prefix, decoder = "language_model.model.layers.2.", TINY.decoder
    q, k, v = (stored[f"{prefix}self_attn.{letter}_proj.weight"].float() for letter in "qkv")
    head, queries = decoder.head_dim, decoder.num_heads // decoder.num_kv_heads
    groups = []
    for group in range(decoder.num_kv_heads):
        groups.append(q.view(-1, head, q.shape[1])[group * queries : (group + 1) * queries].flatten(0, 1))
        groups += [k.view(-1, head, k.shape[1])[group], v.view(-1, head, v.shape[1])[group]]
    layer = model.decoder.layers[2]
    assert torch.equal(layer.self_attention.linear_qkv.weight, torch.cat(groups))
    gate, up = (stored[f"{prefix}mlp.{part}_proj.weight"].float() for part in ("gate", "up"))
    assert torch.equal(layer.mlp.linear_fc1.weight, torch.cat([gate, up]))
    assert torch.equal(layer.pre_mlp_layernorm.weight, stored[f"{prefix}post_attention_layernorm.weight"].float())
    patches = stored["vision_tower.patch_conv.weight"].float()
    assert torch.equal(model.tower.patch_embedding.weight, patches.flatten(1))
    assert report.casts[("bfloat16", "float32")] > 0
    assert "cast from bfloat16 to float32" in str(report)


def test_pipeline_ranks_load_their_layers(checkpoint, stand_in):
    whole, first, last = stand_in(TINY), stand_in(TINY, stop=1), stand_in(TINY, first=1)
    load_weights([whole], checkpoint, TINY)
    load_weights([first, last], checkpoint, TINY)
    assert torch.equal(first.decoder.layers[0].mlp.linear_fc2.weight, whole.decoder.layers[0].mlp.linear_fc2.weight)
    assert torch.equal(last.decoder.layers[2].mlp.linear_fc2.weight, whole.decoder.layers[3].mlp.linear_fc2.weight)
    with pytest.raises(CheckpointError, match=r"no rank's model has decoder.layers.1.*20 parameters"):
        load_weights([first], checkpoint, TINY)


@pytest.mark.parametrize("names", ["legacy", "v5"])
def test_layouts_of_names_and_shards_agree(checkpoint, stand_in, tmp_path, names):
    directory = write_hf_checkpoint(tmp_path / "sharded", TINY, dtype="bfloat16", names=names, max_shard_size="100KB")
    assert len(list(directory.glob("model-*.safetensors"))) > 2
    expected, model = stand_in(TINY), stand_in(TINY)
    load_weights([expected], checkpoint, TINY)
    load_weights([model], directory, TINY)
    for (name, parameter), other in zip(expected.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(parameter, other), name


def test_text_only(checkpoint, stand_in, tmp_path):
    """A text-only file, and a LLaVA file whose tower is left out, both fill a text-only model."""
    directory = write_hf_checkpoint(tmp_path / "text", TEXT)
    model = stand_in(TEXT)
    report = load_weights([model], directory, TEXT)
    assert report.tensors == 4 * 9 + 3
    assert torch.equal(model.output_layer.weight, load_file(directory / "model.safetensors")["lm_head.weight"])
    report = load_weights([model], checkpoint, TEXT)
    assert len(report.skipped) == 2 + 2 * 9 + 4
    assert "22 tensors" not in str(report) and "24 tensors have no place in this model" in str(report)
    with pytest.raises(CheckpointError, match=r"24 missing \(vision_tower.patch_conv.weight"):
        load_weights([stand_in(TINY)], directory, TINY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("language_model.model.layers.1.mlp.up_proj.weight"),
            "1 missing (language_model.model.layers.1",
        ),
        (
            lambda t: t.update({"language_model.extra.weight": torch.ones(1)}),
            "1 left over (language_model.extra.weight)",
        ),
        (lambda t: t.update({"vision_tower.ln_pre.weight": torch.ones(7)}), "shape [7], the architecture says [48]"),
        (lambda t: t.update({"vision_tower.ln_pre.weight": torch.ones(48).char()}), "is stored as I8"),
    ],
)
def test_every_tensor_is_accounted_for(checkpoint, stand_in, tmp_path, change, message):
    tensors = load_file(checkpoint / "model.safetensors")
    change(tensors)
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        load_weights([stand_in(TINY)], tmp_path, TINY)
    assert message in str(caught.value)


def test_known_buffers_are_ignored_by_name(checkpoint, stand_in, tmp_path):
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["language_model.model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    save_file(tensors, tmp_path / "model.safetensors")
    report = load_weights([stand_in(TINY)], tmp_path, TINY)
    assert report.skipped == ("language_model.model.layers.0.self_attn.rotary_emb.inv_freq",)


def test_truncated_and_foreign_directories(checkpoint, stand_in, tmp_path):
    whole = (checkpoint / "model.safetensors").read_bytes()
    (tmp_path / "config.json").write_text((checkpoint / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(whole[:-1000])
    with pytest.raises(CheckpointError, match="truncated"):
        load_weights([stand_in(TINY)], tmp_path, TINY)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="Pickled weights are not read"):
        load_weights([stand_in(TINY)], tmp_path, TINY)
    save_file({"encoder.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"none of its 1 tensor is a decoder weight.*encoder.weight"):
        load_weights([stand_in(TINY)], tmp_path, TINY)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_weights([stand_in(TINY)], tmp_path / "absent", TINY)
    (tmp_path / "config.json").write_text(json.dumps({}))


@pytest.mark.parametrize("columns", [None, (0, 8)])
def test_a_model_that_is_exported_anew_meanwhile_is_not_taken_for_the_old_one(checkpoint, tmp_path, columns):
    """Rows of a weight, or the columns that are a tensor-parallel rank's, which are read in another way."""
    path = write_hf_checkpoint(tmp_path / "hf", TINY, dtype="bfloat16", seed=1)
    weights, file = open_weights(path, TINY), path / "model.safetensors"
    written = file.stat().st_mtime_ns
    file.write_bytes((checkpoint / "model.safetensors").read_bytes())
    os.utime(file, ns=(written + 10**9, written + 10**9))  # the clock may tick rarely
    with pytest.raises(CheckpointError, match=r"model\.safetensors was changed while"):
        weights.read("language_model.model.layers.0.mlp.down_proj.weight", 0, 8, columns)


@pytest.mark.parametrize("columns", [None, (0, 8)])
def test_a_model_that_is_removed_meanwhile(tmp_path, columns):
    path = write_hf_checkpoint(tmp_path / "hf", TINY)
    weights = open_weights(path, TINY)
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot read .*down_proj\.weight: .*No such file"):
        weights.read("language_model.model.layers.0.mlp.down_proj.weight", 0, 8, columns)


def test_tensor_parallel_must_divide(checkpoint, stand_in, monkeypatch):
    with pytest.raises(CheckpointError, match=r"cannot be divided over 4 tensor-parallel ranks in whole groups of 128"):
        stand_in(TINY, tensor_size=4)
