"""tools/upscale_layers.py: every byte from where the map says, the identity exact, DST whole or as it was."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from surgery_files import (
    ROOT,
    environment,
    flipping_a_bit,
    measured,
    signalled_in_mid_write,
    snapshot,
    text_config,
    text_tensors,
)

from megatron_apriel.surgery import upscale as module
from megatron_apriel.testing.plain_safetensors import read_model, write_model
from megatron_apriel.testing.tokenizers import small_tokenizer
from megatron_apriel.testing.word_patterns import LLAMA3, byte_level, sequence, set_words, split

Tool = Callable[..., int]
PREFIXES = {"legacy": "language_model.model.layers.", "v5": "model.language_model.layers.", "text": "model.layers."}


def mistral_form(layers: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and params.json of Mistral's own form, with a tower of as many layers."""
    names = {
        "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3", "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
        "model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output", "model.layers": "layers",
    }  # fmt: skip
    tensors = {}
    for name, tensor in text_tensors(layers).items():
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        tensors[name] = tensor
        if name.startswith("layers."):
            tensors[f"vision_encoder.transformer.{name}"] = tensor
    sizes = {"dim": 8, "n_layers": layers, "head_dim": 4, "hidden_dim": 12, "n_heads": 2, "n_kv_heads": 1}
    return tensors, {**sizes, "vision_encoder": {"num_hidden_layers": layers}}


def expected(source: dict[str, Any], prefix: str, sources: list[int], zeroed: tuple[str, ...] = ()) -> dict[str, Any]:
    """What the result must hold: independent of the code under test."""
    result = {name: tensor for name, tensor in source.items() if not name.startswith(prefix)}
    for layer, origin in enumerate(sources):
        for name, (dtype, shape, data) in source.items():
            if name.startswith(f"{prefix}{origin}."):
                rest = name.removeprefix(f"{prefix}{origin}.")
                zero = rest in zeroed and origin in sources[:layer]
                result[f"{prefix}{layer}.{rest}"] = (dtype, shape, bytes(len(data)) if zero else data)
    return result


@pytest.mark.parametrize("form", ["legacy", "v5", "text", "consolidated"])
@pytest.mark.parametrize("init", ["copy", "identity"])
def test_every_byte(form: str, init: str, tmp_path: Path, llava_checkpoints: Any, upscale_layers: Tool) -> None:
    zeroed: tuple[str, ...] = ("self_attn.o_proj.weight", "mlp.down_proj.weight")
    if form == "consolidated":
        source = write_model(tmp_path / "source", *mistral_form(5), base="consolidated")
        (source / "tekken.json").write_text("tokens")
        prefix, zeroed = "layers.", ("attention.wo.weight", "feed_forward.w2.weight")
    elif form == "text":
        source, prefix = write_model(tmp_path / "source", text_tensors(5), text_config(5), files=3), PREFIXES[form]
    else:
        source, prefix = llava_checkpoints[form], PREFIXES[form]
    before = snapshot(source)
    options = ("--num-layers", 7, "--map", "0,1,1,2,1,3,4", "--init", init, "--verify")
    assert upscale_layers(source, tmp_path / "result", *options) == 0
    sources = [0, 1, 1, 2, 1, 3, 4]
    wanted = expected(read_model(source), prefix, sources, zeroed if init == "identity" else ())
    assert read_model(tmp_path / "result") == wanted
    assert snapshot(source) == before
    assert (tmp_path / "result" / "tekken.json").exists() == (form == "consolidated")


def test_configs_change_in_one_number(tmp_path: Path, llava_checkpoints: Any, upscale_layers: Tool) -> None:
    params = write_model(tmp_path / "source", *mistral_form(4), base="consolidated")
    assert upscale_layers(params, tmp_path / "params", "--num-layers", 6) == 0
    wanted = json.loads((params / "params.json").read_text())
    assert json.loads((tmp_path / "params" / "params.json").read_text()) == {**wanted, "n_layers": 6}
    assert sorted(path.name for path in (tmp_path / "params").iterdir()) == [
        "consolidated.safetensors", "params.json", "surgery.json",
    ]  # fmt: skip
    assert upscale_layers(llava_checkpoints["v5"], tmp_path / "llava", "--num-layers", 6) == 0
    wanted = json.loads((llava_checkpoints["v5"] / "config.json").read_text())
    wanted["text_config"]["num_hidden_layers"] = 6
    text = (tmp_path / "llava" / "config.json").read_text()
    assert json.loads(text) == wanted
    assert list(json.loads(text)) == list(wanted)


@pytest.mark.parametrize("form", ["legacy", "v5"])
def test_identity_gives_the_source_logits_exactly(
    form: str, tmp_path: Path, llava_checkpoints: Any, upscale_layers: Tool
) -> None:
    torch = pytest.importorskip("torch")
    from transformers import LlavaForConditionalGeneration

    options = ("--num-layers", 10, "--map", "block", "--init", "identity")
    assert upscale_layers(llava_checkpoints[form], tmp_path / "deep", *options) == 0
    assert upscale_layers(llava_checkpoints[form], tmp_path / "copied", *options[:-2]) == 0
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(20, 64, (1, 24), generator=generator)
    pixels = torch.randn(1, 3, 32, 48, generator=generator)
    with_image = tokens.clone()
    with_image[0, 3:9] = 10
    logits: dict[str, list[Any]] = {}
    for name, path in (
        ("source", llava_checkpoints[form]), ("deep", tmp_path / "deep"), ("copied", tmp_path / "copied"),
    ):  # fmt: skip
        model, loading = LlavaForConditionalGeneration.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True
        )
        assert not loading["missing_keys"]
        assert not loading["unexpected_keys"]
        assert model.config.text_config.num_hidden_layers == (5 if name == "source" else 10)
        model.eval()
        with torch.no_grad():
            text = model(input_ids=tokens).logits
            image = model(input_ids=with_image, pixel_values=pixels, image_sizes=torch.tensor([[32, 48]])).logits
        logits[name] = [text, image]
    for kind in (0, 1):
        assert torch.equal(logits["source"][kind], logits["deep"][kind])
        assert not torch.equal(logits["source"][kind], logits["copied"][kind])


def test_map_is_shown_first_and_hashes_are_recorded(
    tmp_path: Path, upscale_layers: Tool, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_model(tmp_path / "source", text_tensors(4), text_config(4), files=2)
    for name in ("tokenizer.json", "chat_template.jinja", "tokenizer.model.v3"):
        (source / name).write_text(name)
    assert upscale_layers(source, tmp_path / "once", "--num-layers", 5, "--max-shard-size", "2KB") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("4 -> 5 layers, map spread-middle, init copy\ncopies of layer 2\n48 tensors, ")
    manifest = json.loads((tmp_path / "once" / "surgery.json").read_text())
    assert manifest["map"] == {"name": "spread-middle", "source_layers": [0, 1, 2, 2, 3]}
    assert manifest["initialisation"] == "copy"
    assert manifest["source"]["path"] == str(source)
    written = {path.name for path in (tmp_path / "once").iterdir()} - {"surgery.json"}
    assert {"tokenizer.json", "chat_template.jinja", "tokenizer.model.v3", "config.json"} < written
    assert manifest["sha256"].keys() == written
    assert manifest["source"]["sha256"].keys() == {path.name for path in source.glob("*.safetensors")}
    for folder, hashes in ((source, manifest["source"]["sha256"]), (tmp_path / "once", manifest["sha256"])):
        for name, value in hashes.items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == value, name
    assert all(path.stat().st_size < 6000 for path in (tmp_path / "once").glob("*.safetensors"))
    index = json.loads((tmp_path / "once" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(len(data) for _, _, data in read_model(tmp_path / "once").values())
    assert upscale_layers(tmp_path / "once", tmp_path / "twice", "--num-layers", 6) == 0
    again = json.loads((tmp_path / "twice" / "surgery.json").read_text())
    assert again["source"]["made_by"] == manifest


def test_dry_run_writes_nothing(tmp_path: Path, upscale_layers: Tool, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_model(tmp_path / "source", text_tensors(4), text_config(4))
    before = snapshot(tmp_path)
    assert upscale_layers(source, tmp_path / "result", "--num-layers", 6, "--dry-run", "--max-shard-size", "2KB") == 0
    shown = capsys.readouterr().out
    assert "57 tensors" in shown
    assert "made of" in shown
    assert "model-00001-of-0000" in shown
    assert snapshot(tmp_path) == before


def test_a_plus_means_so_many_more_layers(
    tmp_path: Path, upscale_layers: Tool, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_model(tmp_path / "source", text_tensors(4), text_config(4))
    for written, layers in (("+2", 6), ("+0", 4), ("5", 5)):
        assert upscale_layers(source, tmp_path / "result", "--num-layers", written, "--overwrite") == 0
        assert f"4 -> {layers} layers" in capsys.readouterr().out
        assert json.loads((tmp_path / "result" / "config.json").read_text())["num_hidden_layers"] == layers
    for wrong in ("2+", "+", "++2", "+-2", "-2", "1e3", "9" * 5000, "²"):
        with pytest.raises(SystemExit):
            upscale_layers(source, tmp_path / "x", f"--num-layers={wrong}")
        assert "is no number of layers; write 48, or +8 for eight more" in capsys.readouterr().err


def break_tensor(name: str, new: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(tensors: dict[str, Any], config: dict[str, Any]) -> None:
        if new is None:
            del tensors[name]
        else:
            tensors[name] = new

    return change


def test_what_is_said_of_every_layer_is_said_of_the_new_ones(tmp_path: Path, upscale_layers: Tool) -> None:
    from transformers import AutoConfig

    config = text_config(4, layer_types=["full_attention"] * 4, sliding_window=None, eos_token_id=[2, 3, 4, 5])
    source = write_model(tmp_path / "source", text_tensors(4), config)
    assert upscale_layers(source, tmp_path / "result", "--num-layers", 6) == 0
    result = json.loads((tmp_path / "result" / "config.json").read_text())
    assert result == {**config, "num_hidden_layers": 6, "layer_types": ["full_attention"] * 6}
    AutoConfig.from_pretrained(tmp_path / "result")  # which compares the two


LAYER = "model.layers.2."
DAMAGES: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], None], str]] = {
    "another model": (lambda t, c: c.update(model_type="llama"), "a model of type 'llama' cannot be edited here"),
    "other llava": (
        lambda t, c: c.update(model_type="llava", text_config={"model_type": "llama"}, vision_config={}),
        "llava with decoder 'llama' and tower None",
    ),
    "other names": (lambda t, c: t.update({f"x.{name}": t.pop(name) for name in list(t)}), "none was found"),
    "config says more": (lambda t, c: c.update(num_hidden_layers=5), "says 5 decoder layers, and the files of"),
    "config says far more": (lambda t, c: c.update(num_hidden_layers=10**30), "without a tensor: 4, 5, 6,"),
    "config says fewer": (lambda t, c: c.update(num_hidden_layers=3), "hold 4 decoder layers, 0 to 3"),
    "config without": (lambda t, c: c.pop("num_hidden_layers"), "says 32 decoder layers"),
    "config nonsense": (lambda t, c: c.update(num_hidden_layers="4"), "num_hidden_layers is '4', not a positive"),
    "layers apart": (
        lambda t, c: c.update(layer_types=["sliding_attention", "full_attention"] * 2),
        "layer_types=['sliding_attention', 'full_attention', 'sliding_attention', 'full_attention'] tells decoder",
    ),
    "windows apart": (lambda t, c: c.update(_sliding_window=[8, None]), "_sliding_window=[8, None] tells decoder"),
    "one layer apart": (lambda t, c: c.update(per_layer_config={"1": {}}), "per_layer_config={'1': {}} tells"),
    "config width": (lambda t, c: c.update(hidden_size=16), "has shape [8], and"),
    "missing": (break_tensor(LAYER + "mlp.up_proj.weight", None), "lacks model.layers.2.mlp.up_proj.weight"),
    "missing layer": (
        lambda t, c: [t.pop(name) for name in list(t) if name.startswith(LAYER)],
        "Layers without a tensor: 2.",
    ),
    "bias": (
        break_tensor(LAYER + "mlp.up_proj.bias", ("BF16", np.zeros(12, "<u2"))),
        "has model.layers.2.mlp.up_proj.bias",
    ),
    "shape": (break_tensor(LAYER + "mlp.up_proj.weight", ("BF16", np.zeros((11, 8), "<u2"))), "has shape [11, 8]"),
    "dtype": (break_tensor(LAYER + "mlp.up_proj.weight", ("I8", np.zeros((12, 8), "i1"))), "has dtype I8"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_sources_that_are_refused(
    damage: str, tmp_path: Path, upscale_layers: Tool, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, config = text_tensors(4), text_config(4)
    change, message = DAMAGES[damage]
    change(tensors, config)
    source = write_model(tmp_path / "source", tensors, config)
    before = snapshot(tmp_path)
    assert upscale_layers(source, tmp_path / "result", "--num-layers", 6) == 1
    assert message in capsys.readouterr().err
    assert snapshot(tmp_path) == before


def test_command_lines_that_are_refused(
    tmp_path: Path, upscale_layers: Tool, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_model(tmp_path / "source", text_tensors(4), text_config(4))
    assert upscale_layers(source, tmp_path / "result", "--num-layers", 5) == 0
    before = snapshot(tmp_path)
    for arguments, message in (
        ((source, tmp_path / "x", "--num-layers", 3), "is below the model's 4 decoder layers"),
        ((source, tmp_path / "x", "--num-layers", 7), "can place 2: 6 layers at most"),
        ((source, tmp_path / "x", "--num-layers", "+3"), "can place 2: 6 layers at most"),
        ((source, tmp_path / "x", "--num-layers", 6, "--map", "0,1,2,3"), "lists 4 layers and --num-layers is 6"),
        ((source, tmp_path / "x", "--num-layers", 6, "--map", "middle"), "'middle' is no layer map"),
        ((tmp_path / "absent", tmp_path / "x", "--num-layers", 6), "absent does not exist"),
        ((source, tmp_path / "result", "--num-layers", 6), "exists"),
        ((source, source, "--num-layers", 6, "--overwrite"), "is the input"),
        ((source, source / "inside", "--num-layers", 6), "lies inside the input"),
        ((source, tmp_path, "--num-layers", 6, "--overwrite"), "contains the input"),
    ):
        assert upscale_layers(*arguments) == 1
        assert message in capsys.readouterr().err
        assert snapshot(tmp_path) == before
    (source / "config.json").write_text("{")
    assert upscale_layers(source, tmp_path / "x", "--num-layers", 6) == 1
    assert "config.json cannot be read" in capsys.readouterr().err
    (source / "config.json").unlink()
    assert upscale_layers(source, tmp_path / "x", "--num-layers", 6) == 1
    assert "config.json does not exist" in capsys.readouterr().err


def test_overwrite_replaces_the_earlier_result(tmp_path: Path, upscale_layers: Tool) -> None:
    source = write_model(tmp_path / "source", text_tensors(4), text_config(4))
    assert upscale_layers(source, tmp_path / "result", "--num-layers", 6, "--max-shard-size", "2KB") == 0
    assert upscale_layers(source, tmp_path / "result", "--num-layers", 5, "--overwrite") == 0
    sources = [0, 1, 2, 2, 3]
    assert read_model(tmp_path / "result") == expected(read_model(source), "model.layers.", sources)


def test_source_truncated_while_it_is_copied(
    tmp_path: Path, upscale_layers: Tool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_model(tmp_path / "source", text_tensors(4), text_config(4))
    write = module.write_tensors

    def truncate_then_write(*arguments: Any, **options: Any) -> Any:
        os.truncate(source / "model.safetensors", 5000)
        return write(*arguments, **options)

    monkeypatch.setattr(module, "write_tensors", truncate_then_write)
    assert upscale_layers(source, tmp_path / "result", "--num-layers", 6) == 1
    assert "model.safetensors was changed while" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize(("verify", "message"), [(True, "differs from the model's"), (False, None)])
def test_verify_finds_a_flipped_bit(
    verify: bool,
    message: str | None,
    tmp_path: Path,
    upscale_layers: Tool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = write_model(tmp_path / "source", text_tensors(4), text_config(4))
    monkeypatch.setattr(module, "write_tensors", flipping_a_bit(module.write_tensors))
    arguments = ("--verify",) if verify else ()
    assert upscale_layers(source, tmp_path / "result", "--num-layers", 6, *arguments) == (1 if verify else 0)
    assert (tmp_path / "result").exists() != verify
    assert message is None or message in capsys.readouterr().err


def test_too_little_room_names_the_destination(
    tmp_path: Path, upscale_layers: Tool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_model(tmp_path / "source", text_tensors(4), text_config(4))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))  # type: ignore[attr-defined]
    assert upscale_layers(source, tmp_path / "new" / "result", "--num-layers", 6) == 1
    assert f"OutputError: {tmp_path / 'new' / 'result'} needs " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_tables_of_rotary_frequencies_go_with_their_layers(tmp_path: Path, upscale_layers: Tool) -> None:
    table = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": ("F32", np.full(2, n, "<f4")) for n in range(4)}
    source = write_model(tmp_path / "source", {**text_tensors(4), **table}, text_config(4))
    assert upscale_layers(source, tmp_path / "result", "--num-layers", 5, "--init", "identity", "--verify") == 0
    result = read_model(tmp_path / "result")
    found = [result[f"model.layers.{n}.self_attn.rotary_emb.inv_freq"][2] for n in range(5)]
    assert found == [np.full(2, n, "<f4").tobytes() for n in (0, 1, 2, 2, 3)]


def test_keys_of_another_kind_of_model_are_left_alone(tmp_path: Path, upscale_layers: Tool) -> None:
    config = {**text_config(4), "text_config": None}
    source = write_model(tmp_path / "source", text_tensors(4), config)
    assert upscale_layers(source, tmp_path / "result", "--num-layers", 6) == 0
    result = json.loads((tmp_path / "result" / "config.json").read_text())
    assert result == {**config, "num_hidden_layers": 6}


def sparse_model(directory: Path, layers: int) -> Path:
    """A text-only model of about a gigabyte that takes no room on disk."""
    hidden, ffn = 2048, 6144
    shapes = {name: numbers.shape for name, (_, numbers) in text_tensors(layers).items()}
    sizes = {8: hidden, 12: ffn, 4: hidden // 2, 16: 32000}
    header, position = {}, 0
    for name, shape in shapes.items():
        big = [sizes[length] for length in shape]
        size = 2 * int(np.prod(big))
        header[name] = {"dtype": "BF16", "shape": big, "data_offsets": [position, position + size]}
        position += size
    directory.mkdir()
    text = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + position)
    config = text_config(layers, hidden_size=hidden, intermediate_size=ffn, head_dim=hidden // 2)
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    source = sparse_model(tmp_path / "source", 4)
    assert (source / "model.safetensors").stat().st_size > 6e8
    code, megabytes, modules = measured("upscale_layers", source, tmp_path / "result", "--num-layers", 5)
    assert code == 0
    assert megabytes < 100
    assert modules == []


def start(source: Path, destination: Path, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "tools" / "upscale_layers.py"), str(source), str(destination)]
    command += ["--num-layers", "5", "--overwrite"]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=environment(), **options
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_kill_in_mid_write_leaves_the_destination_as_it_was(
    number: signal.Signals, tmp_path: Path, upscale_layers: Tool
) -> None:
    small = write_model(tmp_path / "small", text_tensors(4), text_config(4))
    folder = tmp_path / "results"
    assert upscale_layers(small, folder / "result", "--num-layers", 5) == 0
    before = snapshot(folder)
    process = start(sparse_model(tmp_path / "large", 4), folder / "result")
    errors = signalled_in_mid_write(process, folder, ".result.partial-*", 2**23, number)
    assert snapshot(folder / "result") == {name.removeprefix("result/"): data for name, data in before.items()}
    if number == signal.SIGTERM:
        assert "nothing was left half-written" in errors
        assert snapshot(folder) == before
    else:
        assert upscale_layers(small, folder / "result", "--num-layers", 5, "--overwrite") == 0
        assert [path.name for path in folder.iterdir()] == ["result"]


def test_full_disk(tmp_path: Path) -> None:
    source = write_model(tmp_path / "source", text_tensors(4), text_config(4))
    limit = 3000
    process = start(
        source, tmp_path / "result", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "OutputError" in errors
    assert "could not be written" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_faulty_word_pattern_is_named_and_corrected_on_request(
    tmp_path: Path, upscale_layers: Tool, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "model", text_tensors(4), text_config(4))
    small_tokenizer(4096).save_pretrained(model)
    right = json.loads((model / "tokenizer.json").read_text())
    set_words(model, sequence(split(LLAMA3), byte_level(False)))
    assert upscale_layers(model, tmp_path / "kept", "--num-layers", 5) == 0
    assert "has the faulty word pattern of older conversions" in capsys.readouterr().err
    assert (tmp_path / "kept" / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    assert upscale_layers(model, tmp_path / "out", "--num-layers", 5, "--correct-word-pattern") == 0
    assert "it was corrected in the result" in capsys.readouterr().err
    written = (tmp_path / "out" / "tokenizer.json").read_bytes()
    assert json.loads(written) == right
    recorded = json.loads((tmp_path / "out" / "surgery.json").read_text())["sha256"]
    assert recorded["tokenizer.json"] == hashlib.sha256(written).hexdigest()
