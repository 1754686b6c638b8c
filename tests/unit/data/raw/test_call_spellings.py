"""Calls in texts: each spelling becomes one, and a text of openings alone takes no more time than another."""

from __future__ import annotations

import pytest

from megatron_apriel.data.raw.turns.call_spellings import calls_within, in_one_spelling, unknown_spelling

CALL = '<tool_call>{"name": "f", "arguments": {"a": "}"}}</tool_call>'
ARGUMENTS = '{"a": "}"}'
SPECIAL = {"|": "\uff5c", "_": "\u2581"}


def deepseek(text: str) -> str:
    return "".join(SPECIAL.get(character, character) for character in text)


SPELLED = {
    "Llama": f"<function=f>{ARGUMENTS}</function>",
    "Mistral": f"[TOOL_CALLS]f[ARGS]{ARGUMENTS}</s>",
    "Mistral with ids": f"[TOOL_CALLS]f[CALL_ID]abc[ARGS]{ARGUMENTS}",
    "Kimi": f"<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{ARGUMENTS}<|tool_call_end|>",
    "DeepSeek": deepseek("<|tool_call_begin|>f<|tool_sep|>") + ARGUMENTS + deepseek("<|tool_call_end|>"),
    "Phi": f'<|tool_call|>{{"name": "f", "arguments": {ARGUMENTS}}}<|/tool_call|>',
    "Granite": f'<|tool_call|>{{"name": "f", "arguments": {ARGUMENTS}}}',
    "Cohere": f'<|START_ACTION|>{{"name": "f", "arguments": {ARGUMENTS}}}<|END_ACTION|>',
    "InternLM": f'<|action_start|><|plugin|>{{"name": "f", "arguments": {ARGUMENTS}}}<|action_end|>',
    "Granite 20B": f'<function_call>{{"name": "f", "arguments": {ARGUMENTS}}}',
    "closed function calls": f'<functioncall>{{"name": "f", "arguments": {ARGUMENTS}}}</functioncall>',
    "Nemotron": f'<TOOLCALL>{{"name": "f", "arguments": {ARGUMENTS}}}</TOOLCALL>',
}


@pytest.mark.parametrize("maker", SPELLED)
def test_one_spelling(maker: str) -> None:
    for count in (1, 3):
        text = in_one_spelling("Wait. " + SPELLED[maker] * count)
        assert text == "Wait. " + CALL * count
        assert len(calls_within(text)) == count and not unknown_spelling(text)


@pytest.mark.parametrize("text", ["<function=f>{} and no end", "<function=f>f(x)</function>", "[TOOL_CALLS]f[ARGS]x"])
def test_what_is_no_call_stays(text: str) -> None:
    assert in_one_spelling(text) == text and not calls_within(text)


PYTHON = '<tool_call>f(a="}")</tool_call>'


@pytest.mark.parametrize(
    "text",
    [
        '<function_calls>f(a="}")</function_calls>',
        '<|tool_call_start|>f(a="}")<|tool_call_end|>',
    ],
)
def test_expressions_of_python_in_one_spelling(text: str) -> None:
    assert in_one_spelling(f"Wait. {text}") == f"Wait. {PYTHON}"


@pytest.mark.parametrize("text", ["Write <function_calls> before and </function_calls> behind.", "<bot_start>f(x)"])
def test_words_about_calls_stay(text: str) -> None:
    assert in_one_spelling(text) == text and not unknown_spelling(text)


@pytest.mark.parametrize(
    "text",
    [
        '<|tools_prefix|>[{"f": {"a": 1}}]<|tools_suffix|>',
        "<start_function_call>call:f{a:1}<end_function_call>",
        "<<function>>f(a=1)",
        "Call: f(a=1)<bot_end>",
        "\u273fFUNCTION\u273f: f\n\u273fARGS\u273f: {}",
    ],
)
def test_spellings_that_are_not_read_are_known(text: str) -> None:
    assert unknown_spelling(in_one_spelling(text))


HOSTILE = (
    "<tool_call>", "<|tool_call|>[", "<function=a>{", "[TOOL_CALLS]a[ARGS]{", "[TOOL_CALLS][", "<functioncall>{",
    "<|tool_call_begin|>a<|tool_call_argument_begin|>{", "<function_calls>f(", "<functioncall>{", "<function_call>{",
    "<|START_ACTION|>{",
)  # fmt: skip


@pytest.mark.parametrize("opening", HOSTILE)
def test_openings_without_an_end(opening: str) -> None:
    for text in (opening * 200_000, opening * 200_000 + "</function><|tool_call_end|>} x"):
        assert not calls_within(in_one_spelling(text))
