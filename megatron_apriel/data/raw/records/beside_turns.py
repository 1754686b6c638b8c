"""What stands beside the turns of a conversation: texts of the system turn, tools, and settings of a template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_apriel.data.raw.fields.meanings import (
    CONTENT,
    HARMLESS_SETTING,
    INSTRUCTIONS,
    PYTHON_TOOLS,
    SETTING_TOOLS,
    SETTINGS,
    SYSTEMS,
    THINKING,
    THINKING_SETTING,
    TOOL_SETTINGS,
    TOOLS,
)
from megatron_apriel.data.raw.fields.taken import Fields, text_of
from megatron_apriel.data.raw.json_text import parsed_json
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.records.context import may_be_tools
from megatron_apriel.data.raw.turns.calls import tools_of
from megatron_apriel.data.raw.turns.parts import content_of
from megatron_apriel.data.raw.turns.transcripts import without_speaker


@dataclass(frozen=True)
class Beside:
    """What stands beside the turns: texts of the system turn and tools, each under the name of its field."""

    systems: dict[str, str]
    tools: dict[str, tuple[dict[str, Any], ...]]
    without_reasoning: str = ""


def beside_turns(record: Fields, most_values: int) -> Beside:
    """Take out of a record what stands beside its turns. Raises BadRecord where it cannot be read."""
    systems: dict[str, str] = {}
    tools: dict[str, tuple[dict[str, Any], ...]] = {}
    _collect(record, SYSTEMS.names, TOOLS.names, systems, tools, most_values)
    if isinstance(given := record.peek(name := TOOL_SETTINGS.names[0]), Mapping):
        path = record.path(name)
        inner = record.inner(given if record.take(name) else {}, "setting", path)
        _collect(inner, (), SETTING_TOOLS.names, systems, tools, most_values)
    without = _switched_off(record, THINKING.names[0])
    path, settings = record.taken_name(*SETTINGS.names), record.take(*SETTINGS.names)
    if isinstance(settings, str):
        settings = parsed_json(settings, most_values, f"field {path!r}")
    if settings is not None:
        if not isinstance(settings, dict):
            raise BadRecord(f"field {path!r} is not an object")
        inner = record.inner(settings, "setting", path)
        _collect(inner, INSTRUCTIONS.names, SETTING_TOOLS.names, systems, tools, most_values)
        for name in THINKING_SETTING.names:
            without = _switched_off(inner, name) or without
        for name in HARMLESS_SETTING.names:
            inner.count(name)
        if (name := PYTHON_TOOLS.names[0]) not in inner:
            inner.take(name)
    return Beside(systems, tools, without)


def _switched_off(fields: Fields, name: str) -> str:
    """The path of a switch that is off, or ""; it is counted, for reasoning shows itself."""
    fields.count(name)
    return fields.path(name) if fields.peek(name) is False else ""


def _system_text(fields: Fields, name: str, most_values: int) -> str:
    """The text of a system turn that stands beside the turns: a text, its parts (Anthropic), or the turn itself."""
    path, value = fields.path(name), fields.take(name)
    turn = fields
    if isinstance(value, dict):
        turn = fields.inner(value, "turn", path)
        if turn.take("role") not in (None, "system", "developer"):
            raise BadRecord(f"field {path!r} is a turn, and not the system's")
        path, value = turn.taken_name(*CONTENT.names), turn.take(*CONTENT.names)
    if isinstance(value, list):
        pieces = content_of(value, turn, path, f"field {path!r}", most_values).pieces
        if not all(isinstance(piece, str) for piece in pieces):
            raise BadRecord(f"field {path!r} holds an image; images stand in turns of user or tool_result")
        value = "".join(piece for piece in pieces if isinstance(piece, str))
    return without_speaker(text_of(value, f"field {path!r}").strip())


def _collect(
    fields: Fields,
    instructions: Sequence[str],
    tool_names: Sequence[str],
    systems: dict[str, str],
    tools: dict[str, tuple[dict[str, Any], ...]],
    most_values: int,
) -> None:
    for name in instructions:
        value = fields.peek(name)
        if name not in fields:
            fields.take(name)
        elif isinstance(value, bool | int | float):  # whether there is one, as OpenHermes has it
            continue
        elif text := _system_text(fields, name, most_values):
            systems[fields.path(name)] = text
    for name in tool_names:
        if name not in fields:
            fields.take(name)
        elif name == "function" and not may_be_tools(fields.peek(name)):  # a function of a program, or its name
            continue
        elif found := tools_of(fields.take(name), f"field {fields.path(name)!r}", most_values):
            tools[fields.path(name)] = found


def offered(found: dict[str, tuple[dict[str, Any], ...]]) -> tuple[dict[str, Any], ...]:
    """The tools that all places which name some agree on. Raises BadRecord where they do not."""
    different = [tools for number, tools in enumerate(found.values()) if tools not in list(found.values())[:number]]
    if len(different) > 1:
        raise BadRecord(f"{' and '.join(found)} offer different tools")
    return different[0] if different else ()
