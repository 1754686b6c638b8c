"""What lies beside exported weights: read by transformers 4 and 5, rendering the format that was trained."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alone import alone

from megatron_apriel.checkpoint.convert import convert, plan_conversion
from megatron_apriel.checkpoint.export import export_hf
from megatron_apriel.checkpoint.loading import load_weights
from megatron_apriel.data.corpus.answer_format import exported_chat_format, response_template
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.kinds import Kind
from megatron_apriel.model.builder import build_model
from megatron_apriel.model.options import ModelOptions
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing.checkpoints import write_hf_checkpoint
from megatron_apriel.testing.tokenizers import write_small_tekken

TINY = Architecture.from_preset("tiny")
SMALL = replace(TINY, decoder=replace(TINY.decoder, vocab_size=1300))
MODELS = {"images": SMALL, "text": Architecture(SMALL.decoder)}
ASKED = [{"role": "user", "content": "Hello"}]
PROMPT = "<s><|user|>\nHello\n<|end|>\n<|assistant|>\nHere are my reasoning steps:\n"


def exported(name: str, source: Path, destination: Path) -> Path:
    @alone
    def run() -> None:
        chunks = build_model(MODELS[name], ModelOptions(), Layout(1))
        load_weights(chunks, source, MODELS[name])
        chat = exported_chat_format()
        export_hf(chunks, MODELS[name], sidecars=source, destination=destination, chat_format=chat)

    return destination


def model(name: str, folder: Path, tekken: bool = True) -> Path:
    source = write_hf_checkpoint(folder / "source", MODELS[name], processor=True)
    if tekken:
        write_small_tekken(source / "tekken.json", 1300)
    return source


def prompts(directory: Path) -> list[str]:
    """As transformers' own choice of classes renders it."""
    from transformers import AutoProcessor, AutoTokenizer

    loaded = (loader.from_pretrained(directory) for loader in (AutoTokenizer, AutoProcessor))
    return [one.apply_chat_template(ASKED, tokenize=False, add_generation_prompt=True) for one in loaded]


def settings(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "tokenizer_config.json").read_text())


@pytest.mark.parametrize("name", MODELS)
def test_the_trained_format_is_rendered_beside_a_tekken(name: str, tmp_path: Path) -> None:
    """transformers prefers tekken.json to the template beside a text-only model, and renders [INST]."""
    source = model(name, tmp_path)
    assert any("[INST]" in prompt for prompt in prompts(source)) == (name == "text")
    result = exported(name, source, tmp_path / "out")
    assert prompts(result) == [PROMPT, PROMPT]
    assert (result / "tekken.json").exists() == (name == "images")


@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_mistrals_form_is_exported_with_a_tokenizer(name: str, tmp_path: Path) -> None:
    convert(plan_conversion(model(name, tmp_path), Kind.MISTRAL), tmp_path / "mistral")
    for file in (tmp_path / "mistral").iterdir():
        if file.name not in ("params.json", "tekken.json") and file.suffix != ".safetensors":
            file.unlink()
    result = exported(name, tmp_path / "mistral", tmp_path / "out")
    assert prompts(result) == [PROMPT, PROMPT]
    assert settings(result)["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.parametrize("name", MODELS)
def test_tokenizers_are_named_as_transformers_4_knows_them(name: str, tmp_path: Path) -> None:
    """It does not know TokenizersBackend, and by itself gives token_type_ids, which generate refuses."""
    source = model(name, tmp_path, tekken=False)
    given = settings(source)
    assert given["tokenizer_class"] == "TokenizersBackend" and "model_input_names" not in given
    given |= {"extra_special_tokens": ["[INST]"], "padding_side": "left"}
    (source / "tokenizer_config.json").write_text(json.dumps(given))
    written = settings(exported(name, source, tmp_path / "out"))
    assert written.pop("tokenizer_class") == "PreTrainedTokenizerFast"
    assert written.pop("model_input_names") == ["input_ids", "attention_mask"]
    assert written.pop("additional_special_tokens") == ["[INST]"]
    assert written.pop("response_template") == response_template()
    assert written == {key: given[key] for key in given if key not in ("tokenizer_class", "extra_special_tokens")}

    from transformers import AutoTokenizer

    tokenizers = [AutoTokenizer.from_pretrained(directory) for directory in (source, tmp_path / "out")]
    assert len({one.backend_tokenizer.to_str() for one in tokenizers}) == 1
    assert tokenizers[0].all_special_tokens == tokenizers[1].all_special_tokens


def test_a_template_for_tools_does_not_outlive_the_trained_format(tmp_path: Path) -> None:
    """transformers would take it where there are tools, and render another format than the model learned."""
    source = model("text", tmp_path, tekken=False)
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("of another format")
    tools = [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]

    from transformers import AutoTokenizer

    def asked(directory: Path) -> str:
        turns = [{"role": "user", "content": "Hello"}]
        return AutoTokenizer.from_pretrained(directory).apply_chat_template(turns, tools=tools, tokenize=False)

    assert asked(source) == "of another format"
    out = exported("text", source, tmp_path / "out")
    assert "Hello" in asked(out)
    assert not (out / "additional_chat_templates").exists()


def test_other_classes_stay(tmp_path: Path) -> None:
    source = model("text", tmp_path, tekken=False)
    (source / "tokenizer_config.json").write_text(json.dumps({**settings(source), "tokenizer_class": "LlamaTokenizer"}))
    given = settings(source)
    assert settings(exported("text", source, tmp_path / "out")) == given | {"response_template": response_template()}


@pytest.mark.parametrize("name", MODELS)
def test_mistrals_form_has_the_tokenizer_or_says_that_it_lacks_it(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = model(name, tmp_path)
    convert(plan_conversion(source, Kind.MISTRAL), tmp_path / "with")
    assert (tmp_path / "with" / "tekken.json").read_bytes() == (source / "tekken.json").read_bytes()
    assert "tekken" not in capsys.readouterr().err
    (source / "tekken.json").unlink()
    plan_conversion(source, Kind.MISTRAL)
    said = capsys.readouterr().err
    assert "has no tekken.json, so the result has no tokenizer" in said and "mistralai/Pixtral-12B-2409" in said


def test_a_text_models_conversion_leaves_the_tekken_out(tmp_path: Path) -> None:
    source = model("text", tmp_path)
    convert(plan_conversion(source, Kind.MISTRAL), tmp_path / "mistral")
    shutil.copy(source / "chat_template.jinja", tmp_path / "mistral")
    convert(plan_conversion(tmp_path / "mistral", Kind.HF), tmp_path / "back")
    assert not (tmp_path / "back" / "tekken.json").exists()
    assert all(prompt.startswith("<s><|user|>\nHello") for prompt in prompts(tmp_path / "back"))
