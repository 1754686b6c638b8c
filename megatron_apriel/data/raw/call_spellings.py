"""Tool calls in the words of an assistant, in every maker's spelling, rewritten into one.

Hermes's ``<tool_call>{"name": ..., "arguments": ...}</tool_call>`` is what all become: Qwen writes it as well, Nemotron
``<TOOLCALL>``, Phi and Granite ``<|tool_call|>``, Llama ``<function=name>``, Mistral ``[TOOL_CALLS]name[ARGS]``, Kimi
and DeepSeek name and arguments between special tokens of their own.
"""

from __future__ import annotations

import json
import re

TAGGED_CALL = re.compile(r"<(tool_calls?|TOOLCALL)>(?P<call>.*?)</\1>", re.DOTALL)
"""A call, or a list of calls, as JSON."""

_NAME, _ARGUMENTS = r"(?P<name>[\w.-]{1,100})", r"(?P<arguments>\{.*?\})"
_BAR, _LINE = r"\uff5c", r"\u2581"
"""DeepSeek's, which are not those of ASCII."""


def _special(words: str) -> str:
    return f"<{_BAR}{words.replace(' ', _LINE)}{_BAR}>"


_NAMED_CALLS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        rf"<function={_NAME}>\s*{_ARGUMENTS}\s*</function>",
        rf"\[TOOL_CALLS\]\s*{_NAME}(?:\[CALL_ID\]\w{{1,40}})?\[ARGS\]\s*{_ARGUMENTS}"
        r"(?=\s*(?:</s>)?\s*(?:\[TOOL_CALLS\]|\Z))",
        rf"<\|tool_call_begin\|>\s*(?:functions\.)?{_NAME}(?::\d{{1,4}})?\s*"
        rf"<\|tool_call_argument_begin\|>\s*{_ARGUMENTS}\s*<\|tool_call_end\|>",
        rf"{_special('tool call begin')}(?:function{_special('tool sep')})?{_NAME}(?:{_special('tool sep')})?\s*"
        rf"(?:```json)?\s*{_ARGUMENTS}\s*(?:```)?\s*{_special('tool call end')}",
    )
)
_JSON_CALLS = re.compile(
    r"<\|tool_call\|>\s*(\[.*?\]|\{.*?\})\s*(?:<\|/tool_call\|>|(?=<\|tool_call\|>)|\Z)", re.DOTALL
)
_AROUND_CALLS = re.compile(
    rf"<\|tool_calls_section_(?:begin|end)\|>|{_special('tool calls begin')}|{_special('tool calls end')}"
)
_UNKNOWN = re.compile(rf"<\|/?tool_call|<{_BAR}tool{_LINE}|\[TOOL_CALLS\]|</?TOOLCALL>")
_QUOTES = ("`", '"', "'", "\u201c", "\u2018")


def in_one_spelling(text: str) -> str:
    """The text with its calls as ``TAGGED_CALL`` has them."""
    before = text
    for pattern in _NAMED_CALLS:
        text = pattern.sub(_as_tagged, text)
    text = _JSON_CALLS.sub(r"<tool_call>\1</tool_call>", text)
    return text if text == before else _AROUND_CALLS.sub("", text)


def unknown_spelling(text: str) -> str:
    """A special token of calls that is left in a text, and that no text has by chance; "" if there is none."""
    for match in _UNKNOWN.finditer(text):
        if text[match.start() - 1 : match.start()] not in _QUOTES:
            return match[0]
    return ""


def _as_tagged(match: re.Match[str]) -> str:
    return f'<tool_call>{{"name": {json.dumps(match["name"])}, "arguments": {match["arguments"]}}}</tool_call>'
