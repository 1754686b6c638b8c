"""The exported directory in transformers' hands: nothing to warn about, and the same greedy tokens as this model's."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from alone import alone

from megatron_apriel.checkpoint.export import export_hf
from megatron_apriel.checkpoint.loading import load_weights
from megatron_apriel.errors import CheckpointError, OutputError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.hf_directory import ChatFormat
from megatron_apriel.model.builder import build_model
from megatron_apriel.model.head import token_logits
from megatron_apriel.model.options import ModelOptions
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing.batches import hf_inputs, make_batch, random_document
from megatron_apriel.testing.checkpoints import write_hf_checkpoint

TINY = Architecture.from_preset("tiny")
SMALL = replace(TINY, decoder=replace(TINY.decoder, vocab_size=1300))
TEXT = Architecture(TINY.decoder)
RESPONSE = {"start_anchor": "<|assistant|>\n", "fields": {"content": {"close": "<|end|>"}}}
TEMPLATE = "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}\n<|end|>\n{% endfor %}"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf_checkpoint(tmp_path_factory.mktemp("export") / "hf", SMALL, processor=True)


def exported(
    architecture: Architecture, source: Path, destination: Path, documents: list | None = None, **options: object
) -> list[list[int]]:
    """Load, export, and say how the model continues each of ``documents``."""

    @alone
    def tokens() -> list[list[int]]:
        chunks = build_model(architecture, ModelOptions(), Layout(1))
        load_weights(chunks, source, architecture)
        export_hf(chunks, architecture, sidecars=source, destination=destination, **options)
        return [greedy(chunks[0], architecture, document, 6) for document in documents or []]

    return tokens


def greedy(model: torch.nn.Module, architecture: Architecture, document: list, count: int) -> list[int]:
    """Tokens by repeated forward passes over the whole document so far."""
    tokens: list[int] = []
    with torch.no_grad():
        for _ in range(count):
            logits = model(make_batch(architecture, [[*document, *tokens]]), token_logits)
            tokens.append(int(logits[-1].argmax()))
    return tokens


@pytest.mark.parametrize(("architecture", "grids"), [(SMALL, [(3, 2), (1, 4)]), (SMALL, []), (TEXT, [])])
def test_greedy_tokens_equal_transformers(source, tmp_path, architecture, grids):
    from transformers import AutoModelForImageTextToText, MistralForCausalLM

    if architecture is TEXT:
        source = write_hf_checkpoint(tmp_path / "text", TEXT)
    documents = [random_document(architecture, 12, grids, torch.Generator().manual_seed(seed)) for seed in range(3)]
    continued = exported(architecture, source, tmp_path / "out", documents, max_shard_size=300_000)
    loader = MistralForCausalLM if architecture is TEXT else AutoModelForImageTextToText
    reference = loader.from_pretrained(tmp_path / "out").eval()
    seen: set[int] = set()
    for document, ours in zip(documents, continued, strict=True):
        inputs = hf_inputs(architecture, document)
        generated = reference.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, eos_token_id=-1)
        assert generated[0, inputs["input_ids"].shape[1] :].tolist() == ours
        seen |= set(ours)
    assert len(seen) > 2


def test_transformers_has_nothing_to_say(source, tmp_path, caplog):
    from transformers import LlavaForConditionalGeneration
    from transformers.utils import logging as transformers_logging

    exported(SMALL, source, tmp_path / "out", max_shard_size=300_000)
    transformers_logging.enable_propagation()
    with caplog.at_level(logging.INFO):
        _, report = LlavaForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings == []


def test_sidecars_go_along(source, tmp_path):
    from transformers import AutoProcessor, AutoTokenizer, GenerationConfig

    exported(SMALL, source, tmp_path / "out", chat_format=ChatFormat(TEMPLATE, RESPONSE))
    messages = [{"role": "user", "content": "Hello"}]
    expected = "<|user|>\nHello\n<|end|>\n"
    for loader in (AutoProcessor, AutoTokenizer):
        loaded = loader.from_pretrained(tmp_path / "out")
        assert loaded.apply_chat_template(messages, tokenize=False) == expected
    assert loaded.parse_response("Hi.<|end|>", prefix="") == {"content": "Hi."}
    generation = GenerationConfig.from_pretrained(tmp_path / "out")
    assert (generation.temperature, generation.do_sample) == (0.6, True)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 11)
    given = {file.name for file in source.iterdir()}
    assert given <= {file.name for file in (tmp_path / "out").iterdir()}


def test_config_of_the_source_stays(source, tmp_path):
    """Entries that change nothing go along; the number of layers is the model's."""
    config = json.loads((source / "config.json").read_text())
    config |= {"task_specific_params": {"other": 1}, "torch_dtype": "bfloat16"}
    config["text_config"] |= {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))

    @alone
    def checks() -> None:
        chunks = build_model(SMALL, ModelOptions(), Layout(1))
        load_weights(chunks, source, SMALL)
        export_hf(chunks, SMALL, sidecars=tmp_path / "other", destination=tmp_path / "out", dtype=torch.bfloat16)

    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["task_specific_params"] == {"other": 1}
    assert written["text_config"]["num_hidden_layers"] == 4
    assert written["text_config"]["layer_types"] == ["full_attention"] * 4
    assert written["dtype"] == written["torch_dtype"] == "bfloat16"


def test_refusals(source, tmp_path):
    @alone
    def checks() -> None:
        chunks = build_model(SMALL, ModelOptions(), Layout(1))
        with pytest.raises(CheckpointError, match=r"absent, whose config.* does not exist"):
            export_hf(chunks, SMALL, sidecars=tmp_path / "absent", destination=tmp_path / "out")
        with pytest.raises(CheckpointError, match="describes another model"):
            other = write_hf_checkpoint(tmp_path / "other", TINY)
            export_hf(chunks, SMALL, sidecars=other, destination=tmp_path / "out")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("")
        with pytest.raises(OutputError, match="exists"):
            export_hf(chunks, SMALL, sidecars=source, destination=tmp_path / "out")

    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]
