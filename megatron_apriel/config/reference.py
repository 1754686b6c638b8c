"""All settings as one Markdown table, made from the schema: ``python -m megatron_apriel.config.reference``.

``docs/configuration.md`` holds its output; ``--update docs/configuration.md`` puts it there anew. The same does
``--update docs/coming_from.md`` for the table of other trainers' words.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from megatron_apriel.command_line import CommandLine
from megatron_apriel.config.fields import all_settings, holds_list, section_of
from megatron_apriel.config.output_sections import KeepPolicy
from megatron_apriel.config.peers import WORDS
from megatron_apriel.config.section import Section
from megatron_apriel.config.training_sections import parse_factor, parse_host_share
from megatron_apriel.errors import ConfigError, run_command
from megatron_apriel.quantities import parse_bytes, parse_count, parse_fraction, parse_path
from megatron_apriel.terminal import say

_WRITTEN: dict[Any, str] = {
    parse_count: "count, as `4Mi`, `20B`",
    parse_bytes: "bytes, as `5GB`",
    parse_fraction: "fraction, as `10%`",
    parse_path: "path",
    parse_factor: "`frozen` or factor",
    parse_host_share: "`auto` or fraction, as `10%`",
}


def table() -> str:
    """The Markdown table of all settings."""
    rows = ["| setting | value | default | meaning |", "|---|---|---|---|"]
    rows += [f"| {' | '.join(row)} |" for row in _rows()]
    return "\n".join(rows)


def words_table() -> str:
    """The Markdown table of other trainers' words."""
    rows = ["| there | here | how |", "|---|---|---|"]
    for word in WORDS:
        there, here = (" ".join(f"`{name}`" for name in names) for names in (word.names, word.here))
        rows.append(f"| {there} | {here or '-'} | {word.how} |")
    return "\n".join(rows)


def _rows() -> Iterator[tuple[str, str, str, str]]:
    for name, field in all_settings():
        if name.startswith("validation.corpora[]."):
            continue  # the same as those of the mixture
        meaning = " ".join((field.description or "").split()).replace("``", "`").replace("|", "\\|")
        section = section_of(field.annotation)
        if section is not None and section is not KeepPolicy:
            purpose = " ".join((section.__doc__ or "").split()).replace("``", "`")
            kind = "list of sections" if holds_list(field.annotation) else "section"
            yield f"**`{name}`**", kind, _default(field, section), meaning if kind.startswith("list") else purpose
            continue
        yield f"`{name}`", _kind(field), _default(field, None), meaning


def _kind(field: FieldInfo) -> str:
    optional = type(None) in get_args(field.annotation)
    marks = [*field.metadata, *(mark for part in get_args(field.annotation) for mark in get_args(part)[1:])]
    for mark in marks:
        written = _WRITTEN.get(getattr(mark, "func", None))
        if written:
            return written + " or `null`" * optional
    return _kind_of(field.annotation)


def _kind_of(annotation: Any) -> str:
    if annotation is KeepPolicy:
        return "policy"
    if choices := _choices(annotation):
        return ", ".join(f"`{choice}`" for choice in choices)
    text = str(annotation)
    if get_origin(annotation) is list and "str" in text:
        return "list of texts"
    optional = " or `null`" if type(None) in get_args(annotation) else ""
    if "tuple" in text:
        return f"list of numbers{optional}"
    for python_type, words in (
        ("bool", "`true`, `false`"),
        ("int", "whole number"),
        ("float", "number"),
        ("str", "text"),
    ):
        if python_type in text:
            return words + optional
    return text


def _choices(annotation: Any) -> tuple[str, ...]:
    """The words of a Literal, or of a union of nothing but Literals."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    parts = [_choices(part) for part in get_args(annotation)]
    return tuple(itertools.chain(*parts)) if all(parts) else ()


def _default(field: FieldInfo, section: type[Section] | None) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if section is not None:
        return "none" if field.default is None else ""
    value = field.default
    if value is None:
        return "`null`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f"`{value}`" if str(value) else "empty"


_TABLES = {"settings": table, "words": words_table}
"""By the name in the marks between which a page has each."""


def updated(text: str) -> str:
    """``text`` with the tables between their marks made anew. Raises ConfigError if it has none."""
    found = re.findall(r"<!-- (\w+): begin -->.*<!-- \1: end -->", text, re.DOTALL)
    if not (names := [name for name in found if name in _TABLES]):
        marks = ", ".join(f"<!-- {name}: begin --> and <!-- {name}: end -->" for name in _TABLES)
        raise ConfigError(f"the text has no marks {marks}.", "A table is put between them.")
    for name in names:
        begin, end, made = f"<!-- {name}: begin -->", f"<!-- {name}: end -->", _TABLES[name]()
        text = f"{text[: text.index(begin)]}{begin}\n{made}\n{text[text.index(end) :]}"
    return text


def main(argv: list[str] | None = None) -> int:
    """Print the table, or put it into a file."""
    parser = CommandLine(
        prog="megatron_apriel.config.reference", description="Print all settings of a stage as a Markdown table."
    )
    parser.add_argument("--update", type=Path, metavar="FILE", help="put the table into this file instead")
    arguments = parser.parse_args(argv)
    if arguments.update is None:
        say(*table().split("\n"))
    else:
        arguments.update.write_text(updated(arguments.update.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
