"""Marks of what is learned, instructions and tools are followed or refused, in every field and object they stand in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from small_chats import ANSWERED, ASKED, answer, asked, chat, check_refused

from megatron_apriel.data.raw.records.conversion import parse_record, recognise

SCHEMA = {"type": "object", "properties": {"place": {"type": "string"}}}
TOOL = {"name": "tide", "description": "Tides.", "parameters": SCHEMA}
TEXT = "Speak only in rhymes."

REFUSED = {
    # what is learned
    "a flag for each turn": (chat(train=[False, True]), "'train' says which words are learned"),
    "numbers of turns": (chat(train_on_turns=[1]), "'train_on_turns' says which words"),
    "one turn": (chat(target_turn_index=1), "'target_turn_index' says which words"),
    "questions as well": (chat(train_on_inputs=True), "'train_on_inputs' says which words"),
    "roles": (chat(roles_to_train=["user"]), "'roles_to_train' says which words"),
    "weight 0 inside of a turn": (answer(metadata={"weight": 0}), "'messages.metadata.weight' says which words"),
    "no training inside of a record": (chat(meta={"train": False}), "'meta.train' says which words"),
    "a weight of the loss inside": (chat(meta={"loss_weight": 0.1}), "'meta.loss_weight' says which words"),
    "the assistant is masked": (chat(mask="Assistant"), "'mask' says which words"),
    "nobody is masked": (chat(mask=None, masks=["user"]), "'masks' says which words"),
    "a question that is not masked": (asked("Hi", masked=False), "masked says to learn a turn of the user"),
    "every answer is masked": (answer(masked=True), "no turn of the assistant is to be learned"),
    "a mark in JSON text": (chat(metadata='{"train": false}'), "'metadata.train' says which words"),
    "a split in JSON text": (chat(extra_info='{"split": "test"}'), "'extra_info.split' says that the record is held"),
    "an instruction in JSON text": (chat(meta=json.dumps({"system_prompt": TEXT})), "'meta.system_prompt' holds a"),
    # answers that are bad
    "not correct": (chat(answer_is_correct=False), "'answer_is_correct' says that the answer is bad"),
    "incorrect in words": (chat(correctness="Incorrect"), "'correctness' says that the answer is bad"),
    "not verified": (chat(verified=False), "'verified' says that the answer is bad"),
    "not solved": (chat(solved=0), "'solved' says that the answer is bad"),
    "a judgement": (chat(judgement="incorrect"), "'judgement' says that the record was thrown out"),
    "a column of annotators": (
        {"prompt": "a", "completion": "b", "label.responses.status": ["discarded"]},
        "'label.responses.status' says that the record was thrown out",
    ),
    "deleted inside of a turn": (answer(meta={"deleted": True}), "'messages.meta.deleted' says"),
    # what the answers obey
    "a persona": (chat(user_persona=TEXT), "'user_persona' holds a text that no turn holds"),
    "a policy": (chat(domain_policy=TEXT), "'domain_policy' holds a text"),
    "a context": (chat(rag_context=[TEXT]), "'rag_context' holds a text"),
    "instructions of a format": (chat(format_instructions=TEXT), "'format_instructions' holds a text"),
    "a system text in a turn": (asked("Hi", system_prompt=TEXT), "'messages.system_prompt' holds a text"),
    "tools under another name": (chat(tool_specs=[TOOL]), "'tool_specs' lists tools"),
    "tools as JSON text": (chat(api_text=json.dumps([{"type": "function", "function": TOOL}])), "'api_text' lists"),
    "tools in an object": (chat(meta={"api_docs": [TOOL]}), "'meta.api_docs' lists tools"),
    "tools of Anthropic": (chat(mcp=[{"name": "tide", "input_schema": SCHEMA}]), "'mcp' lists tools"),
    "tools of xLAM": (chat(apis_info=[{"name": "f", "parameters": {"x": {"type": "int"}}}]), "'apis_info' lists"),
    "tools of Gemini": (chat(offered=[{"functionDeclarations": [TOOL]}]), "'offered' lists tools"),
    "tools as texts": (chat(offered=[json.dumps(TOOL)]), "'offered' lists tools"),
    "a forced call": (chat(functions=[TOOL], function_call={"name": "tide"}), "'function_call' is a setting"),
    "a pattern": (chat(guided_regex="[a-z]+"), "'guided_regex' is a setting"),
    "a schema of Gemini": (chat(generationConfig={"responseMimeType": "application/json"}), "responseMimeType' is a"),
    "a schema inside": (chat(text={"format": {"type": "json_schema"}}), "'text.format.type' is a setting"),
    "a schema of vLLM": (chat(extra_body={"guided_json": {"a": 1}}), "'extra_body.guided_json.a' is a setting"),
    "turns elsewhere": (chat(previous_response_id="resp_1"), "'previous_response_id' names earlier turns"),
    "cached turns": (chat(cachedContent="cachedContents/1"), "'cachedContent' names earlier turns"),
    "documents of a template": (chat(chat_template_kwargs={"documents": [{"text": TEXT}]}), "documents' is a setting"),
    "a switch of a template": (chat(chat_template_kwargs={"xml": True}), "chat_template_kwargs.xml' is a setting"),
}  # fmt: skip
READ = {
    "names of what it was trained for": chat(trained_on=["a", "b"], training_source="x", training_size=1000),
    "weights that change nothing": chat(meta={"weight": 70, "loss": 0.31, "train": True}),
    "numbers of correct ones": chat(correct_count=0, correct_answer="No", correct_option=0, is_correct=True),
    "what it was made of": chat(original_instruction=TEXT, seed_context=TEXT, grading_instructions=TEXT),
    "a context that a turn holds": chat({"role": "user", "content": f"{TEXT} Go."}, ANSWERED, rag_context=TEXT),
    "a context that is a number": chat(context_length=4096, max_context="8K"),
    "names of constraints": chat(constraints=["punctuation:no_comma", "length/words"]),
    "other JSON texts": chat(metadata='{"a": 1', meta='{"split": "train"}', expected='{"status": "failed"}'),
    "calls that are right": chat(ground_truth=[{"name": "tide", "arguments": {"place": "Hoek"}}]),
    "people with names": chat(authors=[{"name": "A", "description": "B"}]),
    "tools that a turn holds": chat(
        {"role": "system", "content": f"Call {json.dumps(TOOL)}."}, ASKED, ANSWERED, tool_specs=[TOOL]
    ),
    "tools in two forms": chat(tools=[TOOL], raw_tools=[TOOL]),
    "settings that say what is meant without them": chat(
        function_call="auto", toolConfig={"functionCallingConfig": {"mode": "AUTO"}}, text={"format": {"type": "text"}},
        chat_template_kwargs={"add_generation_prompt": True, "thinking": True, "xml": False},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_followed_is_refused_by_its_name(name):
    record, message = REFUSED[name]
    check_refused(record, message)


@pytest.mark.parametrize("name", READ)
def test_what_changes_nothing_is_counted(name):
    record: dict[str, Any] = READ[name]
    parse_record(record, recognise(record) or "")


def test_masks_of_other_trainers_are_followed():
    """NeMo masks a speaker, torchtune turns."""
    plain = parse_record(chat(), "messages")
    assert parse_record(chat(mask="User"), "messages").messages == plain.messages  # type: ignore[union-attr]
    turns = [{**ASKED, "masked": True}, {**ANSWERED, "masked": True}, ASKED, {**ANSWERED, "masked": False}]
    read = parse_record(chat(*turns), "messages")
    assert read.learned == (False, True) and read.remarks.marked


def test_thinking_that_is_off_contradicts_reasoning():
    record = {**answer("<think>Hm.</think>Red."), "chat_template_kwargs": {"thinking": False}}
    check_refused(record, "'chat_template_kwargs.thinking' is false, and the assistant reasons")


@pytest.mark.parametrize("question", ["question", "query", "problem", "instruction", "prompt"])
def test_a_context_follows_its_question(question):
    record = {question: "Which colour?", "context": "The door is red.", "answer": "Red."}
    assert parse_record(record, "pair").messages[0]["content"] == "Which colour?\nThe door is red."  # type: ignore[union-attr]
