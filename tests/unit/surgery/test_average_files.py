"""Averages of models whose files beside the weights differ: refused, or named where that changes nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from surgery_files import text_config, text_tensors

from megatron_apriel.errors import CheckpointError
from megatron_apriel.surgery.average_inputs import AverageInput, check_agreement
from megatron_apriel.testing.plain_safetensors import write_model

TOKENIZER: dict[str, Any] = {"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}}, "added_tokens": []}
MERGED: dict[str, Any] = {"version": "1.0", "model": {"vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}}


def added(**flags: bool) -> dict[str, Any]:
    """A tokenizer with one added token."""
    token = {"id": 2, "content": "[IMG]", "special": True, "lstrip": False, "normalized": True, **flags}
    return {**TOKENIZER, "added_tokens": [token]}


def compared(folder: Path, ours: dict[str, object], theirs: dict[str, object]) -> None:
    """Compare two equal models with those files beside them."""
    tensors, inputs = text_tensors(1, dtype="F32"), []
    for name, files in (("a", ours), ("b", theirs)):
        write_model(folder / name, tensors, text_config(1))
        for file, content in files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name / file).parent.mkdir(exist_ok=True)
            (folder / name / file).write_text(text)
        inputs.append(AverageInput.from_directory(folder / name))
    check_agreement(inputs)


@pytest.mark.parametrize(
    ("file", "ours", "theirs", "kind"),
    [
        ("tokenizer.json", TOKENIZER, {**TOKENIZER, "model": {"type": "BPE", "vocab": {"a": 1, "b": 0}}}, "tokenizer"),
        ("tokenizer.json", MERGED, {**MERGED, "model": {**MERGED["model"], "ignore_merges": True}}, "tokenizer"),
        ("tokenizer.json", added(), added(lstrip=True), "tokenizer"),
        ("tokenizer.json", added(), added(special=False), "tokenizer"),
        ("tokenizer.model", "one", "two", "tokenizer"),
        ("tekken.json", {"vocab": [1]}, {"vocab": [2]}, "tokenizer"),
        ("special_tokens_map.json", {"eos_token": "</s>"}, {"eos_token": "[END]"}, "tokenizer"),
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
        ("tokenizer.json", MERGED, {**MERGED, "model": {**MERGED["model"], "merges": [["a", "b"]]}}),
        ("tokenizer.json", MERGED, {**MERGED, "model": {**MERGED["model"], "dropout": None, "ignore_merges": False}}),
        ("tokenizer.json", added(), added(normalized=False)),
        ("special_tokens_map.json", {"eos_token": "</s>"}, {"eos_token": {"content": "</s>", "lstrip": False}}),
        ("processor_config.json", '{"a": 1, "b": 2}', '{"b": 2,\n "a": 1, "device": null}'),
        (
            "preprocessor_config.json",
            {"image_processor_type": "PixtralImageProcessor", "crop_size": None},
            {"image_processor_type": "PixtralImageProcessorFast"},
        ),
        ("chat_template.jinja", "one", "one\n"),
    ],
)
def test_what_versions_of_libraries_differ_in_is_no_difference(tmp_path, capsys, file, ours, theirs):
    compared(tmp_path, {file: ours}, {file: theirs})
    assert not capsys.readouterr().err


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("other", ["tokenizer_config.json", "special_tokens_map.json"])
def test_another_end_is_refused_wherever_it_stands(tmp_path, file, other):
    compared(tmp_path / "same", {file: {"eos_token": "</s>"}}, {other: {"eos_token": {"content": "</s>"}}})
    with pytest.raises(
        CheckpointError, match=r"the tokenizer of .*b is not that of .*a: (eos_token|special.*) differs"
    ):
        compared(tmp_path / "apart", {file: {"eos_token": "</s>"}}, {other: {"eos_token": "<|im_end|>"}})


def pixtral(side: int, **changes: Any) -> dict[str, Any]:
    """Settings of an image processor as transformers 4 writes them."""
    return {
        "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_processor_type": "PixtralImageProcessor",
        "image_std": [0.26862954, 0.26130258, 0.27577711], "patch_size": {"height": 16, "width": 16}, "resample": 3,
        "rescale_factor": 1 / 255, "size": {"longest_edge": side}, **changes,
    }  # fmt: skip


def in_one_file(side: int, **changes: Any) -> dict[str, object]:
    """As transformers 5 writes them."""
    own = pixtral(side, **{"image_processor_type": "PixtralImageProcessorFast", **changes})
    return {"processor_config.json": {"image_token": "[IMG]", "patch_size": 16, "image_processor": own}}


def in_two_files(side: int, **changes: Any) -> dict[str, object]:
    """As transformers 4 does."""
    own = {"patch_size": 16, "processor_class": "PixtralProcessor"}
    return {"preprocessor_config.json": pixtral(side, **changes), "processor_config.json": own}


SPELLED = [
    {}, {"patch_size": 16}, {"patch_size": [16, 16]}, {"resample": "bicubic"}, {"do_convert_rgb": None},
    {"do_pad": False}, {"size_divisor": None}, {"do_center_crop": False, "crop_size": 224},
    {"image_mean": [0.481455, 0.457828, 0.408211]}, {"size": {"longest_edge": 96, "shortest_edge": None}},
]  # fmt: skip


@pytest.mark.parametrize("changes", SPELLED, ids=str)
@pytest.mark.parametrize("write", [in_one_file, in_two_files])
def test_processors_are_compared_by_what_they_do_to_an_image(tmp_path, capsys, write, changes):
    """Checked with transformers' own: the same pixels of an image."""
    import numpy as np
    from transformers import PixtralImageProcessor

    pixels = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    own = {name: value for name, value in pixtral(96, **changes).items() if name != "image_processor_type"}
    if own["patch_size"] != [16, 16] and own["resample"] != "bicubic":  # written so for other readers
        given = [
            PixtralImageProcessor(**one)(pixels, return_tensors="np")["pixel_values"] for one in (own, pixtral(96))
        ]
        np.testing.assert_allclose(*given, atol=1e-5)
    compared(tmp_path, write(96, **changes), in_one_file(96))
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "changes",
    [
        {"size": {"longest_edge": 64}}, {"resample": 2}, {"do_rescale": False}, {"rescale_factor": 1 / 256},
        {"image_mean": [0.5, 0.5, 0.5]}, {"patch_size": 14}, {"do_split": True},
        {"image_processor_type": "CLIPImageProcessor"},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("write", [in_one_file, in_two_files])
def test_other_processors_are_refused_in_whatever_files_they_stand(tmp_path, write, changes):
    theirs = write(96, **changes)
    with pytest.raises(
        CheckpointError, match=r"the processor of .*b is not that of .*a: .*processor_config.json differ"
    ):
        compared(tmp_path, in_one_file(96), theirs)


TOOLS = "additional_chat_templates/tool_use.jinja"


def test_templates_with_names_are_compared(tmp_path, capsys):
    listed = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]
    inside = {"tokenizer_config.json": {"chat_template": listed}}
    compared(tmp_path / "same", inside, {"chat_template.jinja": "one", TOOLS: "two\n"})
    with pytest.raises(
        CheckpointError, match=r"the chat template of .*b is not that of .*a: the template tool_use differs"
    ):
        compared(tmp_path / "apart", inside, {"chat_template.jinja": "one", TOOLS: "three"})
    capsys.readouterr()
    compared(tmp_path / "lost", {}, {"chat_template.jinja": "one", TOOLS: "two"})
    said = " ".join(capsys.readouterr().err.split())
    assert "the template is only in" in said and "the template tool_use is only in" in said


@pytest.mark.parametrize(
    ("ours", "theirs", "named"),
    [
        ({"generation_config.json": {"temperature": 1}}, {"generation_config.json": {"temperature": 2}}, "differs"),
        ({"LICENSE": "one"}, {"LICENSE": "two"}, "LICENSE differs"),
        ({"tokenizer.json": TOKENIZER}, {}, "tokenizer.json is only in"),
        ({"tokenizer_config.json": {"padding_side": "left"}}, {"tokenizer_config.json": {}}, "differs"),
    ],
)
def test_other_differences_are_named(tmp_path, capsys, ours, theirs, named):
    compared(tmp_path, ours, theirs)
    assert named in " ".join(capsys.readouterr().err.split())


def test_harmless_differences_of_configs_are_named(tmp_path, capsys):
    inputs = []
    for name, more in (("a", {}), ("b", {"eos_token_id": 7, "max_position_embeddings": 64, "bos_token_id": None})):
        write_model(tmp_path / name, text_tensors(1, dtype="F32"), {**text_config(1), **more})
        inputs.append(AverageInput.from_directory(tmp_path / name))
    check_agreement(inputs)
    said = " ".join(capsys.readouterr().err.split())
    assert "config.json differs in" in said and "eos_token_id" in said and "max_position_embeddings" in said
    check_agreement([inputs[0], inputs[0]])
    assert not capsys.readouterr().err


PLACES = {
    "chat_template.jinja": lambda text: text,
    "chat_template.json": lambda text: {"chat_template": text},
    "tokenizer_config.json": lambda text: {"chat_template": text},
}


@pytest.mark.parametrize("mine", PLACES)
@pytest.mark.parametrize("other", PLACES)
def test_templates_are_compared_wherever_they_stand(tmp_path, mine, other):
    compared(tmp_path / "same", {mine: PLACES[mine]("one")}, {other: PLACES[other]("one")})
    with pytest.raises(CheckpointError, match=r"the chat template of .*b is not that of .*a"):
        compared(tmp_path / "apart", {mine: PLACES[mine]("one")}, {other: PLACES[other]("two")})
