"""Chat records: understood whole, and rendered to the tokens that the exported template gives, or a bad record."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from megatron_apriel.data.corpus.chat import encode_chat, encode_text
from megatron_apriel.data.raw.documents import Conversation
from megatron_apriel.data.raw.pictures.image_references import ImageLoader
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.records.conversion import parse_record, recognise

from ..case import Target, Wrong
from ..json_changes import change_value, copied, write_json
from ..records import RECORD_NAMES, honest_records, use_tokenizer, write_model

GRID = (1, 1)
_CONTROL = (
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[IMG]",
    "[IMG_BREAK]",
    "[IMG_END]",
    "<pad>",
    "<unk>",
    "[TOOL_CALLS]",
    "[AVAILABLE_TOOLS]",
)


class ChatRecords(Target):
    """Records as parsed JSON; no text of theirs may become a control token."""

    name = "chat"
    about = "chat records: roles, parts, reasoning, tools and their calls"
    guided = "record.json"

    def make(self, directory: Path) -> None:
        write_model(directory / "model")

    def open(self, directory: Path) -> None:
        super().open(directory)
        self.table = use_tokenizer(directory / "model")

    def mutate(self, random: Random, directory: Path, changes: int) -> str:
        kind = random.choice(("messages", "messages", "conversations", "text"))
        record: Any = random.choice(honest_records()[kind])
        done = []
        for _ in range(changes):
            record, what = (
                _change(random, record) if random.random() < 0.3 else change_value(random, record, RECORD_NAMES)
            )
            record = copied(record)
            done.append(what)
        (directory / "record.json").write_text(write_json(record), encoding="utf-8", errors="surrogatepass")
        return f"{kind}: {'; '.join(done)}"

    def check(self, directory: Path) -> None:
        try:
            record = json.loads((directory / "record.json").read_text(encoding="utf-8", errors="surrogatepass"))
        except (ValueError, RecursionError) as error:
            raise BadRecord(f"not valid JSON: {error}") from None
        if not isinstance(record, dict):
            raise BadRecord("no object")
        found = recognise(record)
        if found is None:
            raise BadRecord("of no known format")
        try:
            document = parse_record(record, found)
            for image in document.images:
                ImageLoader(directory).load(image)
            grids = [GRID] * len(document.images)
            if isinstance(document, Conversation):
                encoded = encode_chat(self.table, document.messages, document.tools, grids, learned=document.learned)
            else:
                encoded = encode_text(self.table, document.parts, grids, learned=document.learned)
        except RecursionError:  # preparation counts it as a bad record
            raise BadRecord("nested too deeply") from None
        tokens = encoded.tokens.tolist()
        if len(encoded.responses) != len(tokens) or len(encoded.image_starts) != len(grids):
            raise Wrong("flags or images that do not fit the tokens")
        if not 0 <= min(tokens) <= max(tokens) < self.table.record.vocab_size:
            raise Wrong("a token outside of the vocabulary")
        self._controls(tokens)
        if isinstance(document, Conversation):
            self._template(document, tokens)

    def _controls(self, tokens: list[int]) -> None:
        """``<s>`` begins and ``</s>`` ends a document, whatever its text says."""
        table = self.table
        if tokens.count(table.bos_id) != 1 or tokens[0] != table.bos_id:
            raise Wrong(f"{tokens.count(table.bos_id)} tokens begin the document")
        if tokens.count(table.eos_id) > 1 or (table.eos_id in tokens and tokens[-1] != table.eos_id):
            raise Wrong("a token ends the document before its end")

    def _template(self, document: Conversation, tokens: list[int]) -> None:
        """The same ids as transformers gives with the exported template, where no text reads like a control token."""
        messages, tools = list(document.messages), list(document.tools)
        if self.table.has_control_tokens(messages) or self.table.has_control_tokens(tools):
            return
        if any(isinstance(message["content"], list) for message in messages):
            return  # images are expanded, which the template alone does not do
        expected = self.table.tokenizer.apply_chat_template(
            messages, tools=tools or None, tokenize=True, return_dict=True
        )
        if list(expected["input_ids"]) != tokens:
            raise Wrong("other tokens than transformers gives with the exported template")


def _change(random: Random, record: Any) -> tuple[Any, str]:
    """Mutations that know what a conversation is."""
    record = copied(record)
    turns = record.get("messages", record.get("conversations")) if isinstance(record, dict) else None
    if not isinstance(turns, list) or not turns:
        return record, "nothing"
    place = random.randrange(len(turns))
    turn = turns[place]
    if not isinstance(turn, dict):
        return record, "nothing"
    text = next((name for name in ("content", "value") if isinstance(turn.get(name), str)), None)
    match random.randrange(7):
        case 0 if text:
            word = random.choice((*_CONTROL, "<|end|>", "<|assistant|>", "<think>", "</think>",
            "Here are my reasoning steps:",
                                  "[BEGIN FINAL RESPONSE]", "[END FINAL RESPONSE]", "<image>", "{{ x }}",
                                  "{% endfor %}", "<tool_calls>"))  # fmt: skip
            start = random.randint(0, len(turn[text]))
            turn[text] = turn[text][:start] + word + turn[text][start:]
            return record, f"{word!r} in turn {place}"
        case 1 if text:
            turn[text] = [
                {"type": "text", "text": turn[text]},
                *random.choice(([], [{"type": "text", "text": "\u0000"}], [{"type": "image"}], ["x"])),
            ]
            return record, f"turn {place} in parts"
        case 2:
            turn["tool_calls"] = random.choice(
                (
                    "[]",
                    "{}",
                    [{}],
                    [{"function": {"name": "f", "arguments": "{}"}}] * 3,
                    [{"name": "f", "arguments": {"a": float("nan")}}],
                    [{"function": {"name": "f", "arguments": '{"a": 1e999}'}}],
                    [{"function": {"name": "f", "arguments": "9" * 5000}}],
                    3,
                    [[]],
                )
            )
            return record, f"tool calls in turn {place}"
        case 3:
            name = random.choice(("reasoning_content", "thinking", "reasoning"))
            turn[name] = random.choice(("I think.", "", " ", 3, ["x"], {"a": 1}, "</think>", "[BEGIN FINAL RESPONSE]"))
            return record, f"{name} in turn {place}"
        case 4:
            turns.insert(place, copied(random.choice(turns)))
            return record, f"a turn again at {place}"
        case 5:
            turn["role" if "role" in turn else "from"] = random.choice(
                ("system", "user", "assistant", "tool", "tool_result", "human", "gpt", "observation")
            )
            return record, f"another speaker in turn {place}"
    record["tools"] = random.choice(
        ("[]", "[{}]", "{", [{}], [{"type": "function"}], [[]], {"a": 1}, [{"function": {"name": "<|end|>"}}], "null")
    )
    return record, "other tools"
