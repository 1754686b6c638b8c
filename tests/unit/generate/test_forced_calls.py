"""The form of answers that must call tools: what fits it is calls of the tools, with arguments of their schemas."""

from __future__ import annotations

from typing import Any

from megatron_apriel.data.raw.turns.chat_markers import RESPONSE_OPENING
from megatron_apriel.generate.conversation import ToolCall
from megatron_apriel.generate.forced_calls import forced_calls
from megatron_apriel.generate.parsing import parse_answer

SCHEMAS = {
    "weather": {"type": "object", "properties": {"city": {"$ref": "#/$defs/city"}}, "$defs": {"city": {"const": "x"}}},
    'odd "name"': None,
}
"""A schema whose references are relative to its own root, and a tool without one."""


def least(form: dict[str, Any], value: str, chosen: int = 0) -> str:
    """A text that fits a structural tag, with ``value`` wherever a schema stands, and the choice of that number."""
    match form["type"]:
        case "structural_tag":
            return least(form["format"], value, chosen)
        case "sequence":
            return "".join(least(element, value, chosen) for element in form["elements"])
        case "or":
            return least(form["elements"][chosen], value)
        case "const_string":
            return form["value"]
        case "regex":
            return "\n"
        case "any_text":
            return "Hm.\n"
        case "json_schema":
            return value
        case "tag":
            return form["begin"] + least(form["content"], value) + form["end"]
        case "tags_with_separator":
            tags = form["tags"][:1] if form["stop_after_first"] else form["tags"]
            return form["separator"].join(least(tag, value) for tag in tags)
    raise AssertionError(form)


def test_what_fits_is_calls() -> None:
    calls = (ToolCall("weather", '{"a": 1}'), ToolCall('odd "name"', '{"a": 1}'))
    text = least(forced_calls(SCHEMAS, single=False, reasons=True), '{"a": 1}')
    answer = parse_answer(text)
    assert (answer.reasoning, answer.content, answer.calls, answer.problem) == ("Hm.", "", calls, "")
    text = RESPONSE_OPENING + least(forced_calls(SCHEMAS, single=True, reasons=False), '{"a": 1}')
    assert parse_answer(text).calls == calls[:1]


def test_a_response_of_its_own_form_may_stand_instead_of_calls() -> None:
    form = forced_calls(SCHEMAS, single=True, reasons=True, response={"type": "object"})
    called, said = (parse_answer(least(form, '{"a": 1}', chosen)) for chosen in (0, 1))
    assert (called.content, called.calls) == ("", (ToolCall("weather", '{"a": 1}'),))
    assert (said.content, said.calls) == ('{"a": 1}', ())


def test_a_response_in_its_form_without_tools() -> None:
    form = forced_calls({}, single=False, reasons=True, response={"type": "object"})
    said = parse_answer(least(form, '{"a": 1}'))
    assert (said.reasoning, said.content, said.calls, said.problem) == ("Hm.", '{"a": 1}', (), "")


def test_schemas_stand_alone_and_are_of_objects() -> None:
    form = forced_calls(SCHEMAS, single=False, reasons=False)
    tags = form["format"]["elements"][2]["tags"]
    nothing = {"type": "object", "properties": {}, "additionalProperties": False}
    assert [tag["content"]["json_schema"] for tag in tags] == [SCHEMAS["weather"], nothing]
