"""The rules of the house: the order of rooms, no circles, what needs no torch, documents that name what is there."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import megatron_apriel

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "megatron_apriel"

GROUND = (
    "inputs", "concealed", "errors", "terminal", "tables", "quantities", "command_line", "locks", "outputs",
    "output_files", "progress", "workers",
)  # fmt: skip
ORDER = (
    GROUND, "config", "formats", "surgery", "batch", "parallel", "data.raw", "data.raw.fields", "data.raw.pictures",
    "data.raw.turns", "data.raw.records", "data.raw.files", "data.visual_tasks", "data.corpus", "data.loading",
    "model", "generate", "grading", "evaluate", "curate", "checkpoint", "planning", "train", "reinforce", "testing",
)  # fmt: skip
"""Rooms from top to bottom; each may import only what stands above it. One that has no file yet may be absent."""

STRANGERS = (
    ("model", "data.loading"),
    ("train", "evaluate"),  # started as a command
    ("evaluate", "model"),  # known as a directory or an address only
    ("reinforce", "model"),
)
"""(room, room that it must not import although it stands above)."""

NO_TORCH = (
    *GROUND, "config", "formats", "surgery", "data.raw", "data.visual_tasks", "data.corpus", "generate", "grading",
    "evaluate", "curate", "planning", "parallel.layout", "parallel.checks", "parallel.balance",
    "parallel.context_parts", "parallel.data_place", "parallel.image_shares", "parallel.logit_parts",
    "parallel.user_buffers",
    "data.loading.packing", "data.loading.order", "data.loading.cutting", "data.loading.plan_cache",
    "data.loading.plan_checks", "data.loading.mixture", "data.loading.sources",
    "data.loading.stage_data", "data.loading.dealing",
)  # fmt: skip
"""Rooms and files that can be imported without torch and Megatron Core."""

RUN_MODELS = ("generate.transformers_model", "generate.vllm_plugin")
"""The files among them that import torch; the second one needs vLLM's environment."""

FILES = sorted(PACKAGE.rglob("*.py"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("*/README.md"))]


def module_of(file: Path) -> str:
    """Dotted name below the package: ``data.raw.files``; of an ``__init__.py`` that of its folder."""
    return ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


MODULES = {module_of(file): file for file in FILES}


def room_of(module: str) -> str:
    """``data.raw`` of ``data.raw.problems``, ``model`` of ``model.norm``, ``ground`` of ``errors``."""
    parts = module.split(".")
    if parts[0] in GROUND:
        return "ground"
    inner = ".".join(parts[:3])
    return inner if inner in LEVELS else ".".join(parts[:2]) if parts[0] == "data" else parts[0]


LEVELS = {"ground" if name is GROUND else str(name): level for level, name in enumerate(ORDER)}


@cache
def imports(module: str) -> dict[str, bool]:
    """Modules of the package that a file imports, late ones too; True for those that do more than check types."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    found: dict[str, bool] = {}
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{MODULES[module]} imports by a relative name"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name.removeprefix("megatron_apriel.") in MODULES else str(node.module) for name in whole]
        for name in names:
            if name.split(".")[0] == "megatron_apriel":
                own = name.removeprefix("megatron_apriel").removeprefix(".")
                found[own] = found.get(own, False) or id(node) not in for_types
    return found


@pytest.mark.parametrize("module", [name for name in MODULES if name not in ("", "data")])
def test_imports_run_downward(module: str) -> None:
    own = room_of(module)
    assert own in LEVELS, f"{module} is in no room of the house"
    for other in (room_of(name) for name, at_run_time in imports(module).items() if name and at_run_time):
        if other != own:
            assert LEVELS[other] < LEVELS[own], f"{module} imports {other}, which stands below it"
            assert (own, other) not in STRANGERS, f"{module} imports {other}"


def test_no_circle() -> None:
    """Not in one room either, and neither by an import in a function nor by one that only checks types."""
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        # Whoever imports a file runs the __init__.py of its folders first.
        folders = {name.rpartition(".")[0] for name in [module, *imports(module)]} - {""}
        graph[module] = {name for name in {*imports(module), *folders} if name and name != module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_what_runs_on_a_login_node_imports_no_torch() -> None:
    light = [name for name in MODULES if name and any(f"{name}.".startswith(f"{part}.") for part in NO_TORCH)]
    light = [name for name in light if name not in RUN_MODELS]
    code = (
        "import importlib, sys\n"
        f"for name in {light!r}:\n"
        "    importlib.import_module(f'megatron_apriel.{name}')\n"
        "    if {'torch', 'megatron.core'} & sys.modules.keys():\n"
        "        sys.exit(f'{name} imports torch')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(light) > 60


@pytest.mark.parametrize("file", FILES, ids=module_of)
def test_files_say_what_they_are_for(file: Path) -> None:
    assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))


READS_PICKLES = {"checkpoint/metadata.py", "checkpoint/piece_reader.py"}
"""Files with an unpickler of their own, which knows only what does nothing."""


def test_no_file_executes_pickles_or_remote_code() -> None:
    for file in [*FILES, *sorted((ROOT / "tools").glob("*.py"))]:
        text = file.read_text(encoding="utf-8")
        assert "trust_remote_code=True" not in text, file
        assert "shell=True" not in text, file
        if "import pickle" in text and "testing" not in file.parts:
            assert str(file.relative_to(PACKAGE)) in READS_PICKLES
            assert "pickle.load" not in text, file
        if "weights_only=False" in text:
            # Results of a test's own forked processes, over a pipe between them.
            assert file.relative_to(PACKAGE).parts[0] == "testing", file


PRINTERS = {"errors.py": {"print"}, "terminal.py": {"print", "getLogger"}, "command_line.py": {"ArgumentParser"}}
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
    for file in [*FILES, *sorted((ROOT / "tools").glob("*.py")), *sorted((ROOT / "examples").rglob("*.py"))]:
        allowed = PRINTERS.get(file.name, set()) if file.parent == PACKAGE else set()
        found = {"print", "ArgumentParser", "getLogger"} & set(calls(file))
        assert found <= allowed, f"{file}: {found}"
        text = file.read_text(encoding="utf-8")
        assert "rich.table" not in text or file.name == "tables.py", file


PLURALS = re.compile(r"""[a-z]\(s\)|\{(?:'s'|"s") (?:\*|if) """)
"""As in ``{number} file(s)`` and ``file{'s' * (number > 1)}``."""


def test_one_and_many_are_told_apart_in_one_place() -> None:
    folders = ("megatron_apriel", "tools", "examples", "benchmarks")
    found = {
        f"{file}: {match[0]}"
        for folder in folders
        for file in (ROOT / folder).rglob("*.py")
        for match in PLURALS.finditer(file.read_text(encoding="utf-8"))
    }
    assert not found, "quantities.counted does it"


def tree_below(text: str, top: str = "megatron_apriel/") -> list[str]:
    """Files and folders that an indented tree lists below ``top``, as ``errors.py`` and ``data/raw/``, in its order."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.strip() == top)
    margin = len(lines[start]) - len(lines[start].lstrip())
    open_folders: list[tuple[int, str]] = []
    found = []
    for line in lines[start + 1 :]:
        indent = len(line) - len(line.lstrip())
        if indent <= margin:
            break
        open_folders = [(depth, folder) for depth, folder in open_folders if depth < indent]
        above = "".join(folder for _, folder in open_folders)
        for word in line.split():
            if not re.fullmatch(r"\w+/|\w+\.py", word):
                break
            found.append(above + word)
            if word.endswith("/"):
                open_folders.append((indent, word))
    return found


@pytest.mark.parametrize("place", ["megatron_apriel/__init__.py", "README.md"])
def test_the_file_tree_is_the_folders(place: str) -> None:
    listed = tree_below(megatron_apriel.__doc__ or "" if place.endswith(".py") else (ROOT / place).read_text("utf-8"))
    folders = {f"{file.parent.relative_to(PACKAGE)}/" for file in FILES if file.parent != PACKAGE}
    loose = {file.name for file in PACKAGE.glob("*.py")} - {"__init__.py"}
    assert set(listed) == folders | loose
    assert len(listed) == len(set(listed))
    modules = [name.removesuffix("/").removesuffix(".py").replace("/", ".") for name in listed if name != "data/"]
    levels = [LEVELS[room_of(module)] for module in modules]
    assert levels == sorted(levels), "not in the order of the house"


def test_the_readme_names_every_folder_of_the_project() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = text[text.index("```\nmegatron_apriel/") + 4 :].partition("```")[0]
    listed = re.findall(r"^(\w+)/", tree, re.MULTILINE)
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    folders = {line.partition("/")[0] for line in tracked.splitlines() if "/" in line and line[0] != "."}
    assert set(listed) == (folders or {name for name in listed if (ROOT / name).is_dir()})


def test_tests_mirror_the_rooms() -> None:
    others = {"benchmarks", "examples", "tools"}
    for file in (ROOT / "tests" / "unit").rglob("test_*.py"):
        place = file.parent.relative_to(ROOT / "tests" / "unit")
        if place == Path():
            assert file.stem == "test_house_rules" or file.stem.removeprefix("test_") in (*GROUND, "batch"), file
        else:
            assert place.parts[0] in others or (PACKAGE / place).is_dir(), f"{file} tests no room"


TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_of_files_name_files(page: Path) -> None:
    """Tables with a column ``file``, of names below the package, or below the folder that the heading gives."""
    for table in TABLE.findall(page.read_text(encoding="utf-8")):
        heading, _, *rows = table.splitlines()
        for column, title in enumerate(heading.split("|")):
            if match := re.fullmatch(r"file(?: in `([\w/]+/)`)?", title.strip()):
                folder = ROOT / match[1] if match[1] else PACKAGE
                for name in (name for row in rows for name in re.findall(r"`([\w/]+\.py)`", row.split("|")[column])):
                    assert (folder / name).is_file(), f"{page.name}: there is no {folder.relative_to(ROOT)}/{name}"


@pytest.mark.parametrize(("page", "room"), [("checkpoints", "checkpoint"), ("model", "model")])
def test_every_file_of_a_room_is_in_its_table(page: str, room: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    table = text[text.index(f"| file in `megatron_apriel/{room}/`") :].partition("\n\n")[0]
    listed = re.findall(r"`(\w+\.py)`", table)
    assert sorted(listed) == sorted({file.name for file in (PACKAGE / room).glob("*.py")} - {"__init__.py"})


def test_what_is_named_is_there() -> None:
    """Paths of this project's files, and dotted names of its modules, in code, comments and pages."""
    folders = ("megatron_apriel", "tools", "examples", "benchmarks")
    rooms = "|".join(sorted({module.partition(".")[0] for module in MODULES if "." in module}))
    absent = []
    for file in [*PAGES, *(file for folder in folders for file in sorted((ROOT / folder).rglob("*.py")))]:
        text = file.read_text(encoding="utf-8")
        whole = re.findall(rf"(?<![\w./-])((?:{'|'.join(folders)}|tests|docs)/[\w/]+\.(?:py|md|sh))", text)
        short = re.findall(rf"(?<![\w./-])((?:{rooms})/[\w/]+\.py)", text)
        dotted = re.findall(r"(?<![\w/-])megatron_apriel\.((?!sqsh|sif)[a-z][\w.]*\w)", text)
        absent += [f"{file.name}: {path}" for path in whole if not (ROOT / path).is_file()]
        absent += [f"{file.name}: {path}" for path in short if not (PACKAGE / path).is_file()]
        absent += [f"{file.name}: megatron_apriel.{name}" for name in dotted if not names_something(name)]
    assert not absent


def names_something(name: str) -> bool:
    """Whether a dotted name below the package is a module, or something that stands in one."""
    parts = name.split(".")
    known = max(count for count in range(len(parts) + 1) if ".".join(parts[:count]) in MODULES)
    file, rest = MODULES[".".join(parts[:known])], parts[known:]
    text = file.read_text(encoding="utf-8")
    return not rest or (file.name != "__init__.py" and all(re.search(rf"\b{part}\b", text) for part in rest))
