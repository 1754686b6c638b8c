"""What logs and tools of annotators say about a record that is not to be learned, and what they only seem to say."""

from __future__ import annotations

from typing import Any

import pytest
from small_chats import ANSWERED, ASKED, answer, asked, chat, check_refused

from megatron_apriel.data.raw.json_text import parsed_json
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.records.conversion import parse_record, recognise, why_unknown

USE = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
PAIR = {"prompt": "Which colour?", "response": "Red."}


def log(message: Any = ANSWERED, request: Any = None, **response: Any) -> dict[str, Any]:
    return {"request": request or {"messages": [ASKED]}, "response": {"choices": [{"message": message, **response}]}}


REFUSED = {
    "cut off": (chat(finish_reason="length"), "'finish_reason' says that the answer was cut off"),
    "cut off, in a choice": (log(finish_reason="max_tokens"), "'response.choices.finish_reason'"),
    "cut off, as a class of an enumeration": (log(finish_reason="FinishReason.MAX_TOKENS"), "cut off"),
    "cut off, deep inside": (
        {"messages": [ASKED, {**ANSWERED, "response_metadata": {"finish_reason": "content_filter"}}]},
        "'messages.response_metadata.finish_reason'",
    ),
    "incomplete": ({**PAIR, "incomplete_details": {"reason": "max_output_tokens"}}, "'incomplete_details'"),
    "failed": ({"request": {"messages": [ASKED]}, "response": {"status_code": 500, "output": "Red."}}, "status_code"),
    "with an error": ({**log(), "error": {"message": "overloaded"}}, "'error' says that the request failed"),
    "two answers": (
        {"messages": [ASKED], "choices": [{"message": ANSWERED}, {"message": ANSWERED}]},
        "'choices' holds 2 answers, and none of them is the one to learn",
    ),
    "a refusal": (log({"role": "assistant", "content": None, "refusal": "No."}), "says nothing"),
    "a system turn around a request": ({**log(), "system": "Speak Dutch."}, "'system' holds a text that no turn holds"),
    "rejected by Prodigy": ({"text": "A text.", "answer": "reject"}, "'answer' says that the record was thrown out"),
    "ignored by Prodigy": ({**PAIR, "answer": "ignore"}, "thrown out"),
    "discarded by Argilla": ({**PAIR, "status": "discarded"}, "thrown out"),
    "corrected by Argilla": ({**PAIR, "corrected-response": [{"value": "Blue."}]}, "holds a better answer"),
    "of a split": ({**PAIR, "data_split": "val"}, "'data_split' says that the record is held out"),
    "wrong by number": ({**PAIR, "is_correct": 0}, "says that the answer is bad"),
    "wrong by word": ({**PAIR, "is_correct": "No"}, "says that the answer is bad"),
    "wrong, said in an object": (chat(metadata={"scores": {"passed": False}}), "'metadata.scores.passed'"),
    "of a split, said in an object": (chat(info={"split": "test"}), "'info.split' says that the record is held"),
    "cancelled by an annotator": (chat(annotation={"was_cancelled": True}), "'annotation.was_cancelled'"),
    "not for training": (chat(use_for_training=False), "says that the record is not to be learned"),
    "a duplicate": ({**PAIR, "is_duplicate": "true"}, "says that the record is not to be learned"),
    "not liked": (chat(feedback={"rating": "thumbs_down"}), "says that the answer is bad"),
    "voted down": ({"messages": [ASKED, {**ANSWERED, "vote": -1}]}, "'messages.vote' says that the answer is bad"),
    "interrupted": ({"messages": [ASKED, {**ANSWERED, "interrupted": True}]}, "'messages.interrupted'"),
    "a passage beside a question": (
        {"messages": [{**ASKED, "documents": ["Roses are red."]}, ANSWERED]}, "'messages.documents' holds a text",
    ),
    "a schema of tables": ({**PAIR, "schema": "CREATE TABLE t (a int)"}, "'schema' holds a text that no turn holds"),
    "an address of what is asked about": ({**PAIR, "media": {"url": "https://a/b.jpg"}}, "'media.url' names a picture"),
    "a turn of a tree": ({"text": "Hi", "role": "prompter", "parent_id": None}, "one turn of a conversation"),
    "turns beside a text": ({"text": "Red.", "chat_log": [ASKED]}, "'chat_log' holds turns that are not read"),
    "an attachment": (
        {"chat_messages": [{"sender": "human", "text": "See.", "attachments": [{"extracted_content": "x"}]},
                           {"sender": "assistant", "text": "Seen."}]},
        "'chat_messages.attachments' names what the turn was sent with",
    ),
    "the caption of an address": ({"text": "A cat", "url": "https://a/b", "width": 1, "height": 1}, "is not fetched"),
    "ChatML": ({"text": "<|im_start|>user\nHi<|im_end|>\n"}, "another chat template has rendered"),
    "Llama's": (asked("<s>[INST] Hi [/INST]"), "another chat template has rendered, by '\\[INST\\]'"),
    "Guanaco's": ({"text": "### Human: Hi### Assistant: Hello."}, "another chat template has rendered"),
    "a prompt of Anthropic's": ({"prompt": "\n\nHuman: Hi\n\nAssistant:", "completion": "Hello."}, "has rendered"),
    "an answer that goes on": (answer("Red.<|im_end|>\n<|im_start|>user\nAnd now?"), "has rendered"),
    "what stands around images": (asked("<|vision_start|><image>Hi") | {"images": ["a.png"]}, "another model's images"),
    "a part of a film": (
        {"contents": [{"role": "user", "parts": [{"fileData": {"mimeType": "video/mp4", "fileUri": "a.mp4"}}]}]},
        "'video/mp4', which is no image",
    ),
    "code that ran": ({"contents": [{"role": "user", "parts": [{"executableCode": {}, "a": 1}]}]}, "executable_code"),
    "a removed message": (
        {"messages": [{"type": "human", "content": "Hi"}, {"type": "remove", "id": "1"}]},
        "a turn of type 'remove' without a role",
    ),
    "reasoning without an answer": (
        {"messages": [ASKED, {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}]},
        "only thinks",
    ),
    "a call as words": (
        {**answer('{"name": "f", "parameters": {"a": 1}}'), "tools": [{"type": "function", "function": {"name": "f"}}]},
        "a call of 'f' as words",
    ),
    "calls of Anthropic's older form": (answer('<function_calls><invoke name="f"></invoke>'), "begins a tool call"),
    "calls of Firefunction": (answer('functools[{"name": "f"}]'), "begins a tool call"),
    "calls of MiniMax": (answer('<minimax:tool_call><invoke name="f">'), "begins a tool call"),
    "other calls in two places": (
        {"messages": [ASKED, {"role": "assistant", "content": [USE],
                             "tool_calls": [{"id": "a", "function": {"name": "g", "arguments": "{}"}}]}, ANSWERED]},
        "other calls in its parts",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_its_reason(name: str) -> None:
    check_refused(*REFUSED[name])


READ = {
    "settings that say nothing": (chat(tool_choice="auto", response_format={"type": "text"}), "Red."),
    "the whole of an answer": (chat(finish_reason="stop", error=None, status="completed"), "Red."),
    "praise": (chat(feedback={"rating": "thumbs_up"}, vote=1, metadata={"passed": True}), "Red."),
    "another answer was cut off": (chat(generations=["a"], finish_reasons=["stop", "length"]), "Red."),
    "a moderator's flag": (chat(openai_moderation=[{"flagged": True}]), "Red."),
    "a result that failed": (
        {"messages": [ASKED, {"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f"}}]},
                      {"role": "tool", "tool_call_id": "a", "content": "x", "status": "error"}, ANSWERED]},
        "Red.",
    ),
    "an answer that is JSON": ({"prompt": "As JSON.", "completion": '{"message": {"role": "x"}}'},
                               '{"message": {"role": "x"}}'),
    "an answer about a template": (answer("It begins with <|im_start|>user."), "It begins with <|im_start|>user."),
    "JSON that calls no tool": (
        {**answer('{"name": "Ann", "args": 1}'), "tools": [{"name": "f"}]}, '{"name": "Ann", "args": 1}',
    ),
    "struck through": (answer("It costs <s>10</s>"), "It costs <s>10</s>"),
    "the answer of a wrapper that repeats the turns": (
        {"inputs": {"messages": [ASKED]}, "outputs": chat()}, "Red.",
    ),
    "the same calls in two places": (
        {"messages": [ASKED, {"role": "assistant", "content": [USE],
                             "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": "{}"}}]},
                      {"role": "tool", "tool_call_id": "a", "content": "x"}, ANSWERED]},
        "Red.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_what_only_looks_like_it_is_read(name: str) -> None:
    record, said = READ[name]
    shape = recognise(record)
    assert shape is not None
    document = parse_record(record, shape)
    assert document.messages[-1] == {"role": "assistant", "content": said}
    assert sum(len(message.get("tool_calls", ())) for message in document.messages) <= 1


def test_a_page_that_was_cut_off_is_read() -> None:
    assert parse_record({"text": "A page.", "is_truncated": True}, "text").parts == ("A page.",)


def test_names_that_an_object_has_twice() -> None:
    with pytest.raises(BadRecord, match="the name 'content' is there twice"):
        parsed_json('[{"content": "a", "role": "user", "content": "b"}]', 100)
    assert parsed_json('[{"a": 1}, {"a": 1}]', 100) == [{"a": 1}, {"a": 1}]


def test_why_a_record_has_no_known_shape() -> None:
    assert "holds an answer, and no field the request" in why_unknown(
        {"response": {"choices": [{"message": ANSWERED}]}}
    )
    assert "'data' is a list of 1 record of the shape pair" in why_unknown({"data": [PAIR]})
    assert recognise({"data": [{"question": "Which colour?", "answer": "Red."}]}) is None


def test_a_record_of_another_shape_than_its_file_is_refused() -> None:
    record = {"text": "A text.", **PAIR}
    with pytest.raises(BadRecord, match="its shape is 'pair', and that of its file's first record 'text'"):
        parse_record(record, "text", found_out=True)
    assert parse_record(record, "text").parts == ("A text.",)
