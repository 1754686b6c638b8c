"""Averages of models whose files beside the weights differ: refused, or named where that changes nothing."""

import json
from pathlib import Path

import pytest
from surgery_files import text_config, text_tensors

from megatron_apriel.errors import CheckpointError
from megatron_apriel.surgery.average_inputs import AverageInput, check_agreement
from megatron_apriel.testing.plain_safetensors import write_model

TOKENIZER = {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}}, "added_tokens": []}


def compared(folder: Path, ours: dict[str, object], theirs: dict[str, object]) -> None:
    """Compare two equal models with those files beside them."""
    tensors, inputs = text_tensors(1, dtype="F32"), []
    for name, files in (("a", ours), ("b", theirs)):
        write_model(folder / name, tensors, text_config(1))
        for file, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name / file).write_text(text)
        inputs.append(AverageInput.from_directory(folder / name))
    check_agreement(inputs)


@pytest.mark.parametrize(
    ("file", "ours", "theirs", "kind"),
    [
        ("tokenizer.json", TOKENIZER, {**TOKENIZER, "model": {"type": "BPE", "vocab": {"a": 1, "b": 0}}}, "tokenizer"),
        ("tokenizer.model", "one", "two", "tokenizer"),
        ("tekken.json", {"vocab": [1]}, {"vocab": [2]}, "tokenizer"),
        ("special_tokens_map.json", {"eos_token": "</s>"}, {"eos_token": "[END]"}, "tokenizer"),
        ("tokenizer_config.json", {"chat_template": "x"}, {"chat_template": "y"}, "tokenizer"),
        ("chat_template.jinja", "one", "two", "chat template"),
        ("preprocessor_config.json", {"size": {"longest_edge": 96}}, {"size": {"longest_edge": 64}}, "processor"),
    ],
)
def test_other_files_are_refused(tmp_path, file, ours, theirs, kind):
    with pytest.raises(CheckpointError, match=rf"the {kind} of .*b is not that of .*a: {file} differs"):
        compared(tmp_path, {file: ours}, {file: theirs})


@pytest.mark.parametrize(
    ("file", "ours", "theirs"),
    [
        ("tokenizer.json", TOKENIZER, {**TOKENIZER, "truncation": {"max_length": 9}, "version": "1.1"}),
        ("tokenizer_config.json", {"eos_token": "</s>", "backend": "a"}, {"eos_token": "</s>", "backend": "b"}),
        ("processor_config.json", '{"a": 1, "b": 2}', '{"b": 2,\n "a": 1}'),
    ],
)
def test_what_versions_of_libraries_differ_in_is_no_difference(tmp_path, capsys, file, ours, theirs):
    compared(tmp_path, {file: ours}, {file: theirs})
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("ours", "theirs", "named"),
    [
        ({"generation_config.json": {"temperature": 1}}, {"generation_config.json": {"temperature": 2}}, "differs"),
        ({"LICENSE": "one"}, {"LICENSE": "two"}, "LICENSE differs"),
        ({"tokenizer.json": TOKENIZER}, {}, "tokenizer.json, of the tokenizer, is only in"),
        ({}, {"chat_template.jinja": "one"}, "chat_template.jinja, of the chat template, is only in"),
    ],
)
def test_other_differences_are_named(tmp_path, capsys, ours, theirs, named):
    compared(tmp_path, ours, theirs)
    assert named in " ".join(capsys.readouterr().err.split())
