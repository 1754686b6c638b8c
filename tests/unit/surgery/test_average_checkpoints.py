"""tools/average_checkpoints.py: every element right, disagreement refused by name, DST whole or as it was."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from surgery_files import (
    ROOT,
    SMALL,
    environment,
    flipping_a_bit,
    measured,
    signalled_in_mid_write,
    snapshot,
    text_config,
    text_tensors,
)

from megatron_apriel.surgery import average as module
from megatron_apriel.surgery.average_inputs import AverageInput
from megatron_apriel.surgery.mean import from_float64, to_float64
from megatron_apriel.testing.plain_safetensors import read_model, write_file, write_model

Tool = Callable[..., int]


def models(folder: Path, count: int = 3, **options: Any) -> list[Path]:
    """Checkpoints of one shape and different numbers, cut into different files."""
    return [
        write_model(folder / f"m{seed}", text_tensors(2, seed=seed, **options), text_config(2), files=1 + seed)
        for seed in range(count)
    ]


def numbers(tensor: tuple[str, tuple[int, ...], bytes]) -> np.ndarray:
    dtype, shape, data = tensor
    if dtype == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).astype(float).reshape(shape)
    return np.frombuffer(data, {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).astype(float).reshape(shape)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize("weights", [(), (1, 2, 0.5)])
def test_every_element(dtype: str, weights: tuple[float, ...], tmp_path: Path, average_checkpoints: Tool) -> None:
    inputs = models(tmp_path, dtype=dtype)
    arguments = ("--weights", *weights) if weights else ()
    assert average_checkpoints(tmp_path / "mean", "--checkpoints", *inputs, *arguments, "--verify") == 0
    read = [read_model(path) for path in inputs]
    result = read_model(tmp_path / "mean")
    assert result.keys() == read[0].keys()
    for name, tensor in result.items():
        stack = np.stack([numbers(given[name]) for given in read])
        if weights:
            wanted = np.zeros(stack.shape[1:])
            for row, weight in zip(stack, weights, strict=True):
                wanted += row * (weight / sum(weights))
        else:
            wanted = stack.sum(0) / 3
        rounded = to_float64(from_float64(wanted, dtype), dtype)  # compared with fractions in test_mean.py
        tolerance = 1e-15 if dtype == "F64" else 0  # NumPy's own sum of float64 is not exact
        np.testing.assert_allclose(numbers(tensor), rounded, rtol=tolerance, atol=tolerance)
        assert tensor[:2] == read[0][name][:2]


def test_result_is_a_directory_that_transformers_loads(
    tmp_path: Path, llava_checkpoints: dict[str, Path], average_checkpoints: Tool
) -> None:
    torch = pytest.importorskip("torch")
    from surgery_files import SMALL
    from transformers import LlavaForConditionalGeneration

    from megatron_apriel.testing.checkpoints import write_hf_checkpoint

    other = write_hf_checkpoint(tmp_path / "other", SMALL, seed=1)
    assert average_checkpoints(tmp_path / "mean", "--checkpoints", llava_checkpoints["legacy"], other) == 0
    loaded = []
    for path in (llava_checkpoints["legacy"], other, tmp_path / "mean"):
        model, report = LlavaForConditionalGeneration.from_pretrained(path, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["unexpected_keys"]
        loaded.append(model.state_dict())
    for name, tensor in loaded[2].items():
        assert torch.equal(tensor, ((loaded[0][name].double() + loaded[1][name].double()) / 2).float()), name


def test_pieces_of_any_size_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [AverageInput.from_directory(path) for path in models(tmp_path)]
    plan = module.plan_average(inputs)
    module.average(plan, tmp_path / "whole")
    monkeypatch.setattr(module, "_LARGEST_PIECE", 20)
    monkeypatch.setattr(module, "BLOCK", 7)
    module.average(plan, tmp_path / "pieces", verify=True)
    assert read_model(tmp_path / "pieces") == read_model(tmp_path / "whole")


def test_distances_and_manifest(tmp_path: Path, average_checkpoints: Tool, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = text_tensors(2, dtype="F32")
    embedding = tensors["model.embed_tokens.weight"][1]
    for name, factor in (("a", 1), ("b", 3)):
        changed = {**tensors, "model.embed_tokens.weight": ("F32", embedding * np.float32(factor))}
        write_model(tmp_path / name, changed, text_config(2))
        (tmp_path / name / "tokenizer.json").write_text("tokens")
    assert average_checkpoints(tmp_path / "mean", "--checkpoints", tmp_path / "a", tmp_path / "b") == 0
    rows = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["embedding", "0.5", "0.5"] in rows  # the mean is twice the first, half as far from either
    assert ["decoder", "0", "0"] in rows
    assert ["head", "0", "0"] in rows
    manifest = json.loads((tmp_path / "mean" / "surgery.json").read_text())
    assert [entry["path"] for entry in manifest["inputs"]] == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert [entry["weight"] for entry in manifest["inputs"]] == [0.5, 0.5]
    assert manifest["inputs"][1]["relative_distance"]["embedding"] == pytest.approx(0.5)
    assert manifest["sha256"].keys() == {"model.safetensors", "config.json", "tokenizer.json"}
    for name, value in manifest["sha256"].items():
        assert hashlib.sha256((tmp_path / "mean" / name).read_bytes()).hexdigest() == value
    assert json.loads((tmp_path / "mean" / "config.json").read_text()) == text_config(2)


def test_whole_numbers_must_be_the_same(
    tmp_path: Path, average_checkpoints: Tool, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, values in (("a", [1, 2, 3]), ("b", [1, 2, 3]), ("c", [1, 9, 3])):
        tensors = {**text_tensors(1), "steps": ("I64", np.array(values, "<i8"))}
        write_model(tmp_path / name, tensors, text_config(1))
    assert average_checkpoints(tmp_path / "same", "--checkpoints", tmp_path / "a", tmp_path / "b") == 0
    assert read_model(tmp_path / "same")["steps"] == ("I64", (3,), np.array([1, 2, 3], "<i8").tobytes())
    assert average_checkpoints(tmp_path / "mean", "--checkpoints", tmp_path / "a", tmp_path / "c") == 1
    assert f"steps[1] is 2 in {tmp_path / 'a'} and 9 in {tmp_path / 'c'}" in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none(
    dtype: str, value: float, tmp_path: Path, average_checkpoints: Tool, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = models(tmp_path, dtype=dtype)
    tensors = text_tensors(2, seed=1, dtype=dtype)
    bad = tensors["model.layers.1.mlp.down_proj.weight"][1]
    bad[5, 7] = np.float32(value).view(np.uint32) >> 16 if dtype == "BF16" else value
    write_model(inputs[1], tensors, text_config(2), files=2)
    assert average_checkpoints(tmp_path / "mean", "--checkpoints", *inputs) == 1
    assert f"model.layers.1.mlp.down_proj.weight[5, 7] is {value} in {inputs[1]}" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m0", "m1", "m2"]


NORM = "model.norm.weight"
DISAGREEMENTS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "missing": ({NORM: None}, {}, "other lacks model.norm.weight, which"),
    "surplus": ({"extra": ("BF16", np.zeros(1, "<u2"))}, {}, "first lacks extra, which"),
    "shape": ({NORM: ("BF16", np.zeros(7, "<u2"))}, {}, "model.norm.weight is BF16 [8] in"),
    "dtype": ({NORM: ("F16", np.zeros(8, "<f2"))}, {}, "and F16 [8] in"),
    "heads": ({}, {"num_attention_heads": 4}, "num_attention_heads is 2 in"),
    "positions": ({}, {"rope_theta": 1e4}, "rope_theta is 1000000.0 in"),
    "tower": ({}, {"vision_config": {"hidden_act": "gelu"}}, "vision_config.hidden_act is 'silu' in"),
    "no object": ({}, {"vision_config": 2.5}, "other: its config's vision_config is 2.5, not an object"),
}


@pytest.mark.parametrize("kind", DISAGREEMENTS)
def test_checkpoints_that_disagree(
    kind: str, tmp_path: Path, average_checkpoints: Tool, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, config, message = DISAGREEMENTS[kind]
    plain = text_config(2, rope_theta=1e6, vision_config={"hidden_act": "silu"})
    write_model(tmp_path / "first", text_tensors(2), plain)
    changed = {name: tensor for name, tensor in {**text_tensors(2), **tensors}.items() if tensor is not None}
    write_model(tmp_path / "other", changed, {**plain, **config})
    before = snapshot(tmp_path)
    assert average_checkpoints(tmp_path / "mean", "--checkpoints", tmp_path / "first", tmp_path / "other") == 1
    assert message in capsys.readouterr().err
    assert snapshot(tmp_path) == before


def test_configs_that_say_another_model_in_other_words(
    tmp_path: Path, average_checkpoints: Tool, capsys: pytest.CaptureFixture[str]
) -> None:
    """As versions of transformers do: names that changed, and defaults that are left out."""
    config = SMALL.to_hf_config()
    other = json.loads(json.dumps(config))
    del other["text_config"]["rope_parameters"], config["text_config"]["rope_theta"]
    other["text_config"]["rope_theta"] = 1e4
    for name, given in (("a", config), ("b", other)):
        write_model(tmp_path / name, text_tensors(1), given)
    assert average_checkpoints(tmp_path / "mean", "--checkpoints", tmp_path / "a", tmp_path / "b") == 1
    assert "decoder's rope_theta is 1000000.0 by" in capsys.readouterr().err
    other["text_config"]["rope_theta"] = 1e6
    (tmp_path / "b" / "config.json").write_text(json.dumps(other))
    assert average_checkpoints(tmp_path / "mean", "--checkpoints", tmp_path / "a", tmp_path / "b") == 0


def test_quantised_weights_are_refused(
    tmp_path: Path, average_checkpoints: Tool, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        write_model(tmp_path / name, {"w": ("F8_E4M3", np.zeros(4, "u1"))}, text_config(1))
    assert average_checkpoints(tmp_path / "mean", "--checkpoints", tmp_path / "a", tmp_path / "b") == 1
    assert "w has dtype F8_E4M3, which cannot be averaged" in capsys.readouterr().err


def test_command_lines_that_are_refused(
    tmp_path: Path, average_checkpoints: Tool, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, _ = models(tmp_path)
    assert average_checkpoints(tmp_path / "mean", "--checkpoints", a, b) == 0
    mistral = write_model(tmp_path / "mistral", {}, {}, base="consolidated")
    before = snapshot(tmp_path)
    both = ("--checkpoints", a, b)
    for arguments, message in (
        ((tmp_path / "mean", *both), "exists"),
        ((a, *both, "--overwrite"), "is the input"),
        ((tmp_path / "x", *both, "--weights", 1), "--weights has 1 number for 2 checkpoints"),
        ((tmp_path / "x", *both, "--weights", 1, 0), "--weights 1 0: every weight must be a positive number"),
        ((tmp_path / "x", *both, "--weights", 1, "nan"), "every weight must be a positive number"),
        ((tmp_path / "x", *both, "--last", 2), "choose among a run's checkpoints"),
        ((tmp_path / "x", "--checkpoints", a, a), "more than once"),
        ((tmp_path / "x", "--checkpoints", a, tmp_path / "absent"), "absent does not exist"),
        (
            (tmp_path / "x", "--checkpoints", a, mistral),
            "mistral has no model.safetensors.\n  Give a directory in the Hug",
        ),
        ((tmp_path / "x", *both, "--max-memory", "10MB"), "--max-memory 10,000,000 is too little"),
        ((tmp_path / "x", "--run", tmp_path, "--last", 2), "has no checkpoints"),
    ):
        assert average_checkpoints(*arguments) == 1
        assert message in capsys.readouterr().err
        assert snapshot(tmp_path) == before
    for usage in (
        (tmp_path / "x",),
        (tmp_path / "x", *both, "--max-memory", "many"),
        (tmp_path / "x", "--checkpoints"),
    ):
        with pytest.raises(SystemExit, match="2"):
            average_checkpoints(*usage)


def test_dry_run_writes_nothing(tmp_path: Path, average_checkpoints: Tool, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = models(tmp_path)
    before = snapshot(tmp_path)
    assert average_checkpoints(tmp_path / "mean", "--checkpoints", *inputs, "--dry-run") == 0
    assert "21 tensors" in capsys.readouterr().out
    assert snapshot(tmp_path) == before


def test_verify_finds_a_flipped_bit(
    tmp_path: Path, average_checkpoints: Tool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = models(tmp_path)
    monkeypatch.setattr(module, "write_tensors", flipping_a_bit(module.write_tensors))
    assert average_checkpoints(tmp_path / "mean", "--checkpoints", *inputs, "--verify") == 1
    assert "lm_head.weight, rows 0 to 16, came out otherwise" in capsys.readouterr().err
    assert not (tmp_path / "mean").exists()


def large(directory: Path, megabytes: int) -> Path:
    """A model of one large and one small tensor, mostly zeros that take no room on disk."""
    write_model(directory, {"a": ("BF16", np.zeros(3, "<u2"))}, text_config(1))
    rows = megabytes * 1000
    header = {"w": {"dtype": "BF16", "shape": [rows, 500], "data_offsets": [0, rows * 1000]}}
    text = json.dumps(header).encode()
    with (directory / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + rows * 1000)
    return directory


@pytest.mark.slow
def test_memory_stays_below_what_is_allowed(tmp_path: Path) -> None:
    inputs = [large(tmp_path / name, 48) for name in "abcdef"]  # more in sum than is allowed
    arguments = ("--checkpoints", *inputs, "--max-memory", "160MiB")
    code, used, modules = measured("average_checkpoints", tmp_path / "mean", *arguments)
    assert code == 0
    assert used < 160
    assert modules == ["numpy"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_kill_in_mid_write_leaves_the_destination_as_it_was(
    number: signal.Signals, tmp_path: Path, average_checkpoints: Tool
) -> None:
    folder = tmp_path / "results"
    small = models(tmp_path)
    assert average_checkpoints(folder / "mean", "--checkpoints", *small) == 0
    before = snapshot(folder)
    command = [sys.executable, str(ROOT / "tools" / "average_checkpoints.py"), str(folder / "mean"), "--overwrite"]
    command += ["--checkpoints", str(large(tmp_path / "a", 2000)), str(large(tmp_path / "b", 2000))]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    errors = signalled_in_mid_write(process, folder, ".mean.partial-*", 2**20, number)
    for name, data in before.items():
        assert (folder / name).read_bytes() == data
    if number == signal.SIGTERM:
        assert "nothing was left half-written" in errors
    else:
        assert average_checkpoints(folder / "mean", "--checkpoints", *small, "--overwrite") == 0
    assert [path.name for path in folder.iterdir()] == ["mean"]


def test_full_disk(tmp_path: Path) -> None:
    inputs = models(tmp_path)
    command = [sys.executable, str(ROOT / "tools" / "average_checkpoints.py"), str(tmp_path / "mean"), "--checkpoints"]
    done = subprocess.run(
        [*command, *map(str, inputs)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)),
    )
    assert done.returncode == 1
    assert "OutputError" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m0", "m1", "m2"]


def test_truncated_input(tmp_path: Path, average_checkpoints: Tool, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = models(tmp_path)
    write_file(tmp_path / "whole", text_tensors(2))
    (inputs[0] / "model.safetensors").write_bytes((tmp_path / "whole").read_bytes()[:-1])
    assert average_checkpoints(tmp_path / "mean", "--checkpoints", *inputs) == 1
    assert "it is truncated" in capsys.readouterr().err


def test_input_truncated_while_it_is_read(
    tmp_path: Path, average_checkpoints: Tool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = models(tmp_path)
    write = module.write_tensors

    def truncate_then_write(*arguments: Any, **options: Any) -> Any:
        os.truncate(inputs[0] / "model.safetensors", 100)
        return write(*arguments, **options)

    monkeypatch.setattr(module, "write_tensors", truncate_then_write)
    before = set(threading.enumerate())
    assert average_checkpoints(tmp_path / "mean", "--checkpoints", *inputs) == 1
    assert "bytes before the end of" in capsys.readouterr().err
    assert not set(threading.enumerate()) - before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m0", "m1", "m2"]
