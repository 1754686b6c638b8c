"""JSON files of a model: bounded, unambiguous, with numbers that are numbers; everything else is named and refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from megatron_apriel.architecture import PRESETS, Architecture
from megatron_apriel.checkpoint.params import architecture_from_params, params_from_architecture
from megatron_apriel.errors import CheckpointError
from megatron_apriel.json_text import MOST_BYTES, MOST_DEEP, parse_json, read_json
from megatron_apriel.testing.limits import refused_within

TINY = PRESETS["tiny"]


def test_honest_files_are_read_as_python_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    for value in (
        TINY.to_hf_config(),
        {"model_max_length": 10**30, "nested": [[[{"a": [1.5, None, True, "é", "\U0001f680"]}]]]},
    ):
        file.write_text(json.dumps(value))
        assert read_json(file) == value
    depth = "[" * (MOST_DEEP - 1) + "]" * (MOST_DEEP - 1)
    assert parse_json(f'{{"a": {depth}}}'.encode()) == json.loads(f'{{"a": {depth}}}')
    assert parse_json(b'{"a": Infinity}', finite=False) == {"a": float("inf")}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"hidden_size": 64, "hidden_size": 128}', "'hidden_size' is there twice"),
        ('{"a": {"b": 1, "b": 1}}', "'b' is there twice"),
        ('{"a": NaN}', "NaN is no number"),
        ('{"a": ["\\udcff"]}', "half of a letter"),
        ('{"\\ud83d": 1}', "half of a letter"),
        ('{"a": [-Infinity]}', "-Infinity is no number"),
        ('{"a": 1e999}', "1e999 is too large a number"),
        ('{"a": ' + "9" * 5000 + "}", "Exceeds the limit"),
        ('{"a": ' + "[" * (MOST_DEEP + 1) + "]" * (MOST_DEEP + 1) + "}", f"more than {MOST_DEEP} deep"),
        ("[1]", "holds a list, not an object"),
        ("", "it is not valid JSON"),
        ("\ufeff{}", "it is not valid JSON"),
    ],
)
def test_what_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError) as caught:
        read_json(file)
    assert message in str(caught.value) and str(file) in str(caught.value)


def pipe(file: Path) -> None:
    os.mkfifo(file)


def device(file: Path) -> None:
    file.symlink_to("/dev/zero")


def sparse(file: Path) -> None:
    with file.open("wb") as stream:
        stream.truncate(2**40)


def deep(file: Path) -> None:
    file.write_text('{"a": ' + "[" * (MOST_BYTES // 2 - 10) + "]" * (MOST_BYTES // 2 - 10) + "}")


def wide(file: Path) -> None:
    file.write_text('{"model_type": [' + ",".join(["[]"] * (MOST_BYTES // 3 - 20)) + "]}")


def keys(file: Path) -> None:
    file.write_text("{" + ",".join(f'"{number:x}":0' for number in range(MOST_BYTES // 12)) + "}")


def itself(file: Path) -> None:
    file.symlink_to(file)


@pytest.mark.parametrize("make", [pipe, device, sparse, deep, wide, keys, itself], ids=lambda make: make.__name__)
@pytest.mark.parametrize("name", ["config.json", "params.json"])
def test_files_that_grow_or_never_end(make, name: str, tmp_path: Path) -> None:
    make(tmp_path / name)
    read = Architecture.from_directory if name == "config.json" else lambda path: architecture_from_params(path / name)
    message = refused_within(read, tmp_path)
    assert message.startswith("CheckpointError: ") and name in message


@pytest.mark.parametrize("value", [2**41, 10**300, 1e300, True, -1, "64", [64], {"a": 1}, None])
@pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "vocab_size", "head_dim", "num_hidden_layers"])
def test_sizes_that_no_model_has(key: str, value: object, tmp_path: Path) -> None:
    """Refused by name, or taken for absent, before anything is computed from them."""
    config = TINY.to_hf_config()
    config["text_config"][key] = value
    try:
        Architecture.from_hf_config(config)
    except CheckpointError as error:
        assert key in str(error) or "head" in str(error)
    else:
        assert value is None
    names = {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}
    params = params_from_architecture(TINY) | {names.get(key, key): value}
    (tmp_path / "params.json").write_text(json.dumps(params))
    try:
        architecture_from_params(tmp_path / "params.json")
    except CheckpointError as error:
        assert "params.json" in str(error)
    else:
        assert value is None
