"""Honest raw records with texts, conversations, tools and images, a small tokenizer for them, and preparing a case."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from megatron_apriel.data.corpus import prepare as preparation
from megatron_apriel.data.corpus.chat import exported_chat_template
from megatron_apriel.data.corpus.on_disk import Corpus
from megatron_apriel.data.corpus.prepare import PrepareOptions, PrepareSummary
from megatron_apriel.data.corpus.tokens import TokenTable
from megatron_apriel.data.raw.fields.meanings import IMAGES
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.testing.tokenizers import write_processor

from .case import Wrong
from .targets.images import honest_images

RECORD_NAMES = (
    "text", "messages", "conversations", "images", "image", "tools", "system", "role", "content", "type", "tool_calls",
    "function",
    "name", "arguments", "reasoning_content", "thinking", "from", "value", "image_url", "url", "path", "bytes",
    "base64", "id",
    "tool_call_id", "weight", "loss", "train", "prefix", "audio", "refusal", "function_call", "parameters",
    "input_audio",
)  # fmt: skip
"""Fields that records of somebody's have, whether this project reads them or not."""


def _data_url(name: str) -> str:
    kind = name.rpartition(".")[2]
    return f"data:image/{kind};base64,{base64.b64encode(honest_images()[name]).decode()}"


@cache
def honest_records() -> dict[str, list[dict[str, Any]]]:
    """Records by format; all of them become documents."""
    picture, other = _data_url("rgb.png"), _data_url("rgb.jpeg")
    call = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": [2, {"c": null}]}'}}
    tool = {
        "type": "function",
        "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
    }
    return {
        "text": [
            {"text": "Plain text."},
            {"text": "Über 中文 \U0001f600 \n\n two\tlines", "meta": {"n": [1, 2.5, None]}},
            {"text": "<image> a picture", "images": [picture]},
            {"text": "x" * 500},
        ],
        "messages": [
            {"messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Yes."}]},
            {
                "messages": [
                    {"role": "system", "content": "Be short."},
                    {"role": "user", "content": [{"type": "text", "text": "What is it?"},
                    {"type": "image_url", "image_url": {"url": picture}}]},
                    {"role": "assistant", "content": "A picture.", "reasoning_content": "I look."},
                ]
            },
            {
                "tools": [tool],
                "messages": [
                    {"role": "user", "content": "1 and 2?"},
                    {"role": "assistant", "content": "", "tool_calls": [call]},
                    {"role": "tool", "content": "3"},
                    {"role": "assistant", "content": "<think>easy</think>3"},
                ],
            },
            {"messages": [{"role": "user", "content": "<image>Look"}, {"role": "assistant", "content": "Seen."}],
            "images": [other]},
        ],
        "conversations": [
            {"conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "This."}],
            "image": picture},
            {"system": "Be kind.", "conversations": [{"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Hello"}]},
        ],
    }  # fmt: skip


def write_model(directory: Path) -> None:
    """A model directory with tokenizer, processor and config; small, and without weights."""
    full = Architecture.from_preset("pixtral-12b")
    assert full.tower is not None
    small = replace(full, decoder=replace(full.decoder, vocab_size=2048), tower=replace(full.tower, image_size=64))
    write_processor(directory, small)
    (directory / "config.json").write_text(json.dumps(small.to_hf_config()), encoding="utf-8")
    (directory / "chat_template.jinja").write_text(exported_chat_template(), encoding="utf-8")


def use_tokenizer(directory: Path) -> TokenTable:
    """The tokenizer of a model directory, read once for all preparations of this process."""
    table = TokenTable.from_directory(directory)
    preparation.TokenTable = SimpleNamespace(from_directory=lambda *_: table)  # type: ignore[misc,assignment]
    return table


@dataclass(frozen=True)
class Prepared:
    """What preparation made of an input: its summary, the corpus, and the places of the bad records."""

    summary: PrepareSummary
    corpus: Corpus | None
    bad: set[str]


def prepared(inputs: Sequence[Path], destination: Path, **options: Any) -> Prepared:
    """Prepare inputs of which any number of records may be bad; every record is a document or counted as bad."""
    settings = PrepareOptions(max_bad=1.0, **options)
    summary = preparation.prepare(destination, inputs, "", settings)
    problems = summary.problems
    if summary.documents + problems.count != problems.records:
        raise Wrong(f"{summary.documents} documents and {problems.count} bad records of {problems.records} records")
    corpus = Corpus.open(destination)
    if len(corpus) != summary.documents:
        raise Wrong(f"{summary.documents} documents were made and {len(corpus)} written")
    return Prepared(summary, corpus, {problem.place for problem in problems.first})


def compare_texts(result: Prepared, table: TokenTable, records: Sequence[tuple[str, Any]], field: str = "text") -> None:
    """Compare the documents with records read otherwise, each with its place.

    Raises:
        Wrong: another number of records, or a plain document whose tokens are not its text's.
    """
    if len(records) != result.summary.problems.records:
        raise Wrong(f"{result.summary.problems.records} records were counted, and there are {len(records)}")
    assert result.corpus is not None
    if result.summary.inputs[0].record_format != "text" or result.summary.problems.count > len(result.bad):
        return  # of more bad records than are listed, it is not known which they are
    good = [value for place, value in records if place not in result.bad]
    if len(good) != len(result.corpus):
        raise Wrong(f"{len(result.corpus)} documents for {len(good)} records that are not bad")
    for number, value in enumerate(good):
        # Names may be in capital letters; of two the small one counts.
        small = {name.lower(): one for name, one in value.items()} | value if isinstance(value, dict) else {}
        text = small.get(field)
        if not isinstance(text, str):
            raise Wrong(f"a document was made of a record whose text is a {type(text).__name__}")
        if any(small.get(name) for name in IMAGES.names):
            continue
        found = table.tokenizer.decode(result.corpus.tokens(number)[1:-1].tolist(), clean_up_tokenization_spaces=False)
        if found != text:
            raise Wrong(f"a document says {found!r:.80}, its record {text!r:.80}")
