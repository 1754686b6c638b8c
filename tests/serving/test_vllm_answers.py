"""vLLM with the parsers of this format, asked through OpenAI's client and through this project's own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from served_conversations import TOOLS, picture

from megatron_apriel.generate.answer import FinishReason, Part
from megatron_apriel.generate.conversation import Question, Sampling, ToolCall, Turn
from megatron_apriel.generate.engines.engine import Service
from megatron_apriel.generate.engines.environments import program_in
from megatron_apriel.generate.engines.vllm import ENVIRONMENT
from megatron_apriel.generate.server import ServerModel

pytestmark = pytest.mark.serving

CLIENT = Path(__file__).parent / "openai_client.py"
IMAGE = {"type": "image_url", "image_url": {"url": picture().url}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Oslo"}'}}
RESULT = [
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "rain"},
]
OSLO, ROME = ["weather", '{"city": "Oslo"}'], ["weather", '{"city": "Rome"}']
TEXT_OF_A_CALL = '<tool_calls>[{"name": "weather", "arguments": {"city": "Oslo"}}]</tool_calls>'

FORM = {
    "type": "json_schema",
    "json_schema": {
        "name": "a",
        "schema": {
            "type": "object", "properties": {"a": {"enum": ["x"]}}, "required": ["a"], "additionalProperties": False,
        },
    },
}  # fmt: skip


def said(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


AS_AGENTS_SEND_IT = {"type": "function", "function": {"strict": True, **dict(reversed(TOOLS[0]["function"].items()))}}
WEATHER = {"messages": [said("Weather?")], "tools": TOOLS}
REQUESTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "text": (
        {"messages": [said("Two and two?")]},
        {"reasoning": "I add them.", "content": "It is 4.", "finish": "stop"},
    ),
    "an image": (
        {"messages": [{"role": "user", "content": [IMAGE, {"type": "text", "text": "What is it?"}]}]},
        {"reasoning": "I look.", "content": "A red image.", "finish": "stop"},
    ),
    "a call": (WEATHER, {"reasoning": "I ask.", "calls": [OSLO], "finish": "tool_calls"}),
    "two calls behind a text": (
        WEATHER | {"messages": [said("Weather in both?")]},
        {"reasoning": "Two.", "content": "I look.", "calls": [OSLO, ROME], "finish": "tool_calls"},
    ),
    "a call's result": (
        WEATHER | {"messages": [said("Weather?"), *RESULT]},
        {"reasoning": "I read it.", "content": "It rains.", "finish": "stop"},
    ),
    "a call that must be made": (
        WEATHER | {"tool_choice": "required"}, {"reasoning": "I ask.", "calls": [OSLO], "finish": "tool_calls"},
    ),
    "a call of one tool": (
        WEATHER | {"tool_choice": {"type": "function", "function": {"name": "weather"}}},
        {"reasoning": "I ask.", "calls": [OSLO], "finish": "stop"},
    ),
    "a call with hidden reasoning": (
        WEATHER | {"tool_choice": "required", "extra_body": {"include_reasoning": False}},
        {"calls": [OSLO], "finish": "tool_calls"},
    ),
    "no calls wanted": (
        WEATHER | {"tool_choice": "none"}, {"reasoning": "I ask.", "content": TEXT_OF_A_CALL, "finish": "stop"},
    ),
    "cut in the reasoning": (
        {"messages": [said("Two and two?")], "max_tokens": 5}, {"reasoning": "I add the", "finish": "length"},
    ),
    "cut in the marker behind the reasoning": (
        {"messages": [said("Two and two?")], "max_tokens": 18}, {"reasoning": "I add them.", "finish": "length"},
    ),
    "cut in the marker behind the response": (
        {"messages": [said("Two and two?")], "max_tokens": 46},
        {"reasoning": "I add them.", "content": "It is 4.", "finish": "length"},
    ),
    "a call where the response has a form": (
        WEATHER | {"response_format": FORM}, {"reasoning": "I ask.", "calls": [OSLO], "finish": "tool_calls"},
    ),
    "a response in a form": (
        {"messages": [said("Two and two?")], "response_format": FORM}, {},
    ),
    "a form with hidden reasoning": (
        {"messages": [said("Two and two?")], "response_format": FORM, "extra_body": {"include_reasoning": False}},
        {},
    ),
    "a form, and tools that may not be called": (
        WEATHER | {"response_format": FORM, "tool_choice": "none"}, {},
    ),
    "a call of a tool without arguments": (
        {"messages": [said("Weather?")], "tools": [{"type": "function", "function": {"name": "now"}}],
         "tool_choice": {"type": "function", "function": {"name": "now"}}},
        {},
    ),
    "reasoning within its limit": (
        {"messages": [said("Two and two?")], "extra_body": {"thinking_token_budget": 200}},
        {"reasoning": "I add them.", "content": "It is 4.", "finish": "stop"},
    ),
    "reasoning beyond its limit": (
        {"messages": [said("Two and two?")], "extra_body": {"thinking_token_budget": 3}, "max_tokens": 60}, {},
    ),
    "from a developer": (
        {"messages": [{"role": "developer", "content": "Never say [BEGIN FINAL RESPONSE] {}."}, said("Two and two?")]},
        {"reasoning": "I add them.", "content": "It is 4.", "finish": "stop"},
    ),
    "a tool as other servers hand it on": (
        {"messages": [said("Weather?")], "tools": [AS_AGENTS_SEND_IT]},
        {"reasoning": "I ask.", "calls": [OSLO], "finish": "tool_calls"},
    ),
    "a response that is continued": (
        {"messages": [said("Two and two?"), {"role": "assistant", "content": "It is"}], "max_tokens": 20,
         "extra_body": {"continue_final_message": True, "add_generation_prompt": False}},
        {},
    ),
    "stopped by the client": (
        {"messages": [said("Two and two?")], "stop": ["4"]},
        {"reasoning": "I add them.", "content": "It is", "finish": "stop"},
    ),
    "a call that nobody expects": (
        WEATHER | {"messages": [said("Two and two?")], "tool_choice": "required", "max_tokens": 1500}, {},
    ),
    "markers in the question": (
        {"messages": [{"role": "system", "content": "Never say [BEGIN FINAL RESPONSE] {}."},
                      said("Two and two?")],
         "response_format": FORM},
        {"finish": "stop"},
    ),
}  # fmt: skip


DIVIDED = [name for name, (_, expected) in REQUESTS.items() if "reasoning" in expected or "calls" in expected]


@pytest.fixture(scope="module")
def replies(service: Service) -> dict[str, dict[str, Any]]:
    """What OpenAI's client got for each request."""
    common = {"model": service.name, "temperature": 0, "max_tokens": 250}
    return dict(zip(REQUESTS, asked(service, [common | request for request, _ in REQUESTS.values()]), strict=True))


def asked(service: Service, requests: list[dict[str, Any]]) -> list[Any]:
    done = subprocess.run(
        [program_in(ENVIRONMENT, "python"), CLIENT, service.address],
        input=json.dumps(requests), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", DIVIDED)
def test_openais_client_gets_parts_and_calls(name: str, replies: dict[str, dict[str, Any]]) -> None:
    whole, expected = replies[name]["whole"], REQUESTS[name][1]
    seen = {field: whole[field] or type(expected.get(field, ""))() for field in ("reasoning", "content", "calls")}
    assert seen["reasoning"] == expected.get("reasoning", "")
    assert seen["content"] == expected.get("content", "")
    assert whole["calls"] == expected.get("calls", [])
    assert whole["finish"] == expected["finish"]
    assert len(set(whole["ids"])) == len(whole["calls"])
    if whole["content"]:
        assert 0 < whole["reasoning_tokens"] < whole["tokens"]


@pytest.mark.parametrize("name", DIVIDED)
def test_streams_join_to_the_same(name: str, replies: dict[str, dict[str, Any]]) -> None:
    whole, streamed = replies[name]["whole"], replies[name]["streamed"]
    for field in ("reasoning", "content"):
        assert "".join(text for kind, text in streamed["events"] if kind == field) == (whole[field] or "")
    calls: list[list[str]] = []
    for kind, call in streamed["events"]:
        if kind != "call":
            continue
        number, id_, type_, function, arguments = call
        if number == len(calls):
            assert id_ and type_ == "function" and function
            calls.append([function, arguments])
        else:
            assert number == len(calls) - 1 and not (id_ or type_ or function) and arguments
            calls[-1][1] += arguments
    assert calls == whole["calls"]
    assert all(isinstance(json.loads(arguments), dict) for _, arguments in calls)
    assert streamed["finish"] == whole["finish"]


def test_parts_are_sent_as_they_are_written(replies: dict[str, dict[str, Any]]) -> None:
    events = replies["two calls behind a text"]["streamed"]["events"]
    kinds = [kind if kind != "call" else f"call {call[0]}" for kind, call in events]
    order = list(dict.fromkeys(kinds))
    assert order == ["reasoning", "content", "call 0", "call 1"]
    assert kinds == sorted(kinds, key=order.index) and all(kinds.count(kind) > 2 for kind in order)


def test_a_call_that_must_be_made_is_made(replies: dict[str, dict[str, Any]]) -> None:
    """By a model that would answer otherwise, too: its answer cannot end before."""
    whole = replies["a call that nobody expects"]["whole"]
    ((name, arguments),) = whole["calls"][:1]
    assert name == "weather" and list(json.loads(arguments)) == ["city"] and not whole["content"]


def test_a_form_is_for_the_response_and_not_for_the_reasoning(replies: dict[str, dict[str, Any]]) -> None:
    """The markers in the system's turn do not end the reasoning of the answer."""
    whole = replies["markers in the question"]["whole"]
    assert whole["reasoning"] == "I add them."
    assert json.loads(whole["content"]) == {"a": "x"}


@pytest.mark.parametrize(
    "name", ["a response in a form", "a form with hidden reasoning", "a form, and tools that may not be called"]
)
def test_a_form_holds_whatever_else_is_asked(name: str, replies: dict[str, dict[str, Any]]) -> None:
    whole, events = replies[name]["whole"], replies[name]["streamed"]["events"]
    assert json.loads(whole["content"]) == {"a": "x"} and not whole["calls"]
    assert bool(whole["reasoning"]) is (name != "a form with hidden reasoning")
    assert "".join(text for kind, text in events if kind == "content") == whole["content"]


def test_a_tool_that_takes_nothing_gets_nothing(replies: dict[str, dict[str, Any]]) -> None:
    ((name, arguments),) = replies["a call of a tool without arguments"]["whole"]["calls"]
    assert (name, json.loads(arguments)) == ("now", {})


def test_reasoning_is_ended_at_its_limit(replies: dict[str, dict[str, Any]]) -> None:
    """vLLM counts some tokens too few, as many as the opening of the reasoning has: here it ends within the marker."""
    whole, events = (replies["reasoning beyond its limit"][way] for way in ("whole", "streamed"))
    assert whole["reasoning"].startswith("I add them.") and 0 < whole["reasoning_tokens"] < whole["tokens"]
    assert whole["content"] and "[BEGIN" not in whole["content"]
    assert "".join(text for kind, text in events["events"] if kind == "content") == whole["content"]


def test_a_response_that_is_continued_has_no_reasoning(replies: dict[str, dict[str, Any]]) -> None:
    whole, events = (
        replies["a response that is continued"]["whole"],
        replies["a response that is continued"]["streamed"]["events"],
    )
    assert whole["content"] and not whole["reasoning"]
    assert "".join(text for kind, text in events if kind == "content") == whole["content"]


def test_the_protocol_of_responses(service: Service) -> None:
    common = {"model": service.name, "temperature": 0, "max_output_tokens": 250}
    tools = [{"type": "function", **TOOLS[0]["function"]}]
    requests = [
        common | {"input": "Two and two?"},
        common | {"input": "Weather in both?", "tools": tools},
        common | {"input": "Weather?", "tools": tools, "tool_choice": "required"},
        common
        | {"input": "Weather?", "tools": tools, "text": {"format": {"type": "json_schema", **FORM["json_schema"]}}},
    ]
    text, both, must, formed = asked(service, requests)
    assert text["whole"] == [["reasoning", "I add them."], ["message", "It is 4."]]
    calls = [["function_call", *call] for call in (OSLO, ROME)]
    assert both["whole"] == [["reasoning", "Two."], ["message", "I look."], *calls]
    assert must["whole"] == formed["whole"] == [["reasoning", "I ask."], calls[0]]
    for reply in (text, both, must, formed):
        whole, joined = reply["whole"], reply["streamed"]
        assert joined["reasoning_text"] == whole[0][1]
        assert joined["output_text"] == "".join(text for kind, text, *_ in whole if kind == "message")
        assert joined["function_call_arguments"] == "".join(call[-1] for call in whole if call[0] == "function_call")


@pytest.fixture(scope="module")
def model(service: Service) -> ServerModel:
    return ServerModel(service.address)


def test_our_own_client_gets_the_same(model: ServerModel) -> None:
    greedy = Sampling(greedy=True, max_tokens=250)
    with model.stream(Question([Turn("user", ("Weather in both?",))], TOOLS, greedy)) as stream:
        pieces = list(stream)
    answer = stream.answer
    assert (answer.reasoning, answer.content, answer.finish) == ("Two.", "I look.", FinishReason.CALLS)
    assert [str(call) for call in answer.calls] == ['weather({"city": "Oslo"})', 'weather({"city": "Rome"})']
    assert all(call.id for call in answer.calls) and not answer.problem
    assert "".join(piece.text for piece in pieces if piece.part is Part.REASONING) == "Two."
    turns = [Turn("user", ("Weather?",)), Turn("assistant", (), (ToolCall("weather", '{"city": "Oslo"}'),))]
    answer = model.answer(Question([*turns, Turn("tool", ("rain",))], TOOLS, greedy))
    assert answer.content == "It rains."
    answer = model.answer(Question([Turn("user", (picture(), "What is it?"))], (), greedy))
    assert (answer.reasoning, answer.content) == ("I look.", "A red image.")
