"""Tool calls written as expressions of Python: ``get_tide(place="Ems")``, one to a line or in a list.

Olmo, LFM, Llama and Gemma have them so. An argument is a literal under its name; JSON's ``true``, ``false`` and
``null`` are literals as well.
"""

from __future__ import annotations

import ast
from typing import Any

_CHARACTERS = 100_000
"""Of a text of calls: reading it takes some hundred bytes of memory for each."""
_JSON_NAMES = {"true": True, "false": False, "null": None}


def python_literal(text: str) -> Any:
    """A dictionary or list in Python's spelling, as Hermes's data has them; None if it is none."""
    if len(text) > _CHARACTERS or not text.startswith(("{", "[")):
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return None


def python_calls(text: str) -> list[dict[str, Any]]:
    """The calls that are all of a text, each a name and its arguments; nothing if it holds anything else."""
    if len(text) > _CHARACTERS or ")" not in text:
        return []
    try:
        lines = ast.parse(text.strip()).body
        listed = [line.value if isinstance(line, ast.Expr) else None for line in lines]
        if len(listed) == 1 and isinstance(listed[0], ast.List):
            listed = list(listed[0].elts)
        return [_call(one) for one in listed]
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        return []


def _call(value: ast.AST | None) -> dict[str, Any]:
    """One call. Raises ValueError if it is none, or has arguments without names."""
    if not isinstance(value, ast.Call) or value.args:
        raise ValueError
    arguments: dict[str, Any] = {}
    for keyword in value.keywords:
        if keyword.arg is None or keyword.arg in arguments:
            raise ValueError
        arguments[keyword.arg] = ast.literal_eval(_Literals().visit(keyword.value))
    return {"name": _name(value.func), "arguments": arguments}


def _name(value: ast.AST) -> str:
    if isinstance(value, ast.Attribute):
        return f"{_name(value.value)}.{value.attr}"
    if not isinstance(value, ast.Name):
        raise ValueError
    return value.id


class _Literals(ast.NodeTransformer):
    """JSON's names as Python's."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """A constant for one of JSON's names."""
        return ast.Constant(_JSON_NAMES[node.id]) if node.id in _JSON_NAMES else node
