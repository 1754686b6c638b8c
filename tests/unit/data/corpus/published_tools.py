"""Published sets with tools: how they are declared, called and answered."""

from __future__ import annotations

import json
from typing import Any

from tests.unit.data.corpus.published_set import BARE_TIDE, Published, one
from tests.unit.data.corpus.written_documents import chat, result, said, system, user

TIDE = {"type": "function", "function": {"name": "tide", "description": "d", "parameters": {"type": "object"}}}
HOEK, DELFT = '{"place": "Hoek"}', '{"place": "Delft"}'
WEATHER = chat(user("Tide at Hoek?"), said(calls=[("tide", HOEK)]), result("low"), said("It is low."), tools=[TIDE])


def calls(*pairs: tuple[str, Any]) -> list[dict[str, Any]]:
    return [
        {"id": identity, "type": "function", "function": {"name": "tide", "arguments": arguments}}
        for identity, arguments in pairs
    ]


TOOLS: dict[str, Published] = {
    "OpenAI tools": one(
        {"messages": [{"role": "user", "content": "Tide at Hoek?"},
                      {"role": "assistant", "content": None, "tool_calls": calls(("abc", HOEK))},
                      {"role": "tool", "tool_call_id": "abc", "content": "low"},
                      {"role": "assistant", "content": "It is low."}], "tools": [TIDE]},
        WEATHER,
        {},
    ),
    "OpenAI functions": one(
        {"messages": [{"role": "user", "content": "Tide at Hoek?"},
                      {"role": "assistant", "content": None, "function_call": {"name": "tide", "arguments": HOEK}},
                      {"role": "function", "name": "tide", "content": "low"},
                      {"role": "assistant", "content": "It is low."}], "functions": [BARE_TIDE]},
        chat(user("Tide at Hoek?"), said(calls=[("tide", HOEK)]), result("low"), said("It is low."),
             tools=[BARE_TIDE]),
        {},
    ),
    "results in the other order": one(
        {"messages": [{"role": "user", "content": "Tides?"},
                      {"role": "assistant", "content": "", "tool_calls": calls(("a", HOEK), ("b", DELFT))},
                      {"role": "tool", "tool_call_id": "b", "content": "high"},
                      {"role": "tool", "tool_call_id": "a", "content": "low"},
                      {"role": "assistant", "content": "Low, high."}], "tools": [TIDE]},
        chat(user("Tides?"), said(calls=[("tide", HOEK), ("tide", DELFT)]), result("low"), result("high"),
             said("Low, high."), tools=[TIDE]),
    ),
    "LLaMA-Factory's and APIGen-MT's roles": one(
        {"conversations": [{"from": "human", "value": "Tide at Hoek?"},
                           {"from": "function_call", "value": '{"name": "tide", "arguments": {"place": "Hoek"}}'},
                           {"from": "observation", "value": "low"}, {"from": "gpt", "value": "It is low."}],
         "tools": json.dumps([TIDE]), "system": "Be brief."},
        chat(system("Be brief."), user("Tide at Hoek?"), said(calls=[("tide", HOEK)]), result("low"),
             said("It is low."), tools=[TIDE]),
    ),
    "ms-swift's parallel calls": one(
        {"messages": [{"role": "user", "content": "Tides?"},
                      {"role": "assistant", "content": "One moment."},
                      {"role": "tool_call", "content": '{"name": "tide", "arguments": {"place": "Hoek"}}'},
                      {"role": "tool_call", "content": '{"name": "tide", "arguments": {"place": "Delft"}}'},
                      {"role": "tool_response", "content": "low"}, {"role": "tool_response", "content": "high"},
                      {"role": "assistant", "content": "Low, high."}], "tools": json.dumps([TIDE])},
        chat(user("Tides?"), said("One moment.", calls=[("tide", HOEK), ("tide", DELFT)]), result("low"),
             result("high"), said("Low, high."), tools=[TIDE]),
    ),
    "Hermes": one(
        {"conversations": [{"from": "system", "value": "Call functions."}, {"from": "human", "value": "Tide?"},
                           {"from": "gpt", "value": '<tool_call>\n{"arguments": {"place": "Hoek"}, "name": "tide"}\n'
                                                    "</tool_call>"},
                           {"from": "tool", "value": "<tool_response>\nlow\n</tool_response>"},
                           {"from": "gpt", "value": "It is low."}], "tools": json.dumps([TIDE])},
        chat(system("Call functions."), user("Tide?"), said(calls=[("tide", HOEK)]), result("low"),
             said("It is low."), tools=[TIDE]),
    ),
    "Mistral's calls in the text": one(
        {"messages": [{"role": "user", "content": "Tide?"},
                      {"role": "assistant", "content": '[TOOL_CALLS][{"name": "tide", "arguments": {}}]'}]},
        chat(user("Tide?"), said(calls=[("tide", "{}")])),
    ),
    "Mistral's calls since version 11": one(
        {"messages": [{"role": "user", "content": "Tides?"},
                      {"role": "assistant",
                       "content": '[TOOL_CALLS]tide[ARGS]{"place": "Hoek"}[TOOL_CALLS]tide[ARGS]{"place": "Delft"}'}]},
        chat(user("Tides?"), said(calls=[("tide", HOEK), ("tide", DELFT)])),
    ),
    "Nemotron's calls and results (When2Call)": one(
        {"messages": [{"role": "user", "content": "Tide?"},
                      {"role": "assistant",
                       "content": '<TOOLCALL>[{"name": "tide", "arguments": {"place": "Hoek"}}]</TOOLCALL>'},
                      {"role": "user", "content": "<TOOL_RESPONSE>low</TOOL_RESPONSE>"},
                      {"role": "assistant", "content": "It is low."}]},
        chat(user("Tide?"), said(calls=[("tide", HOEK)]), result("low"), said("It is low.")),
    ),
    "Granite's calls": one(
        {"messages": [{"role": "user", "content": "Tide?"},
                      {"role": "assistant",
                       "content": '<|tool_call|>[{"name": "tide", "arguments": {"place": "Hoek"}}]'}]},
        chat(user("Tide?"), said(calls=[("tide", HOEK)])),
    ),
    "Kimi's calls": one(
        {"messages": [{"role": "user", "content": "Tide?"},
                      {"role": "assistant",
                       "content": "One moment.<|tool_calls_section_begin|><|tool_call_begin|>functions.tide:0"
                                  '<|tool_call_argument_begin|>{"place": "Hoek"}<|tool_call_end|>'
                                  "<|tool_calls_section_end|>"}]},
        chat(user("Tide?"), said("One moment.", calls=[("tide", HOEK)])),
    ),
    "DeepSeek's calls": one(
        {"messages": [{"role": "user", "content": "Tide?"},
                      {"role": "assistant",
                       "content": "<|tool_calls_begin|><|tool_call_begin|>function<|tool_sep|>tide\n```json\n"
                                  '{"place": "Hoek"}\n```<|tool_call_end|><|tool_calls_end|>'
                                  .replace("|", "\uff5c").replace("_", "\u2581")}]},
        chat(user("Tide?"), said(calls=[("tide", HOEK)])),
    ),
    "results with the ids of their calls": one(
        {"messages": [{"role": "user", "content": "Tides?"},
                      {"role": "assistant", "content": "", "tool_calls": calls(("a", HOEK), ("b", DELFT))},
                      {"role": "tool", "id": "b", "content": "high"}, {"role": "tool", "id": "a", "content": "low"},
                      {"role": "assistant", "content": "Low, high."}]},
        chat(user("Tides?"), said(calls=[("tide", HOEK), ("tide", DELFT)]), result("low"), result("high"),
             said("Low, high.")),
        {},
    ),
    "results with call_id": one(
        {"messages": [{"role": "user", "content": "Tides?"},
                      {"role": "assistant", "content": "", "tool_calls": calls(("a", HOEK), ("b", DELFT))},
                      {"role": "tool", "call_id": "b", "content": "high"},
                      {"role": "tool", "call_id": "a", "content": "low"},
                      {"role": "assistant", "content": "Low, high."}]},
        chat(user("Tides?"), said(calls=[("tide", HOEK), ("tide", DELFT)]), result("low"), result("high"),
             said("Low, high.")),
        {},
    ),
    "a result that is an object": one(
        {"messages": [{"role": "user", "content": "Tide?"},
                      {"role": "assistant", "content": "", "tool_calls": calls(("a", HOEK))},
                      {"role": "tool", "tool_call_id": "a", "content": {"tide": "low", "at": [6, 18]}},
                      {"role": "assistant", "content": "It is low."}]},
        chat(user("Tide?"), said(calls=[("tide", HOEK)]), result('{"tide": "low", "at": [6, 18]}'),
             said("It is low.")),
        {},
    ),
    "Llama's calls in the text": one(
        {"messages": [{"role": "user", "content": "Tide?"},
                      {"role": "assistant", "content": '<function=tide>{"place": "Hoek"}</function>'}]},
        chat(user("Tide?"), said(calls=[("tide", HOEK)])),
    ),
    "xLAM": one(
        {"id": 0, "query": "Tide at Hoek?", "tools": json.dumps([BARE_TIDE]),
         "answers": '[{"name": "tide", "arguments": {"place": "Hoek"}}]'},
        chat(user("Tide at Hoek?"), said(calls=[("tide", HOEK)]), tools=[BARE_TIDE]),
        {"id": 0 + 1},
    ),
    "Anthropic's parts": one(
        {"messages": [{"role": "user", "content": "Tide?"},
                      {"role": "assistant", "content": [
                          {"type": "thinking", "thinking": "Ask.", "signature": "x"},
                          {"type": "text", "text": "One moment."},
                          {"type": "tool_use", "id": "t1", "name": "tide", "input": {"place": "Hoek"}}]},
                      {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "low"}]},
                      {"role": "assistant", "content": "It is low."}]},
        chat(user("Tide?"), said("One moment.", calls=[("tide", HOEK)]), result("low"), said("It is low.")),
        {},
    ),
    "a call without arguments": one(
        {"messages": [{"role": "user", "content": "Tide?"},
                      {"role": "assistant", "content": None, "tool_calls": calls(("a", ""))}], "tools": [TIDE]},
        chat(user("Tide?"), said(calls=[("tide", "{}")]), tools=[TIDE]),
    ),
}  # fmt: skip
