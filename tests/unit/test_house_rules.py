"""Rules that a reader relies on: imports run downward, the ground needs no torch, files say what they are for."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "megatron_apriel"
LAYERS = [
    {"inputs", "concealed"},
    {"errors"},
    {"terminal", "tables", "json_text"},
    {"architecture"},
    {"outputs", "locks", "progress", "flops"},
    {"batch", "config", "surgery"},
    {"parallel"},
    {"model", "data", "visual_tasks"},
    {"checkpoint"},
    {"train"},
    {"testing"},
]
STRANGERS = [{"model", "data"}, {"config", "surgery"}]
"""Rooms that must not know each other although they stand on one level."""

SOURCES = sorted(PACKAGE.rglob("*.py"))


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(file: Path) -> Iterator[str]:
    """Rooms of the package that a file imports while running; imports for type checking do not count."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module == "megatron_apriel":
            modules = [f"megatron_apriel.{alias.name}" for alias in node.names if not alias.name.startswith("__")]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module]
        yield from (room(module) for module in modules if module.startswith("megatron_apriel"))


def level(name: str) -> int:
    return next(number for number, rooms in enumerate(LAYERS) if name in rooms)


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_downward(file: Path) -> None:
    relative = file.relative_to(PACKAGE)
    own = relative.parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for other in imports(file):
        if other == own or not other:
            continue
        assert level(other) <= level(own), f"{relative} imports {other}, which stands above it"
        assert not any({own, other} <= pair for pair in STRANGERS), f"{relative} imports {other}"


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_files_say_what_they_are_for(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "module",
    [
        "inputs",
        "concealed",
        "errors",
        "terminal",
        "json_text",
        "tables",
        "architecture",
        "outputs",
        "flops",
        "config.load",
        "parallel.checks",
        "parallel.layout",
        "surgery.upscale",
        "surgery.average",
        "train.plan",
        "data.prepare",
        "visual_tasks.generate",
    ],
)
def test_what_runs_on_a_login_node_imports_no_torch(module: str) -> None:
    code = f"import sys, megatron_apriel.{module}; sys.exit('torch' in sys.modules or 'megatron.core' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


READS_PICKLES = {"checkpoint/metadata.py", "checkpoint/pieces.py"}
"""Files with an unpickler of their own, which knows only what does nothing."""


def test_no_file_executes_pickles_or_remote_code() -> None:
    for file in [*SOURCES, *sorted((ROOT / "tools").glob("*.py"))]:
        text = file.read_text(encoding="utf-8")
        assert "trust_remote_code=True" not in text, file
        assert "shell=True" not in text, file
        if "import pickle" in text and "testing" not in file.parts:
            assert str(file.relative_to(PACKAGE)) in READS_PICKLES
            assert "pickle.load" not in text, file
        if "weights_only=False" in text:
            # Results of a test's own forked processes, over a pipe between them.
            assert file.relative_to(PACKAGE).parts[0] == "testing", file


PRINTERS = {"errors.py": {"print"}, "terminal.py": {"print", "ArgumentParser", "getLogger"}}
"""Files that may call what prints names as they are; all others go through them."""


def calls(file: Path) -> Iterator[str]:
    """Last names of the functions that a file calls."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            # A console's own method prints what it is given: text or a table that was made printable.
            console = isinstance(node.func, ast.Attribute) and node.func.attr == "print"
            module = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value)
            if not console and not (node.args and isinstance(node.args[0], ast.Constant) and module == "logging"):
                yield node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id


def test_names_are_printed_through_the_terminal_alone() -> None:
    """``print``, ``argparse`` and ``logging`` would print a name's control characters, ``rich`` read its brackets."""
    for file in [*SOURCES, *sorted((ROOT / "tools").glob("*.py")), *sorted((ROOT / "examples").rglob("*.py"))]:
        allowed = PRINTERS.get(file.name, set()) if file.parent == PACKAGE else set()
        found = {"print", "ArgumentParser", "getLogger"} & set(calls(file))
        assert found <= allowed, f"{file}: {found}"
        text = file.read_text(encoding="utf-8")
        assert "rich.table" not in text or file.name == "tables.py", file
