"""YAML as this project reads it: safe, no key twice, plain words stay words, and every value knows its line.

PyYAML follows YAML 1.1, in which ``off`` is false, ``010`` is 8, ``1:30`` is 90 and ``1e-5`` is text. A setting such
as ``wandb: off`` must mean what it says, so scalars are resolved by YAML 1.2's core rules instead, on reading and on
writing alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import yaml

from megatron_apriel.errors import ConfigError

Location = tuple[str | int, ...]
"""Where a value stands: keys and list positions from the top."""

_SCALARS = {
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9][0-9_]*", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", "~nN\0"),
    "tag:yaml.org,2002:merge": (r"<<", "<"),
}


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for tag, (pattern, first_characters) in _SCALARS.items():
        for character in first_characters:
            key = "" if character == "\0" else character
            table.setdefault(key, []).append((tag, re.compile(f"(?:{pattern})$")))
    return table


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = _resolvers()

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        # Decimal always: SafeLoader would read a leading zero as octal.
        return int(self.construct_scalar(node).replace("_", ""))


class _Dumper(yaml.SafeDumper):
    # Both sets of rules, so that a word such as 'off' is quoted and other programs read the file alike.
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        character: _resolvers().get(character, []) + yaml.SafeDumper.yaml_implicit_resolvers.get(character, [])
        for character in {*_resolvers(), *yaml.SafeDumper.yaml_implicit_resolvers}
    }


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def parse_yaml(text: str, origin: str) -> tuple[Any, dict[Location, int]]:
    """The value of a YAML text, and the line (from 1) of each of its values.

    Args:
        text: one YAML document.
        origin: file name or override that it came from, for messages.

    Raises ConfigError with the line for a text that is no YAML, and for a key that stands twice.
    """
    if not text.isprintable():
        _refuse_control_characters(text, origin)
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, {}
        lines = dict(_lines(node, (), origin, ()))
        return loader.construct_document(node), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{origin}, line {mark.line + 1}, column {mark.column + 1}" if mark else origin
        # PyYAML splits some sentences: "expected a single document in the stream" | "but found another document".
        problem = error.problem or "this is not YAML"
        whole = f"{error.context}, {problem}" if problem.startswith("but ") and error.context else problem
        raise ConfigError(
            f"{place}: {whole}.",
            "The text cannot be read as YAML.",
            "Check indentation, colons and quotes around there.",
        ) from None
    finally:
        loader.dispose()


def _refuse_control_characters(text: str, origin: str) -> None:
    bad = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if bad is not None:
        line = text.count("\n", 0, bad.start()) + 1
        raise ConfigError(
            f"{origin}, line {line}: the character {bad.group()!r} is not allowed.",
            "The text cannot be read as YAML.",
            "Save it as plain UTF-8 text.",
        )


def read_yaml(
    path: Path,
    purpose: str = "A stage is described by one YAML file.",
    where: str = "Each stage of the recipe has one in examples/.",
) -> tuple[Any, dict[Location, int]]:
    """:func:`parse_yaml` of a file; raises ConfigError, with what it is for, if it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(str(other) for other in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        raise ConfigError(
            f"{path} does not exist.",
            purpose,
            f"Files there: {', '.join(near)}." if near else where,
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.", purpose, where) from None
    return parse_yaml(text, str(path))


def write_yaml(value: Any) -> str:
    """A plain value as YAML that :func:`parse_yaml` reads back as the same value; keys keep their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def _lines(
    node: yaml.Node, location: Location, origin: str, above: tuple[yaml.Node, ...]
) -> Iterator[tuple[Location, int]]:
    """Line of each value under ``node``; refuses keys that stand twice and aliases of what holds them."""
    yield location, node.start_mark.line + 1
    if any(node is outer for outer in above):
        raise ConfigError(
            f"{origin}, line {node.start_mark.line + 1}: an alias refers to what contains it.",
            "Such a value would be endless.",
            "Write it out.",
        )
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _lines(item, (*location, index), origin, (*above, node))
    if not isinstance(node, yaml.MappingNode):
        return
    first_lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{origin}, line {line}: a key must be a single word.", fix="Write 'name: value'.")
        if key.value in first_lines:
            raise ConfigError(
                f"{origin}, line {line}: {key.value!r} stands twice; first in line {first_lines[key.value]}.",
                "Only one of the two values could count.",
                "Remove one of the lines.",
            )
        first_lines[key.value] = line
        for inner, inner_line in _lines(value, (*location, key.value), origin, (*above, node)):
            yield inner, line if len(inner) == len(location) + 1 else inner_line
