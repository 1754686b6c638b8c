"""tools/convert_checkpoint.py: round trips to the bit, and Mistral's order of rows against transformers' formula."""

from __future__ import annotations

import errno
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from converting import TINY, convert
from safetensors.torch import load_file, save_file

from megatron_apriel.checkpoint.distributed_weights import DistributedCheckpointReader
from megatron_apriel.checkpoint.loading import load_weights
from megatron_apriel.errors import CheckpointError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.mistral_params import architecture_from_params, params_from_architecture
from megatron_apriel.testing.checkpoints import assert_same_tensors, write_hf_checkpoint

TEXT = Architecture(TINY.decoder)


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor for file in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(file).items()
    }


def test_mistral_form_is_the_published_one(hf, mistral, tmp_path):
    assert convert(hf, tmp_path / "out", "--to", "mistral", "--verify") == 0
    assert_same_tensors(tensors_of(tmp_path / "out"), tensors_of(mistral))
    assert architecture_from_params(tmp_path / "out" / "params.json") == architecture_from_params(
        mistral / "params.json"
    )


def test_mistral_to_hf_gives_the_same_logits(mistral, hf, tmp_path):
    from transformers import LlavaForConditionalGeneration

    assert convert(mistral, tmp_path / "out", "--to", "hf", "--verify") == 0
    assert_same_tensors(tensors_of(tmp_path / "out"), tensors_of(hf))
    inputs = {"input_ids": torch.tensor([[1, 10, 10, 12, 10, 10, 13, 40, 41]]), "image_sizes": torch.tensor([[32, 32]])}
    inputs["pixel_values"] = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = []
    for directory in (hf, tmp_path / "out"):
        model, report = LlavaForConditionalGeneration.from_pretrained(
            directory, dtype=torch.float32, output_loading_info=True
        )
        assert not report["missing_keys"] and not report["unexpected_keys"]
        with torch.no_grad():
            logits.append(model.eval()(**inputs).logits)
    assert torch.equal(*logits)


@pytest.mark.parametrize(
    "path",
    [
        ("hf", "mistral", "hf"),
        ("hf", "megatron", "hf"),
        ("mistral", "megatron", "mistral"),
        ("mistral", "hf", "mistral"),
    ],
)
def test_round_trips_are_exact(hf, mistral, tmp_path, path):
    source = {"hf": hf, "mistral": mistral}[path[0]]
    assert convert(source, tmp_path / "there", "--to", path[1], "--verify") == 0
    assert convert(tmp_path / "there", tmp_path / "back", "--to", path[2], "--max-shard-size", "200KB") == 0
    assert len(list((tmp_path / "back").glob("*.safetensors"))) > 2
    assert_same_tensors(tensors_of(tmp_path / "back"), tensors_of(source))
    if path == ("hf", "megatron", "hf"):
        assert json.loads((tmp_path / "back" / "config.json").read_text()) == json.loads(
            (hf / "config.json").read_text()
        )
    if path == ("mistral", "megatron", "mistral"):
        given, back = (json.loads((place / "params.json").read_text()) for place in (mistral, tmp_path / "back"))
        assert given == back


def test_text_only(tmp_path):
    source = write_hf_checkpoint(tmp_path / "text", TEXT)
    assert convert(source, tmp_path / "mistral", "--to", "mistral") == 0
    assert "vision_encoder" not in json.loads((tmp_path / "mistral" / "params.json").read_text())
    assert convert(tmp_path / "mistral", tmp_path / "back", "--to", "hf") == 0
    assert_same_tensors(tensors_of(tmp_path / "back"), tensors_of(source))


def test_megatron_form_loads_and_reads_by_rows(hf, stand_in, tmp_path, monkeypatch):
    """Pieces of a few rows each: what training loads and what averaging reads are the source's numbers."""
    from megatron_apriel.checkpoint import write_distributed

    monkeypatch.setattr(write_distributed, "PIECE_BYTES", 5000)
    assert convert(hf, tmp_path / "run", "--to", "megatron") == 0
    expected, model = stand_in(TINY), stand_in(TINY)
    load_weights([expected], hf, TINY)
    load_weights([model], tmp_path / "run", TINY)
    assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), model.parameters(), strict=True))
    source, stored = DistributedCheckpointReader(tmp_path / "run"), load_file(hf / "model.safetensors")
    assert source.tensors.keys() == stored.keys()
    for name, spec in source.tensors.items():
        assert spec.shape == tuple(stored[name].shape) and spec.dtype == "BF16"
        start, stop = spec.rows // 3, spec.rows // 3 + max(1, spec.rows // 2)
        rows = source.read(name, start, stop)
        assert rows.dtype == numpy.uint16
        assert rows.tobytes() == stored[name][start:stop].contiguous().view(torch.uint8).numpy().tobytes(), name


def test_dtype(hf, tmp_path, capsys):
    assert convert(hf, tmp_path / "wide", "--to", "hf", "--dtype", "float32") == 0
    narrow = load_file(hf / "model.safetensors")
    assert_same_tensors(tensors_of(tmp_path / "wide"), {name: tensor.float() for name, tensor in narrow.items()})
    assert json.loads((tmp_path / "wide" / "config.json").read_text())["dtype"] == "float32"
    narrow["vision_tower.ln_pre.weight"][3] = 1e30
    (tmp_path / "large").mkdir()
    shutil.copy(hf / "config.json", tmp_path / "large")
    save_file(narrow, tmp_path / "large" / "model.safetensors")
    assert convert(tmp_path / "large", tmp_path / "half", "--to", "hf", "--dtype", "float16") == 1
    assert "vision_tower.ln_pre.weight has numbers that float16 cannot hold" in capsys.readouterr().err
    assert not (tmp_path / "half").exists()


def test_existing_destination_and_dry_run(hf, tmp_path, capsys):
    target = tmp_path / "out"
    assert convert(hf, target, "--to", "mistral", "--dry-run") == 0
    assert "nothing was written" in capsys.readouterr().out and not target.exists()
    target.mkdir()
    (target / "mine.txt").write_text("precious")
    assert convert(hf, target, "--to", "mistral") == 1
    assert convert(hf, target, "--to", "mistral", "--overwrite") == 1
    assert "has no params.json" in capsys.readouterr().err
    assert [path.name for path in target.iterdir()] == ["mine.txt"]
    (target / "params.json").write_text("{}")
    assert convert(hf, target, "--to", "mistral", "--overwrite") == 0
    assert not (target / "mine.txt").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-7]), "truncated"),
        (lambda path: save_file({"layers.0.attention.wq.weight": torch.ones(2, 2)}, path), "missing (vision_encoder."),
        (lambda path: save_file({"other": torch.ones(2, 2)}, path), "none of its 1 tensor is a decoder weight"),
        (lambda path: path.unlink(), "holds no checkpoint"),
    ],
)
def test_damaged_sources(mistral, tmp_path, capsys, damage, message):
    shutil.copytree(mistral, tmp_path / "source")
    damage(tmp_path / "source" / "consolidated.safetensors")
    assert convert(tmp_path / "source", tmp_path / "out", "--to", "hf") == 1
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_config_names_a_dtype_into_which_all_fit(hf, tmp_path):
    """Of float16 and bfloat16 neither holds the other's numbers."""
    stored = load_file(hf / "model.safetensors")
    stored["language_model.model.norm.weight"] = stored["language_model.model.norm.weight"].half()
    (tmp_path / "mixed").mkdir()
    shutil.copy(hf / "config.json", tmp_path / "mixed")
    save_file(stored, tmp_path / "mixed" / "model.safetensors")
    assert convert(tmp_path / "mixed", tmp_path / "out", "--to", "hf") == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    assert_same_tensors(tensors_of(tmp_path / "out"), stored)


def test_failure_in_mid_write_leaves_nothing(hf, tmp_path, capsys, monkeypatch):
    from megatron_apriel.checkpoint import weights

    read, calls = weights.SafetensorsWeights.read, []

    def fails(self, *arguments):
        calls.append(1)
        if len(calls) > 20:
            raise CheckpointError("the disk went away")
        return read(self, *arguments)

    monkeypatch.setattr(weights.SafetensorsWeights, "read", fails)
    for form in ("hf", "mistral", "megatron"):
        calls.clear()
        assert convert(hf, tmp_path / "out", "--to", form) == 1
        assert "the disk went away" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []


def test_disk_that_fills_in_the_middle_of_a_tensor(hf, tmp_path, capsys, monkeypatch):
    """torch.save would make a riddle of it: that its archive is at an unexpected position."""

    class Full(io.BytesIO):
        def write(self, data):
            if self.tell() + len(data) > 50_100:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    ordinary = Path.open

    def opened(path, mode="r", **options):
        return Full() if mode == "wb" and path.suffix == ".distcp" else ordinary(path, mode, **options)

    monkeypatch.setattr(Path, "open", opened)
    assert convert(hf, tmp_path / "out", "--to", "megatron") == 1
    assert f"OutputError: {tmp_path / 'out'} could not be written: No space left on device." in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_mistrals_form_cannot_say(tmp_path, capsys):
    gelu = replace(TINY, tower=replace(TINY.tower, activation="gelu"))
    source = write_hf_checkpoint(tmp_path / "gelu", gelu)
    assert convert(source, tmp_path / "out", "--to", "mistral") == 1
    assert "tower activation 'gelu' cannot be said in Mistral's params.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"moe": {"num_experts": 8}}, "moe={'num_experts': 8} is not supported"),
        ({"rope_theta": ...}, "has no rope_theta"),
        ({"n_layers": "four"}, "n_layers='four' is not a positive whole number"),
        ({"n_layers": 10**9}, "n_layers=1000000000"),
        ({"n_kv_heads": 3}, "4 attention heads are not a multiple of 3 key-value heads"),
        ({"sliding_window": 128}, "sliding_window=128 is not supported"),
        ({"sliding_window": [128, None]}, "sliding_window=[128, None] is not supported"),
        ({"norm_eps": "1e-5"}, "norm_eps='1e-5' is not a positive number"),
        ({"vision_encoder": True}, "vision_encoder=True is not an object"),
    ],
)
def test_unsupported_params(tmp_path, params, message):
    given = {name: value for name, value in ({**params_from_architecture(TINY), **params}).items() if value is not ...}
    (tmp_path / "params.json").write_text(json.dumps(given))
    with pytest.raises(CheckpointError) as caught:
        architecture_from_params(tmp_path / "params.json")
    assert message in str(caught.value)
