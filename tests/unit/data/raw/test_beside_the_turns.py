"""Turns, answers, questions and tools that stand beside what is read, under names of their own: none is left out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from small_chats import ASKED, answer, chat, check_refused

from megatron_apriel.data.raw.records.conversion import parse_record, recognise

THOUGHT = "<think>\nIt is so.\n</think>\n\nRed."
TIDE = {"name": "tide", "parameters": {"place": {"type": "string"}}}


def turns(said: str) -> list[dict[str, Any]]:
    return [{"from": "human", "value": "Which colour?"}, {"from": "gpt", "value": said}]


LEFT_OUT = {
    "other turns": (chat(conversations=turns("Blue.")), "'conversations' holds other turns"),
    "turns of several versions": (chat(negative_messages=[turns("Blue.")]), "'negative_messages' holds other turns"),
    "other turns as JSON text": (chat(original=json.dumps(turns("Blue."))), "'original' holds other turns"),
    "the same answer with reasoning": (chat(reannotated=turns(THOUGHT)), "'reannotated' holds an answer with reason"),
    "an answer with reasoning": (
        {"question": "Which?", "r1_generation": THOUGHT, "solution": "Red."},
        "'r1_generation' holds an answer with reasoning",
    ),
    "answers with reasoning, one of which is meant": (
        {"problem": "Which?", "solution": "Red.", "generations": [THOUGHT, THOUGHT]},
        "'generations' holds an answer with reasoning",
    ),
    "several reasons": (
        {"question": "Which?", "rationales": ["It is so."], "answer": "Red."},
        "'rationales' may hold the reasoning of the answer",
    ),
    "a second question": (
        {"instruction": "Solve it.", "question": "Which?", "output": "Red."},
        "'question' holds a text that no turn holds, beside another question",
    ),
    "the input of a question": ({"question": "What is printed?", "input": "print(1)", "answer": "1"}, "'input' holds"),
    "tools inside of a JSON text": (chat(metadata=json.dumps({"source": "x", "tools": [TIDE]})), "'metadata.tools'"),
    "a system turn deep inside of a JSON text": (
        chat(extra=json.dumps({"deep": {"system_prompt": "Be brief."}})),
        "'extra.deep.system_prompt'",
    ),
    **{
        f"words in {name}": (chat(**{name: "Answer in words only."}), f"'{name}' holds a text that no turn holds")
        for name in (
            "developer_prompt",
            "custom_system_prompt",
            "sys_message",
            "system_prompts",
            "tools_description",
            "tool_prompt",
            "api_docs",
            "assistant_prefix",
            "icl_examples",
            "conversation_summary",
        )
    },
    "a system turn before the same question": (
        chat(
            distilabel_metadata={
                "raw_input_0": [{"role": "system", "content": "Be brief."}, ASKED],
                "raw_output_0": "Red.",
            }
        ),
        "'distilabel_metadata.raw_input_0' holds a system turn before the same question",
    ),
    "a call of a list as words": (
        answer('[{"name": "tide", "arguments": {"place": "Hoek"}}]') | {"tools": [TIDE]},
        "a call of 'tide' as words",
    ),
    "a call of Python as words": (answer("[tide(place='Hoek')]") | {"tools": [TIDE]}, "a call of 'tide' as words"),
    "a call of Python as code": (
        answer("```tool_code\nprint(default_api.tide(place='Hoek'))\n```") | {"tools": [TIDE]},
        "a call of 'tide' as words",
    ),
    "an argument that may be a number or a text": (
        answer("<tool_call>\n<function=f>\n<parameter=x>\n7\n</parameter>\n</function>\n</tool_call>"),
        "argument 'x' of f is '7': a text or a value, and no schema says which",
    ),
    "an argument of another kind than its schema": (
        answer("<tool_call>f\n<arg_key>x</arg_key>\n<arg_value>much</arg_value></tool_call>")
        | {"tools": [{"name": "f", "parameters": {"properties": {"x": {"type": "integer"}}}}]},
        "argument 'x' of f is 'much', and its schema says",
    ),
    "a call without an end": (answer('<tool_call>\n{"name": "f", "arguments": {}}'), "begins a tool call"),
    "a word between the tags of a call": (
        answer("<tool_call>hello</tool_call>") | {"tools": [TIDE]},
        "'hello' is no tool that is offered",
    ),
    "turns that Zephyr's template has rendered": (
        {"text": "<|user|>\nWhich?</s>\n<|assistant|>\nRed.</s>"},
        "by '<.user.>'",
    ),
    "Llama's tag of a built-in tool": (answer('<|python_tag|>brave.call(query="x")'), "spelling that is not known"),
    "turns that NeMo's template has rendered": (
        {"prompt": "Hi<extra_id_1>Assistant\nHo\n<extra_id_1>User\nWhich?", "response": "Red."},
        "by '<extra_id_1>User'",
    ),
    "a mask of the assistant's turns": (chat(mask="Assistant"), "'mask' says which words are learned"),
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_refused_by_name(name: str) -> None:
    check_refused(*LEFT_OUT[name])


HELD = {
    "the same turns": chat(conversations=turns("Red.")),
    "the same turns with tags": chat(ASKED, {"role": "assistant", "content": THOUGHT}, conversations=turns(THOUGHT)),
    "the question alone": chat(prompt=[ASKED]),
    "objects without speakers": chat(sources=[{"value": "Blue."}]),
    "an answer that speaks about tags": chat(notes="Close `<think>` with `</think>` and go on."),
    "a template of prompts": {"prompt": "Which colour?", "question": "Which colour?", "completion": "Red."},
    "the text of tools that are read": chat(tools=[TIDE], tools_text=json.dumps([TIDE])),
    "names of what is obeyed": chat(system_prompt_name="short one", tool_text="", developer_message="Which colour?"),
    "a system turn before another question": chat(
        metadata={"judged": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it right?"}]}
    ),
    "the same turns in an object": chat(distilabel_metadata={"raw_input_0": [ASKED], "raw_output_0": "Red."}),
    "a template that was filled in": {
        "instruction": "Which colour?",
        "output": "Red.",
        "prompt": "Below is an instruction that describes a task.\n\n### Instruction:\nWhich colour?\n\n### Response:",
    },
    "the name of a user": {"prompt": "Which?", "user": "ann", "completion": "Red."},
    "a JSON text of other things": chat(metadata=json.dumps({"tools": ["bash"], "system": "linux"})),
    "an example of code": answer("tide(place='Hoek')"),
    "a call in words of another function": answer("[sun(place='Hoek')]") | {"tools": [TIDE]},
}


@pytest.mark.parametrize("name", HELD)
def test_what_is_there_already_is_counted(name: str) -> None:
    shape = recognise(HELD[name])
    assert shape is not None
    assert parse_record(HELD[name], shape)


def test_of_several_answers_that_differ_none_is_read() -> None:
    check_refused({"question": "Which?", "answers": ["Red.", "red"]}, "'answers' is a list of 2 texts")
    assert recognise({"query": "Which?", "label": "red"}) is None
    assert recognise({"question": "Which?", "answers": [{"answer": "red"}]}) is None
    assert recognise({"question": "Which?", "answers": "{'text': ['red']}"}) is None
