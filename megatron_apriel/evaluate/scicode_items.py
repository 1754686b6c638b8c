"""SciCode's steps as items: 288 of its 65 problems and the 50 of its 15 development problems, which the index counts.

As nvidia-scicode 26.3 asks them in the form of Artificial Analysis (``SciCode_AA_v2``): with the scientists'
background, behind the descriptions and the model's own code of the steps before. Three steps are given and not asked.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_apriel.errors import DataError
from megatron_apriel.evaluate.data_files import Kind, rows_of
from megatron_apriel.evaluate.items import Item, Part, Source, file_digest
from megatron_apriel.evaluate.loaders import Given, Loaded
from megatron_apriel.grading.scicode import TARGETS
from megatron_apriel.grading.scorer_environments import package_files
from megatron_apriel.inputs import read_input
from megatron_apriel.terminal import note

GIVEN = ("13.6", "62.1", "76.3")
_PROBLEMS = ("problems_all.jsonl", "problems_dev.jsonl")
_TEMPLATE = "background_comment_template.txt"
_FIELDS = {"problem_id": Kind.NAME, "required_dependencies": Kind.TEXT, "sub_steps": Kind.LIST}
_STEP_FIELDS = ("step_number", "step_description_prompt", "step_background", "function_header", "return_line")
_NAME = re.compile(r"\b(?:def|class)\s+(\w+)\s*\(")


def scicode(given: Given) -> Loaded:
    """SciCode: an item a step, those of a problem one behind the other. Raises DataError if there are no data."""
    own = sorted((given.data / "scicode").rglob(_PROBLEMS[0]))
    folder = next((path.parent for path in (*own, *package_files("scicode", f"scicode/data/{_PROBLEMS[0]}"))), None)
    if folder is None:
        raise DataError(
            f"there are no data of scicode in {given.data / 'scicode'}.",
            f"They are the folder scicode/data of nvidia-scicode 26.3, and {TARGETS} of SciCode's authors beside it.",
            "docs/evaluation.md says how to get them.",
        )
    files = [folder / name for name in (*_PROBLEMS, _TEMPLATE, *(f"{step}.txt" for step in GIVEN))]
    try:
        texts = {path.stem: read_input(path).decode("utf-8") for path in files[2:]}
    except (OSError, ValueError) as error:
        raise DataError(f"the data of scicode in {folder} are not whole: {error}.") from None
    rows = rows_of(files[:2], _FIELDS)
    items = [item for row in rows for item in _steps(row, texts)]
    if scicode_targets(given.data) is None:
        note(f"there is no {TARGETS} in {given.data / 'scicode'}: without it no answer to SciCode can be scored")
    return items, Source("SciCode with development problems", file_digest(files), len(items), "scicode 1")


def scicode_targets(data: Path) -> Path | None:
    """The right numbers of the steps, where they lie among the data."""
    return next(iter(sorted((data / "scicode").rglob(TARGETS))), None)


def _steps(row: Mapping[str, Any], texts: Mapping[str, str]) -> list[Item]:
    steps = row["sub_steps"]
    for step in steps:
        if step.get("step_number") in GIVEN:
            continue
        lacking = [name for name in _STEP_FIELDS if not isinstance(step.get(name), str)]
        if lacking or not step.get("test_cases"):
            raise DataError(f"a step of problem {row['problem_id']} lacks {', '.join(lacking) or 'test_cases'}.")
    names = [step["step_number"] for step in steps]
    given = {
        name: _function(texts[name], step["function_header"])
        for name, step in zip(names, steps, strict=True)
        if name in GIVEN
    }
    items = []
    for number, name in enumerate(names):
        if name in GIVEN:
            continue
        grading = {
            "step": name, "dependencies": row["required_dependencies"], "before": names[:number],
            "given": {one: given[one] for one in names[:number] if one in given}, "tests": steps[number]["test_cases"],
        }  # fmt: skip
        items.append(Item(
            name, _prompt(row, number, given, texts[Path(_TEMPLATE).stem]), "scicode", grading,
            cluster=str(row["problem_id"]), after=tuple(one for one in names[:number] if one not in given),
        ))  # fmt: skip
    return items


def _prompt(row: Mapping[str, Any], number: int, given: Mapping[str, str], template: str) -> tuple[Part, ...]:
    """The published prompt, with places for the code of the steps before."""
    steps: Sequence[Mapping[str, str]] = row["sub_steps"]
    before, behind = template.split("{problem_steps_str}")
    parts: list[Part] = [before]
    for place, step in enumerate(steps[:number]):
        name = step["step_number"]
        parts += ["\n\n------\n\n" if place else "", f"{_described(step)}\n\n", given.get(name) or {"code": name}]
    header = f"{steps[number]['function_header']}\n\n{steps[number]['return_line']}"
    parts.append(behind.format(
        next_step_str=f"{_described(steps[number])}\n\n{header}", dependencies=row["required_dependencies"]
    ))  # fmt: skip
    return tuple(part for part in parts if part)


def _described(step: Mapping[str, str]) -> str:
    return f"{step['step_description_prompt']}\n{step['step_background']}"


def _function(code: str, header: str) -> str:
    """The function of a step that is given, as the harness writes it."""
    found = _NAME.search(header)
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and found is not None and node.name == found[1]:
            return ast.unparse(node)
    raise DataError(f"the code that is given for a step does not define what its header names: {header[:80]!r}.")
