"""Calls in texts: each spelling becomes one, and a text of openings alone takes no more time than another."""

from __future__ import annotations

import pytest

from megatron_apriel.data.raw.call_spellings import calls_within, in_one_spelling, unknown_spelling

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


HOSTILE = (
    "<tool_call>", "<|tool_call|>[", "<function=a>{", "[TOOL_CALLS]a[ARGS]{", "[TOOL_CALLS][", "<functioncall>{",
    "<|tool_call_begin|>a<|tool_call_argument_begin|>{",
)  # fmt: skip


@pytest.mark.parametrize("opening", HOSTILE)
def test_openings_without_an_end(opening: str) -> None:
    for text in (opening * 200_000, opening * 200_000 + "</function><|tool_call_end|>} x"):
        assert not calls_within(in_one_spelling(text))
