"""Findings of the schema in the project's own words: where it was set, what is wrong, what would be right.

All findings of a file stand in one message, so that a person corrects them in one go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from megatron_apriel.config.fields import dotted, nearest_setting, section_at
from megatron_apriel.config.peers import answer, find, found_in
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.config.section import Section
from megatron_apriel.config.yaml_text import Location
from megatron_apriel.errors import ConfigError, brief, listed, shown
from megatron_apriel.quantities import counted

MOST_SHOWN = 20
"""Mistakes that one message names."""

Item = Mapping[str, Any]
"""One of pydantic's findings."""
Origins = Mapping[Location, str]
"""Places that the command line set, with the words that set them."""


def config_error(
    error: ValidationError,
    path: str,
    lines: Mapping[Location, int],
    overrides: Origins,
    whole: type[Section] = StageConfig,
    reference: str = "docs/configuration.md explains every setting.",
) -> ConfigError:
    """One ConfigError for everything that the schema found.

    Args:
        path: the stage's file.
        lines: line of each value in the file.
        overrides: places that the command line set, with the words that set them.
        whole: the schema.
        reference: where its settings are explained.
    """
    found: dict[tuple[str, str], None] = {}
    items = deque(error.errors(include_url=False))
    while items and len(found) < MOST_SHOWN:
        item = items.popleft()
        location = _own_location(item)
        place = f"{place}: " if (place := _place(location, lines, overrides)) else ""
        found |= {(f"{place}{what}", more): None for what, more in _describe(item, location, whole)}
    findings, count = list(found)[:MOST_SHOWN], len(found) + len(items)
    if count == 1:
        what, more = findings[0]
        joint = ", " if what.startswith(("line ", "override ")) else ": "
        return ConfigError(f"{path}{joint}{what}", more, reference)
    listing = "\n  ".join(f"{what} {more}".rstrip() for what, more in findings)
    if count > len(findings):
        listing += f"\n  and {count - len(findings):,} more, which are shown when these are corrected."
    return ConfigError(f"{path} has {count:,} mistakes.", listing, reference)


def _own_location(item: Item) -> Location:
    """Pydantic's location without the marks that it adds for functions and unions."""
    *above, last = item["loc"] or ("",)
    own = tuple(part for part in above if isinstance(part, int) or not any(mark in part for mark in "[("))
    # The name of a setting that does not exist is the user's, whatever is in it.
    is_mark = isinstance(last, str) and (not last or any(mark in last for mark in "[("))
    return own if is_mark and item["type"] != "extra_forbidden" else (*own, last)


def _place(location: Location, lines: Mapping[Location, int], overrides: Origins) -> str:
    """The override or the line of the nearest value that exists at or above ``location``."""
    for length in range(len(location), 0, -1):
        if location[:length] in overrides:
            return f"override {brief(overrides[location[:length]])}"
        if location[:length] in lines:
            below = [text for key, text in overrides.items() if key[:length] == location[:length]]
            return f"override {brief(below[-1])}" if below else f"line {lines[location[:length]]}"
    below = [text for key, text in overrides.items() if location and key[: len(location)] == location]
    return f"override {brief(below[-1])}" if below else ""


def _describe(item: Item, location: Location, whole: type[Section]) -> list[tuple[str, str]]:
    """What is wrong, and what would be right; several pairs where a section's own check found several things."""
    kind, value, context = item["type"], item.get("input"), item.get("ctx", {})
    if kind == "extra_forbidden":
        words = list(found_in(dotted(location), value)) if whole is StageConfig else []
        return [(f"{key} is not a setting.", answer(word)) for key, word in words] or [_unknown(location, whole)]
    if kind == "missing":
        return [_missing(location, whole)]
    if kind == "value_error":
        # The schema's own sentences, each with the name of the setting before it.
        prefix = f"{dotted(location)}: " if location else ""
        return [(f"{prefix}{line.rstrip('.')}.", "") for line in str(context["error"]).split("\n")]
    expected = _EXPECTED[kind](context) if kind in _EXPECTED else "another kind of value"
    more = f"It must be {expected}."
    if isinstance(value, str) and "${" in value:
        more += " Variables are replaced in paths only; give it on the command line instead."
    return [(f"{dotted(location)}={_shown(value)} is not possible.", more)]


def _unknown(location: Location, whole: type[Section]) -> tuple[str, str]:
    section = section_at(location[:-1], whole)
    if section is not None and (words := section.renamed.get(str(location[-1]))):
        return f"{dotted(location)} is not a setting.", words
    near = nearest_setting(location, whole)
    more = f"Did you mean {near}?" if near is not None else ""
    if near is None and whole is StageConfig:
        where = dotted(tuple(part for part in location[:-1] if not isinstance(part, int))) or "a stage"
        more = f"Settings of {where}: {', '.join(section.model_fields if section is not None else ())}."
    return f"{dotted(location)} is not a setting.", more


def _missing(location: Location, whole: type[Section]) -> tuple[str, str]:
    section = section_at(location[:-1], whole)
    field = section.model_fields.get(str(location[-1])) if section is not None else None
    if field is None:
        return f"{dotted(location[:-1])} has too few values.", f"{dotted(location)} is missing."
    meaning = (field.description or "").split("\n")[0].rstrip(".")
    return f"{dotted(location)} is missing and has no default.", f"Its meaning: {meaning}."


def _shown(value: Any) -> str:
    """As YAML writes it."""
    if value is None:
        return "null (empty)"
    return str(value).lower() if isinstance(value, bool) else shown(value)


def _choices(context: Mapping[str, Any]) -> str:
    return f"one of {context['expected']}".replace(" or ", ", ").replace("'", "")


def _number(bound: float) -> str:
    """All of its digits, if it is whole."""
    return str(int(bound)) if bound == int(bound) else f"{bound:g}"


_EXPECTED: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "literal_error": _choices,
    "greater_than": lambda context: f"above {_number(context['gt'])}",
    "greater_than_equal": lambda context: f"at least {_number(context['ge'])}",
    "less_than": lambda context: f"below {_number(context['lt'])}",
    "less_than_equal": lambda context: f"at most {_number(context['le'])}",
    "too_short": lambda context: f"at least {counted(context['min_length'], 'value')}",
    "too_long": lambda context: f"at most {counted(context['max_length'], 'value')}",
    "string_too_short": lambda context: f"at least {counted(context['min_length'], 'letter')}",
    "string_too_long": lambda context: f"at most {counted(context['max_length'], 'letter')}",
    "string_pattern_mismatch": lambda context: f"text that matches {context['pattern']}",
    "string_type": lambda _: "text (in quotes, if it looks like a number)",
    "finite_number": lambda _: "a finite number",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float", "int_parsing_size"), lambda _: "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), lambda _: "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), lambda _: "true or false"),
    **dict.fromkeys(("list_type", "tuple_type"), lambda _: "a list"),
    **dict.fromkeys(
        ("model_type", "model_attributes_type", "dict_type"), lambda _: "a section with settings of its own"
    ),
}


def refused_options(words: Sequence[str], nearest_option: Callable[[str], str | None]) -> ConfigError:
    """For words of the command line that are no options: a setting is named by ``key=value`` here.

    Args:
        words: the first of them, and all that follows.
        nearest_option: the option that a word resembles, if it does.
    """
    options = [place for place, word in enumerate(words) if word.startswith("-")]
    lines = []
    for place, end in zip(options, [*options[1:], len(words)], strict=True):
        key, equals, value = words[place].lstrip("-").partition("=")
        following = words[place + 1 : end]
        near = nearest_option(words[place])
        line = _option_in_words(key, value if equals else following[0] if following else "")
        lines.append(f"did you mean {near}?" if near is not None else line)
    listing = "\n  ".join(f"{shown(words[place])}: {line}" for place, line in zip(options, lines, strict=True))
    return ConfigError(
        f"{listed(words[place] for place in options)}: no such option.",
        f"Settings of a stage are words of the form key=value.\n  {listing}",
        "docs/coming_from.md has the words of other trainers, docs/configuration.md all settings.",
    )


def _option_in_words(option: str, value: str) -> str:
    key = option.replace("-", "_")
    location: Location = tuple(int(part) if part.isdecimal() else part for part in key.split("."))
    section = section_at(location[:-1])
    if section is not None and location[-1] in section.model_fields:
        return f"write {brief(f'{key}={value}')}"
    if (word := find(key)) is not None:
        return answer(word) + (f" Write {brief(f'{word.here[0]}={value}')}" if word.same and value else "")
    near = nearest_setting(location)
    return f"did you mean {near}={brief(value)}?" if near is not None else "there is no such setting."


def not_a_mapping(path: str, value: Any) -> ConfigError:
    """For a file whose top is not ``name: value`` lines."""
    found = "is empty" if value is None else f"holds a {type(value).__name__}"
    return ConfigError(
        f"{path} {found}, not settings.",
        "A stage is described by lines of the form 'name: value'.",
        "Start from one of the files in examples/.",
    )
