"""Each line of SECURITY.md about files names a test that exists."""

from __future__ import annotations

import ast
import re

import pytest
from documents import ROOT

ROWS = re.findall(r"^\| (.+?) \| `(\S+?)::(\w+)` \|$", (ROOT / "SECURITY.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_there_are_lines() -> None:
    table = [line for line in (ROOT / "SECURITY.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert len(ROWS) == len(table) - 2 > 20  # without heading and rule


@pytest.mark.parametrize(("line", "file", "name"), ROWS, ids=[name for _, _, name in ROWS])
def test_a_line_is_held_by_a_test(line: str, file: str, name: str) -> None:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, line
