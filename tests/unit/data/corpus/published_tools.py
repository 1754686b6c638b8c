"""Published sets with tools: how they are declared, called and answered."""

from __future__ import annotations

import json
from typing import Any

from tests.unit.data.corpus.published_set import BARE_TIDE, Published, one
from tests.unit.data.corpus.written_documents import chat, result, said, system, user

TIDE = {"type": "function", "function": {"name": "tide", "description": "d", "parameters": {"type": "object"}}}
KINDS = {
    "name": "tide", "parameters": {"type": "object", "properties": {
        "place": {"type": "string"}, "days": {"type": ["integer", "null"]}, "deep": {"type": "boolean"}}},
}  # fmt: skip
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
    "Glaive's transcripts": one(
        {"system": "SYSTEM: You may call tide.",
         "chat": "USER: Tide at Hoek?\n\n\nASSISTANT: <functioncall> {\"name\": \"tide\", \"arguments\": "
                 "'{\"place\": \"Hoek\"}'} <|endoftext|>\n\n\nFUNCTION RESPONSE: low\n\n\n"
                 "ASSISTANT: It is low. <|endoftext|>\n\n\n"},
        chat(system("You may call tide."), user("Tide at Hoek?"), said(calls=[("tide", '{"place": "Hoek"}')]),
             result("low"), said("It is low.")),
        {},
    ),
    "tools as JSON text beside turns as JSON text": one(
        {"messages": json.dumps([{"role": "user", "content": "Tide?"}, {"role": "assistant", "content": "Where?"}]),
         "tools_json": json.dumps([BARE_TIDE])},
        chat(user("Tide?"), said("Where?"), tools=[BARE_TIDE]),
        {},
    ),
    "one function beside a question": one(
        {"question": "Tide?", "function": BARE_TIDE, "answer": "Where?"},
        chat(user("Tide?"), said("Where?"), tools=[BARE_TIDE]),
        {},
    ),
    "a function of a program": one(
        {"question": "Tide?", "function": "def tide(): ...", "answer": "Where?"},
        chat(user("Tide?"), said("Where?")),
        {"function": 1},
    ),
    "results with lists of one id (SWE-agent)": one(
        {"messages": [{"role": "user", "content": "Tides?"},
                      {"role": "assistant", "content": "", "tool_calls": calls(("a", HOEK), ("b", DELFT))},
                      {"role": "tool", "tool_call_ids": ["b"], "content": "high"},
                      {"role": "tool", "tool_call_ids": ["a"], "content": "low"},
                      {"role": "assistant", "content": "Low, high."}]},
        chat(user("Tides?"), said(calls=[("tide", HOEK), ("tide", DELFT)]), result("low"), result("high"),
             said("Low, high.")),
        {},
    ),
    "Qwen3-Coder's calls": one(
        {"tools": [KINDS],
         "messages": [{"role": "user", "content": "Tide?"},
                      {"role": "assistant", "content": "<think>Ask.</think>\n<tool_call>\n<function=tide>\n"
                       "<parameter=place>\n12\n</parameter>\n<parameter=days>\n7\n</parameter>\n"
                       "<parameter=deep>\nTrue\n</parameter>\n</function>\n</tool_call>"}]},
        chat(user("Tide?"), said("", "Ask.", [("tide", '{"place": "12", "days": 7, "deep": true}')]), tools=[KINDS]),
        {},
    ),
    "GLM's calls": one(
        {"tools": [KINDS],
         "messages": [{"role": "user", "content": "Tide?"},
                      {"role": "assistant", "content": "<tool_call>tide\n<arg_key>place</arg_key>\n"
                       "<arg_value>Hoek</arg_value>\n<arg_key>days</arg_key>\n<arg_value>7</arg_value>\n"
                       "</tool_call>\n<tool_call>tide\n</tool_call>"}]},
        chat(user("Tide?"), said(calls=[("tide", '{"place": "Hoek", "days": 7}'), ("tide", "{}")]), tools=[KINDS]),
        {},
    ),
    "MiniMax's calls": one(
        {"tools": [KINDS],
         "messages": [{"role": "user", "content": "Tide?"},
                      {"role": "assistant", "content": "One moment.\n<minimax:tool_call>\n<invoke name=\"tide\">\n"
                       "<parameter name=\"place\">Hoek</parameter>\n</invoke>\n<invoke name=\"tide\">\n"
                       "<parameter name=\"days\">7</parameter>\n</invoke>\n</minimax:tool_call>"}]},
        chat(user("Tide?"), said("One moment.", calls=[("tide", HOEK), ("tide", '{"days": 7}')]), tools=[KINDS]),
        {},
    ),
    "texts of arguments without a schema": one(
        {"messages": [{"role": "user", "content": "Tide?"},
                      {"role": "assistant", "content": "<tool_call>\n<function=tide>\n<parameter=place>\nHoek\n"
                                                       "</parameter>\n</function>\n</tool_call>"}]},
        chat(user("Tide?"), said(calls=[("tide", HOEK)])),
        {},
    ),
    "results that name their calls themselves (Hermes)": one(
        {"conversations": [{"from": "human", "value": "Tide and sun?"},
                           {"from": "gpt", "value": '<tool_call>\n{"name": "tide", "arguments": {}}\n</tool_call>\n'
                                                    '<tool_call>\n{"name": "sun", "arguments": {}}\n</tool_call>'},
                           {"from": "tool", "value": '<tool_response>\n{"name": "sun", "content": "up"}\n'
                                                     '</tool_response>\n<tool_response>\n{"name": "tide", "content": '
                                                     '"low"}\n</tool_response>'},
                           {"from": "gpt", "value": "Low, up."}]},
        chat(user("Tide and sun?"), said(calls=[("tide", "{}"), ("sun", "{}")]),
             result('{"name": "tide", "content": "low"}'), result('{"name": "sun", "content": "up"}'),
             said("Low, up.")),
        {},
    ),
}  # fmt: skip
