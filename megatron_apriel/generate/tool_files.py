"""A file that describes tools, as OpenAI's protocol has them: a list of schemas, or an object with one in ``tools``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_apriel.errors import ConfigError, printable, shown
from megatron_apriel.formats.json_files import parse_json
from megatron_apriel.inputs import read_input

_EXAMPLE = (
    'Give a list such as [{"type": "function", "function": {"name": "weather", "description": "of a city", '
    '"parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}].'
)


def read_tools(file: str | Path) -> tuple[dict[str, Any], ...]:
    """The tools in a file; a function that stands by itself gets the words around it.

    Raises:
        ConfigError: it cannot be read, or describes no tools.
    """
    name = printable(file)
    try:
        value = parse_json(read_input(file))
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ConfigError(f"{name} is not valid JSON: {error}.", fix=_EXAMPLE) from None
    listed = value.get("tools", [value]) if isinstance(value, dict) else value
    if not isinstance(listed, list) or not listed:
        raise ConfigError(f"{name} lists no tools.", fix=_EXAMPLE)
    tools = tuple(_tool(one, name) for one in listed)
    names = [tool["function"]["name"] for tool in tools]
    if twice := next((one for one in names if names.count(one) > 1), None):
        raise ConfigError(f"{name} has two tools of the name {twice}.", fix="Call one otherwise.")
    return tools


def _tool(value: Any, file: str) -> dict[str, Any]:
    tool = value if isinstance(value, dict) and "function" in value else {"type": "function", "function": value}
    function = tool["function"]
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise ConfigError(f"{file}: {shown(value)} describes no tool: it has no name.", fix=_EXAMPLE)
    return {"type": "function", **tool}
