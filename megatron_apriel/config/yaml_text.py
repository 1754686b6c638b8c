"""YAML as this project reads it: safe, no key twice, plain words stay words, and every value knows its line.

PyYAML follows YAML 1.1, in which ``off`` is false, ``010`` is 8, ``1:30`` is 90 and ``1e-5`` is text. A setting such
as ``wandb: off`` must mean what it says, so scalars are resolved by YAML 1.2's core rules instead, on reading and on
writing alike.

Of PyYAML only the grammar is used. Values are made here, one walk over the nodes: an alias may stand for more than the
file has letters, and a tag for an object, so the walk counts what it makes and knows the plain kinds of values only.

Not ``ruamel.yaml``: its YAML 1.2 makes dates and reads ``.5e3`` as text, ``%YAML 1.1`` in a file brings the old rules
back, what ``<<`` merges in has no line, and limits, tags and messages would be by hand all the same.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, ClassVar

import yaml

from megatron_apriel.errors import ConfigError, listed, printable, shown
from megatron_apriel.inputs import read_input

MOST_BYTES = 2**18
"""Of a file, and of an override. A stage has a few thousand."""
MOST_VALUES = 20_000
"""Keys and values of a file, each counted as often as aliases repeat it."""
MOST_DEEP = 50
"""Lists and sections in one another. A stage has four."""

Location = tuple[str | int, ...]
"""Where a value stands: keys and list positions from the top."""

_TAG = "tag:yaml.org,2002:"
_UNREADABLE = "The text cannot be read as YAML."
_TOO_DEEP = f"values lie in one another more than {MOST_DEEP} deep"
_TOO_MANY = f"there are more than {MOST_VALUES:,} values"
_SURROGATE = re.compile("[\ud800-\udfff]")
_LONGEST_NUMBER = 400  # letters; more than any number of 64 bits has

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
    """PyYAML's grammar, with no more than ``MOST_VALUES`` nodes and ``MOST_DEEP`` of them in one another."""

    yaml_implicit_resolvers = _resolvers()
    _depth = _count = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._count += 1
        if self._depth > MOST_DEEP or self._count > MOST_VALUES:
            problem = _TOO_DEEP if self._depth > MOST_DEEP else _TOO_MANY
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=self.peek_event().start_mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


class _Dumper(yaml.SafeDumper):
    # Both sets of rules, so that a word such as 'off' is quoted and other programs read the file alike.
    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {  # type: ignore[misc]
        character: _resolvers().get(character, []) + yaml.SafeDumper.yaml_implicit_resolvers.get(character, [])
        for character in {*_resolvers(), *yaml.SafeDumper.yaml_implicit_resolvers}
    }


def parse_yaml(text: str, origin: str) -> tuple[Any, dict[Location, int]]:
    """The value of a YAML text, and the line (from 1) of each of its values.

    Args:
        text: one YAML document.
        origin: file name or override that it came from, for messages.

    Raises ConfigError with the line for a text that is no YAML, and for a key that stands twice.
    """
    if len(text) > MOST_BYTES:
        raise ConfigError(f"{origin} has {len(text):,} letters, and at most {MOST_BYTES:,} are read.")
    _refuse_control_characters(text, origin)
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{origin}, line {mark.line + 1}, column {mark.column + 1}" if mark else origin
        # PyYAML splits some sentences: "expected a single document in the stream" | "but found another document".
        problem = error.problem or "this is not YAML"
        split = problem.startswith("but ") or problem == "second occurrence"
        whole = f"{error.context}, {problem}" if split and error.context else problem
        raise ConfigError(
            f"{place}: {whole}.",
            _UNREADABLE,
            "Check indentation, colons and quotes around there.",
        ) from None
    except (ValueError, OverflowError) as error:
        # PyYAML's own conversions, as of "\\U99999999" and of the number in %YAML.
        raise ConfigError(f"{origin}, line {loader.line + 1}: {error}.", _UNREADABLE, "Write it another way.") from None
    finally:
        loader.dispose()
    if node is None:
        return None, {}
    values = _Values(origin)
    return values.of(node, (), (), node.start_mark.line + 1), values.lines


def _refuse_control_characters(text: str, origin: str) -> None:
    bad = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if bad is not None:
        line = text.count("\n", 0, bad.start()) + 1
        raise ConfigError(
            f"{origin}, line {line}: the character {bad.group()!r} is not allowed.",
            _UNREADABLE,
            "Save it as plain UTF-8 text.",
        )


def read_yaml(
    path: Path,
    purpose: str = "A stage is described by one YAML file.",
    where: str = "Each stage of the recipe has one in examples/.",
) -> tuple[Any, dict[Location, int]]:
    """:func:`parse_yaml` of a file; raises ConfigError, with what it is for, if it cannot be read."""
    try:
        text = read_input(path, MOST_BYTES).decode("utf-8")
    except FileNotFoundError:
        near = sorted(printable(other) for other in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        raise ConfigError(
            f"{printable(path)} does not exist.",
            purpose,
            f"Files there: {listed(near, 8)}." if near else where,
        ) from None
    except OSError as error:
        raise ConfigError(f"{printable(path)} cannot be read: {error.strerror}.", purpose, where) from None
    except ValueError as error:  # not UTF-8, or a name with a zero byte
        raise ConfigError(f"{printable(path)} cannot be read: {error}.", purpose, where) from None
    return parse_yaml(text, printable(path))


def write_yaml(value: Any) -> str:
    """A plain value as YAML that :func:`parse_yaml` reads back as the same value; keys keep their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Values:
    """The values of a document's nodes, and the line of each; an alias becomes a copy of what it refers to.

    Attributes:
        lines: by the place of the value; that of its key, where it has one.
    """

    def __init__(self, origin: str) -> None:
        self.lines: dict[Location, int] = {}
        self._origin, self._count = origin, 0

    def of(self, node: yaml.Node, location: Location, above: tuple[yaml.Node, ...], line: int) -> Any:
        """The value of a node that lies in the nodes ``above``. Raises ConfigError with the line."""
        self._enter(node, above, line)
        self.lines[location] = line
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, line)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            inner = [(item, index, item.start_mark.line + 1) for index, item in enumerate(node.value)]
            return [self.of(item, (*location, index), (*above, node), place) for item, index, place in inner]
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            pairs = self._pairs(node, above)
            return {
                key: self.of(value, (*location, key), (*above, node), place) for key, (value, place) in pairs.items()
            }
        raise self._refused(line, f"could not determine a constructor for the tag {node.tag!r}")

    def _enter(self, node: yaml.Node, above: tuple[yaml.Node, ...], line: int) -> None:
        self._count += 1
        if self._count > MOST_VALUES:
            raise self._refused(line, _TOO_MANY, "What aliases (*name) repeat counts each time.")
        if any(node is outer for outer in above):
            raise self._refused(
                node.start_mark.line + 1,
                "an alias refers to what contains it",
                "Such a value would be endless.",
                "Write it out.",
            )
        if len(above) > MOST_DEEP:
            raise self._refused(line, _TOO_DEEP)

    def _pairs(self, node: yaml.MappingNode, above: tuple[yaml.Node, ...]) -> dict[str, tuple[yaml.Node, int]]:
        """Key, value and line of each entry, those that ``<<`` merges in behind its own."""
        own: dict[str, tuple[yaml.Node, int]] = {}
        merged: list[yaml.Node] = []
        self._count += len(node.value)
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or (not key.value and key.style is None):
                raise self._refused(line, "a key must be a single word", fix="Write 'name: value'.")
            self._check_letters(key.value, line)
            if key.value in own:
                raise self._refused(
                    line,
                    f"{shown(key.value)} stands twice; first in line {own[key.value][1]}",
                    "Only one of the two values could count.",
                    "Remove one of the lines.",
                )
            own[key.value] = (value, line)
            merged += [value] if key.tag == f"{_TAG}merge" else []
        if not merged:
            return own
        del own["<<"]
        # What is said beside "<<" counts before what it merges in, and of a list of sections the earlier.
        return self._bases(merged[0], (*above, node)) | own

    def _bases(self, node: yaml.Node, above: tuple[yaml.Node, ...]) -> dict[str, tuple[yaml.Node, int]]:
        """The entries of the section, or of the list of sections, that ``<<`` merges in."""
        found: dict[str, tuple[yaml.Node, int]] = {}
        line = node.start_mark.line + 1
        for base in reversed(node.value) if isinstance(node, yaml.SequenceNode) else [node]:
            self._enter(base, above, line)
            if not isinstance(base, yaml.MappingNode):
                raise self._refused(line, "'<<' takes a section, or a list of sections, to merge in")
            found |= self._pairs(base, above)
        return found

    def _scalar(self, node: yaml.ScalarNode, line: int) -> Any:
        text: str = node.value
        kind = node.tag.removeprefix(_TAG)
        if kind in ("str", "merge"):
            self._check_letters(text, line)
            return text
        if node.tag not in _SCALARS:
            raise self._refused(line, f"could not determine a constructor for the tag {node.tag!r}")
        if not re.fullmatch(_SCALARS[node.tag][0], text):
            raise self._refused(line, f"{shown(text)} is no {kind}")
        if kind in ("bool", "null"):
            return text.lower() == "true" if kind == "bool" else None
        if len(text) > _LONGEST_NUMBER:
            raise self._refused(line, f"a number of {len(text):,} letters cannot be read")
        if kind == "float":
            return float(text.lower().replace("_", "").replace(".inf", "inf").replace(".nan", "nan"))
        # Decimal always: YAML 1.1 would read a leading zero as octal.
        number = int(text.replace("_", ""))
        if not -(2**63) <= number < 2**63:
            raise self._refused(line, f"{text} is beyond the whole numbers of 64 bits")
        return number

    def _check_letters(self, text: str, line: int) -> None:
        if _SURROGATE.search(text):
            raise self._refused(line, f"{shown(text)} holds half of a surrogate pair", fix="Write \\U0001F600 whole.")

    def _refused(self, line: int, what: str, why: str = _UNREADABLE, fix: str = "") -> ConfigError:
        return ConfigError(f"{self._origin}, line {line}: {what}.", why, fix)
