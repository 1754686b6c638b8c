"""Tool calls in the words of an assistant, in every maker's spelling, rewritten into one.

Hermes's ``<tool_call>{"name": ..., "arguments": ...}</tool_call>`` is what all become: Qwen writes it as well, Nemotron
``<TOOLCALL>``, Phi and Granite ``<|tool_call|>``, Llama ``<function=name>``, Mistral ``[TOOL_CALLS]name[ARGS]``, Kimi
and DeepSeek name and arguments between special tokens of their own; Olmo and LFM have expressions of Python between
theirs.

Texts may be hostile: an opening without an end is looked for once, so that time grows with the length alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_OPENING, _CLOSING = "<tool_call>", "</tool_call>"
_TAGGED_CALL = re.compile(rf"{_OPENING}(?P<call>.*?){_CLOSING}", re.DOTALL)
_LISTED_CALLS = re.compile(r"\[TOOL_CALLS\]\s*(?P<call>\[.*\])\s*(?:</s>)?\s*\Z", re.DOTALL)
_LAST_CALL = re.compile(r"(?:<functioncall>|<\|python_tag\|>)\s*(?P<call>\{.*\})\s*(?:<\|\w+\|>)?\s*\Z", re.DOTALL)
_ALONE = (("[TOOL_CALLS]", _LISTED_CALLS), ("<functioncall>", _LAST_CALL), ("<|python_tag|>", _LAST_CALL))
"""Calls that are the end of a text: Mistral's until version 7, Glaive's, Llama's."""

_NAME = r"(?P<name>[\w.-]{1,100})"
_BAR, _LINE = "\uff5c", "\u2581"
"""DeepSeek's, which are not those of ASCII."""


def _special(words: str) -> str:
    return f"<{_BAR}{words.replace(' ', _LINE)}{_BAR}>"


@dataclass(frozen=True)
class _Spelling:
    """How a maker writes a call.

    Attributes:
        opening: what stands before the arguments, or before the whole call.
        closings: any of which ends it.
        ends: whether the end of the text does as well, and the next opening.
    """

    opening: re.Pattern[str]
    closings: tuple[str, ...]
    ends: bool = False


_SPELLINGS = (
    _Spelling(re.compile(rf"<function={_NAME}>"), ("</function>",)),
    _Spelling(
        re.compile(rf"\[TOOL_CALLS\]\s{{0,9}}{_NAME}(?:\[CALL_ID\]\w{{1,40}})?\[ARGS\]"), ("[TOOL_CALLS]",), ends=True
    ),
    _Spelling(
        re.compile(
            rf"<\|tool_call_begin\|>\s{{0,9}}(?:functions\.)?{_NAME}(?::\d{{1,4}})?\s{{0,9}}<\|tool_call_argument_begin\|>"
        ),
        ("<|tool_call_end|>",),
    ),
    _Spelling(
        re.compile(
            rf"{_special('tool call begin')}(?:function{_special('tool sep')})?{_NAME}(?:{_special('tool sep')})?"
            r"(?:\s{0,9}```json)?"
        ),
        (_special("tool call end"),),
    ),
    _Spelling(re.compile(r"<\|tool_call\|>"), ("<|/tool_call|>", "<|tool_call|>"), ends=True),
    _Spelling(re.compile(r"<\|START_ACTION\|>"), ("<|END_ACTION|>",)),
    _Spelling(re.compile(r"<\|action_start\|>\s{0,9}<\|plugin\|>"), ("<|action_end|>",)),
    _Spelling(re.compile(r"<functioncall>"), ("</functioncall>",)),
    _Spelling(re.compile(r"<function_call>"), ("</function_call>", "<function_call>"), ends=True),
)
_AROUND_CALLS = re.compile(
    rf"<\|tool_calls_section_(?:begin|end)\|>|{_special('tool calls begin')}|{_special('tool calls end')}"
    r"|</?multiplefunctions>"
)
_ELEMENTS = (
    (re.compile(r"<(?:\w{1,20}:tool_call|function_calls)>(?=\s{0,9}<(?:invoke name=|function=))"), _OPENING),
    (re.compile(r"(?:(?<=</invoke>)|(?<=</function>))\s{0,9}</(?:\w{1,20}:tool_call|function_calls)>"), _CLOSING),
)
"""What MiniMax, Seed and Anthropic write around calls that are elements."""
_EXPRESSIONS = (
    (re.compile(r"<function_calls>(?=\s{0,9}\[?[\w.]{1,100}\()"), "</function_calls>"),
    (re.compile(r"<\|tool_call_start\|>(?=\s{0,9}\[?[\w.]{1,100}\()"), "<|tool_call_end|>"),
)
"""What Olmo and LFM write around calls that are Python's expressions, and behind them."""
_UNKNOWN = re.compile(
    rf"<\|/?tool_call|<{_BAR}tool{_LINE}|<{_BAR}DSML{_BAR}|\[TOOL_CALLS\]|</?TOOLCALL>|<\w{{1,20}}:tool_call>|<tool_use>\s{{0,9}}\{{"
    r"|<function_calls>\s{0,9}<invoke|functools\[\{|<\|python_tag\|>|<\|START_ACTION\|>|<\|action_start\|>"
    r"|<\|tools_prefix\|>|<start_function_call>|<<function>>\w|<bot_end>|\u273fFUNCTION\u273f|<function_call>\s{0,9}\{"
)
_BEGUN = re.compile(r"<tool_call>\s{0,9}[{<\[]")
_NEAR = 64
"""Characters at either end of a call that say whether it is JSON."""
_QUOTES = ("`", '"', "'", "\u201c", "\u2018")


def in_one_spelling(text: str) -> str:
    """The text with calls between ``<tool_call>`` tags."""
    before = text
    for spelling in _SPELLINGS:
        text = _rewritten(text, spelling)
    if text != before:
        text = _AROUND_CALLS.sub("", text)
    for around, tag in _ELEMENTS:
        text = around.sub(tag, text)
    for opening, closing in _EXPRESSIONS:
        if closing in text and opening.search(text):
            text = opening.sub(_OPENING, text).replace(closing, _CLOSING)
    for name in ("tool_calls", "TOOLCALL"):
        if f"</{name}>" in text:
            text = text.replace(f"<{name}>", _OPENING).replace(f"</{name}>", _CLOSING)
    return text


def calls_within(text: str) -> list[re.Match[str]]:
    """The calls of a text in one spelling, as JSON in the group ``call``; else those that are its end."""
    found = list(_TAGGED_CALL.finditer(text, 0, text.rfind(_CLOSING) + len(_CLOSING))) if _CLOSING in text else []
    for marker, pattern in _ALONE if not found else ():
        for place in dict.fromkeys((text.find(marker), text.rfind(marker))):
            if place >= 0 and (alone := pattern.match(text, place)):
                return [alone]
    return found


def unknown_spelling(text: str) -> str:
    """A special token of calls that is left in a text, and that no text has by chance; "" if there is none."""
    return _unquoted(_UNKNOWN, text)


def begun_call(text: str) -> str:
    """The beginning of a call in a text that has none with an end; "" if there is none."""
    return _unquoted(_BEGUN, text)


def _unquoted(pattern: re.Pattern[str], text: str) -> str:
    found = (match for match in pattern.finditer(text) if text[match.start() - 1 : match.start()] not in _QUOTES)
    return next((match[0] for match in found), "")


def _rewritten(text: str, spelling: _Spelling) -> str:
    pieces, place = [], 0
    for opening, end, closing in _spans(text, spelling):
        if opening.start() < place:
            continue
        named = "name" in opening.groupdict()
        near = text[opening.end() : min(opening.end() + _NEAR, end)], text[max(opening.end(), end - _NEAR) : end]
        if near[0].lstrip()[:1] + _without_ends(near[1])[-1:] not in (("{}",) if named else ("{}", "[]")):
            continue
        call = _without_ends(text[opening.end() : end])
        if named:
            call = f'{{"name": {json.dumps(opening["name"])}, "arguments": {call}}}'
        pieces += [text[place : opening.start()], _OPENING, call, _CLOSING]
        place = end + (0 if closing == spelling.closings[-1] and spelling.ends else len(closing))
    return "".join([*pieces, text[place:]])


def _without_ends(call: str) -> str:
    return call.strip().removesuffix("```").removesuffix("</s>").strip()


def _spans(text: str, spelling: _Spelling) -> Iterator[tuple[re.Match[str], int, str]]:
    """Openings with the place of the next closing and that closing, "" where the text ends."""
    following: list[Callable[[int], int]] = [_searching(text, closing) for closing in spelling.closings]
    for opening in spelling.opening.finditer(text):
        ends = [(end, closing) for look, closing in zip(following, spelling.closings, strict=True)
                if (end := look(opening.end())) >= 0]  # fmt: skip
        if ends:
            yield opening, *min(ends)
        elif spelling.ends:
            yield opening, len(text), ""
        else:
            return


def _searching(text: str, closing: str) -> Callable[[int], int]:
    """Where ``closing`` stands next, for places that only grow; each part of the text is searched once."""
    known = -2

    def look(place: int) -> int:
        nonlocal known
        if known == -2 or 0 <= known < place:
            known = text.find(closing, place)
        return known

    return look
