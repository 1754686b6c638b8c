"""tools/convert_checkpoint.py: round trips to the bit, and Mistral's order of rows against transformers' formula."""

from __future__ import annotations

import errno
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

from megatron_apriel.checkpoint.distributed_weights import DistributedCheckpointReader
from megatron_apriel.checkpoint.loading import load_weights
from megatron_apriel.errors import CheckpointError, run_command
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.mistral_params import architecture_from_params, params_from_architecture
from megatron_apriel.testing.checkpoints import assert_same_tensors, write_hf_checkpoint
from megatron_apriel.testing.scripts import load_script
from megatron_apriel.testing.tokenizers import write_small_tekken
from megatron_apriel.testing.word_patterns import LLAMA3, byte_level, sequence, set_words, split

TINY = Architecture.from_preset("tiny")
TEXT = Architecture(TINY.decoder)


def convert(*arguments: object) -> int:
    return run_command(
        lambda: load_script("tools/convert_checkpoint.py").main([str(argument) for argument in arguments])
    )


def tensors_of(directory: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor for file in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(file).items()
    }


def to_mistral(stored: dict[str, torch.Tensor], architecture: Architecture) -> dict[str, torch.Tensor]:
    """Mistral's form, made here from the published description alone: names, and q and k permuted head by head."""

    def permuted(weight: torch.Tensor, head: int) -> torch.Tensor:
        # The inverse of transformers' conversion: view(H, d//2, 2, in).transpose(1, 2).reshape(H*d, in).
        return weight.view(-1, 2, head // 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape).contiguous()

    decoder, tower, result = architecture.decoder, architecture.tower, {}
    renamed = {
        "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo", "attention.q_proj": "attention.wq", "attention.k_proj": "attention.wk",
        "attention.v_proj": "attention.wv", "attention.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1",
        "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3", "gate_proj": "w1", "down_proj": "w2",
        "up_proj": "w3", "post_attention_layernorm": "ffn_norm", "input_layernorm": "attention_norm",
        "linear_1": "w_in", "linear_2": "w_out", "embed_tokens": "tok_embeddings",
    }  # fmt: skip
    for name, tensor in stored.items():
        in_tower = name.startswith("vision_tower")
        new = name.replace("language_model.model.", "").replace("language_model.lm_head", "output")
        new = new.replace("vision_tower", "vision_encoder").replace("multi_modal_projector", "vision_language_adapter")
        for old, mistral in renamed.items():
            new = new.replace(old, mistral)
        rotary = name.endswith(("q_proj.weight", "k_proj.weight"))
        result[new] = permuted(tensor, tower.head_dim if in_tower else decoder.head_dim) if rotary else tensor
    return result


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf_checkpoint(tmp_path_factory.mktemp("forms") / "hf", TINY, dtype="bfloat16")


@pytest.fixture(scope="module")
def mistral(hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("forms") / "mistral"
    directory.mkdir()
    save_file(to_mistral(load_file(hf / "model.safetensors"), TINY), directory / "consolidated.safetensors")
    # As Mistral writes it, with a key that this project does not know.
    params = {**params_from_architecture(TINY), "model_type": "transformer"}
    (directory / "params.json").write_text(json.dumps(params))
    return directory


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


def test_tokenizer_and_processor_from_tekken(tmp_path):
    """What Mistral publishes becomes a directory that transformers' own classes load."""
    from transformers import AutoProcessor

    hf = write_hf_checkpoint(tmp_path / "hf", LARGE)
    assert convert(hf, tmp_path / "mistral", "--to", "mistral") == 0
    write_small_tekken(tmp_path / "mistral" / "tekken.json", 1300)
    assert convert(tmp_path / "mistral", tmp_path / "out", "--to", "hf") == 0
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.tokenizer("Hello")["input_ids"]
    assert processor.image_processor.size["longest_edge"] == 256


def test_the_side_of_images_goes_from_form_to_form(tmp_path, capsys):
    hf = write_hf_checkpoint(tmp_path / "hf", LARGE)
    assert convert(hf, tmp_path / "mistral", "--to", "mistral") == 0
    tekken = write_small_tekken(tmp_path / "mistral" / "tekken.json", 1300)
    table = json.loads(tekken.read_bytes())
    tekken.write_text(json.dumps({**table, "image": {"image_patch_size": 16, "max_image_size": 128}}))
    assert convert(tmp_path / "mistral", tmp_path / "out", "--to", "hf") == 0
    processor = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    assert processor["image_processor"]["size"] == {"longest_edge": 128}
    assert convert(tmp_path / "out", tmp_path / "again", "--to", "mistral") == 0
    (tmp_path / "out" / "tekken.json").unlink()
    capsys.readouterr()
    assert convert(tmp_path / "out", tmp_path / "third", "--to", "mistral") == 1
    assert "images are resized to 128 pixels, and to 256 in Mistral's form" in capsys.readouterr().err


LARGE = replace(TINY, decoder=replace(TINY.decoder, vocab_size=1300))
"""With room for Tekken's special tokens."""


def other_tekken(file: Path) -> None:
    """Tekken's table with [IMG_BREAK] at 14 and [IMG_END] at 15, as Pixtral-Large has them."""
    names = {0: "<unk>", 1: "<s>", 2: "</s>", 10: "[IMG]", 11: "<pad>", 14: "[IMG_BREAK]", 15: "[IMG_END]"}
    names = {rank: names.get(rank, f"<SPECIAL_{rank}>") for rank in range(1000)}
    table = json.loads(write_small_tekken(file, LARGE.decoder.vocab_size).read_bytes())
    table["special_tokens"] = [{"rank": rank, "token_str": name, "is_control": True} for rank, name in names.items()]
    file.write_text(json.dumps(table))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf_checkpoint(tmp_path_factory.mktemp("large") / "hf", LARGE)


def vision_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "params.json").read_text())["vision_encoder"]


@pytest.mark.parametrize("form", ["tekken.json", "tokenizer.json"])
def test_break_and_end_ids_are_those_of_the_tokenizer(large, tmp_path, form):
    from transformers.integrations.mistral import convert_tekken_tokenizer

    shutil.copytree(large, tmp_path / "source")
    other_tekken(tmp_path / "source" / "tekken.json")
    if form == "tokenizer.json":
        tokenizer = convert_tekken_tokenizer(str(tmp_path / "source" / "tekken.json"))
        assert tokenizer.convert_tokens_to_ids(["[IMG_BREAK]", "[IMG_END]"]) == [14, 15]
        tokenizer.save_pretrained(tmp_path / "source")
        (tmp_path / "source" / "tekken.json").unlink()
    assert convert(tmp_path / "source", tmp_path / "out", "--to", "mistral") == 0
    assert {key: id_ for key, id_ in vision_of(tmp_path / "out").items() if key.endswith("_token_id")} == {
        "image_token_id": 10,
        "image_break_token_id": 14,
        "image_end_token_id": 15,
    }
    # The way back says so too, or does not begin.
    assert convert(tmp_path / "out", tmp_path / "back", "--to", "megatron", "--dry-run") == 0


def test_without_a_tokenizer_break_and_end_ids_are_left_out(large, tmp_path, capsys):
    assert convert(large, tmp_path / "out", "--to", "mistral") == 0
    assert not {"image_break_token_id", "image_end_token_id"} & vision_of(tmp_path / "out").keys()
    assert "has no tokenizer: params.json does not name the ids of [IMG_BREAK] and [IMG_END]" in capsys.readouterr().err


@pytest.mark.parametrize("to", ["hf", "mistral", "megatron"])
def test_params_that_contradict_the_tokenizer_are_refused(large, tmp_path, capsys, to):
    assert convert(large, tmp_path / "source", "--to", "mistral") == 0
    params = params_from_architecture(LARGE, (12, 13))
    (tmp_path / "source" / "params.json").write_text(json.dumps(params))
    other_tekken(tmp_path / "source" / "tekken.json")
    assert convert(tmp_path / "source", tmp_path / "out", "--to", to) == 1
    assert "image_break_token_id=12, and the tokenizer beside it says 14" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["image_break_token", "image_end_token"])
def test_a_processor_that_closes_rows_with_another_token_is_refused(large, tmp_path, capsys, name):
    """params.json would name the token of the tokenizer, and the model was trained with the processor's."""
    shutil.copytree(large, tmp_path / "source")
    other_tekken(tmp_path / "source" / "tekken.json")
    (tmp_path / "source" / "processor_config.json").write_text(json.dumps({name: "[ROW]"}))
    assert convert(tmp_path / "source", tmp_path / "out", "--to", "mistral") == 1
    assert f"{name}='[ROW]' is not followed" in " ".join(capsys.readouterr().err.split())
    own = {"image_break_token": "[IMG_BREAK]", "image_end_token": {"content": "[IMG_END]"}}
    (tmp_path / "source" / "processor_config.json").write_text(json.dumps(own))
    assert convert(tmp_path / "source", tmp_path / "out", "--to", "mistral") == 0


def test_an_image_token_that_the_tokenizer_does_not_know_is_refused(large, tmp_path, capsys):
    shutil.copytree(large, tmp_path / "source")
    write_small_tekken(tmp_path / "source" / "tekken.json", 1300)
    config = json.loads((tmp_path / "source" / "config.json").read_text()) | {"image_token_index": 17}
    (tmp_path / "source" / "config.json").write_text(json.dumps(config))
    assert convert(tmp_path / "source", tmp_path / "out", "--to", "mistral") == 1
    assert "[IMG] has id 10, the model's config.json says image_token_index=17" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("generation_config.json", "source/generation_config.json cannot be read"),
        ("tekken.json", "the tokenizer in"),
        ("params.json", "source/params.json cannot be read: it is not valid JSON"),
    ],
)
def test_damaged_files_beside_the_weights(mistral, tmp_path, capsys, name, message):
    shutil.copytree(mistral, tmp_path / "source")
    (tmp_path / "source" / name).write_text("{")
    assert convert(tmp_path / "source", tmp_path / "out", "--to", "hf") == 1
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_a_tokenizer_that_git_did_not_fetch(hf, tmp_path, capsys):
    shutil.copytree(hf, tmp_path / "source")
    (tmp_path / "source" / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\n")
    assert convert(tmp_path / "source", tmp_path / "out", "--to", "hf") == 1
    assert "tokenizer.json is a pointer of Git LFS" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "", "config.json cannot be read"),
        ("config.json", "{}", "config.json"),
        ("generation_config.json", "", "generation_config.json cannot be read"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(mistral, tmp_path, capsys, name, text, message):
    """Files beside the weights are looked at before gigabytes are written."""
    shutil.copytree(mistral, tmp_path / "source")
    (tmp_path / "source" / name).write_text(text)
    assert convert(tmp_path / "source", tmp_path / "out", "--to", "hf", "--dry-run") == 1
    assert message in capsys.readouterr().err


def test_a_link_to_a_tokenizer_that_is_not_there(hf, tmp_path, capsys):
    shutil.copytree(hf, tmp_path / "source")
    (tmp_path / "source" / "tokenizer.json").symlink_to("../blobs/none")
    assert convert(tmp_path / "source", tmp_path / "out", "--to", "hf", "--dry-run") == 1
    assert "tokenizer.json is a link to ../blobs/none, which is not there" in capsys.readouterr().err


def test_chat_templates_that_differ_are_named(hf, tmp_path, capsys):
    (source := tmp_path / "source").mkdir()
    for file in hf.iterdir():
        (source / file.name).hardlink_to(file)
    (source / "chat_template.jinja").write_text("{{ messages }}\n")
    for template, named in (("{{ messages }}", False), ("{{ messages[0] }}", True)):
        (source / "chat_template.json").write_text(json.dumps({"chat_template": template}))
        assert convert(source, tmp_path / "out", "--to", "hf", "--dry-run") == 0
        said = capsys.readouterr().err
        assert (f"chat_template.jinja and chat_template.json in {source} hold different" in said) == named


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
    from dataclasses import replace

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


@pytest.mark.parametrize("to", ["hf", "mistral", "megatron"])
def test_a_faulty_word_pattern_is_named_and_corrected_on_request(to, tmp_path, capsys):
    large = replace(TINY, decoder=replace(TINY.decoder, vocab_size=4096))
    hf = write_hf_checkpoint(tmp_path / "hf", large, dtype="bfloat16", processor=True)
    right = json.loads((hf / "tokenizer.json").read_text())
    set_words(hf, sequence(split(LLAMA3), byte_level(False)))
    faulty = (hf / "tokenizer.json").read_bytes()
    assert convert(hf, tmp_path / "kept", "--to", to) == 0
    assert "hf has the faulty word pattern of older conversions" in capsys.readouterr().err
    assert convert(hf, tmp_path / "out", "--to", to, "--correct-word-pattern") == 0
    assert "it was corrected in the result" in capsys.readouterr().err
    folder = "hf" if to == "megatron" else "."
    assert (tmp_path / "kept" / folder / "tokenizer.json").read_bytes() == faulty
    assert json.loads((tmp_path / "out" / folder / "tokenizer.json").read_text()) == right
    if to == "megatron":
        # A converted checkpoint is of no run, and one that a run saved is served as it was trained.
        assert convert(tmp_path / "kept", tmp_path / "back", "--to", "hf", "--correct-word-pattern") == 0
        record = json.loads((tmp_path / "kept" / "run.json").read_text())
        record["extra"] = {"sequences": 1, "config": {}}
        (tmp_path / "kept" / "run.json").write_text(json.dumps(record))
        assert convert(tmp_path / "kept", tmp_path / "again", "--to", "hf", "--correct-word-pattern") == 1
        assert "is of a run, which trained on the words of its tokenizer" in capsys.readouterr().err
