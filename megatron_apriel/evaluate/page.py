"""The page of an evaluation: every answer with its verdict, to be filtered, beside those of a baseline.

One file that opens from disk and fetches nothing; pictures are read from the folders beside it. Answers are data in it
and never markup: they are put in as text. All items are there; their texts are cut, and the shorter the more there are,
so that a browser can hold it.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_apriel.evaluate.items import Part
from megatron_apriel.evaluate.report import HEADINGS, Report, cells
from megatron_apriel.evaluate.results import Scored
from megatron_apriel.output_files import replace_file

if TYPE_CHECKING:
    from megatron_apriel.evaluate.benchmarks import Benchmark
    from megatron_apriel.evaluate.running import Evaluation

MOST_BYTES = 64 * 2**20
"""Of the items on the page, where cutting their texts can do it."""
_LETTERS = (3000, 1500, 700, 300)
"""Of a text, at most: the first with which there are not too many bytes, or the last."""
_CUT = "[...]"
_TEMPLATE = Path(__file__).with_name("page.html")


def write_page(
    evaluation: Evaluation, benchmarks: Sequence[Benchmark], report: Report, others: Mapping[str, Evaluation]
) -> None:
    """Write ``report.html``."""
    known = {benchmark: _known(evaluation, benchmark, others) for benchmark in benchmarks}
    for letters in _LETTERS:
        items = [one for benchmark, lists in known.items() for one in _shown(benchmark, lists, letters)]
        # Inside a script nothing but its end is markup.
        data = json.dumps({"items": items, "names": [str(evaluation.folder), *others]}).replace("<", "\\u003c")
        if len(data) <= MOST_BYTES:
            break
    heading = "".join(f"<th>{html.escape(name)}</th>" for name in HEADINGS)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells(row)) + "</tr>" for row in report.rows
    )
    cut = f"Texts are cut at {letters:,} letters, where {_CUT} stands; the files beside this page have all of them."
    said = [*report.differences(), *report.remarks(), *([cut] if _CUT in data else [])]
    remarks = "".join(f"<li>{html.escape(remark)}</li>" for remark in said)
    text = _TEMPLATE.read_text(encoding="utf-8")
    for name, value in {
        "TITLE": html.escape(str(report.settings["model"])),
        "TABLE": f"<table><tr>{heading}</tr>{rows}</table><ul>{remarks}</ul>",
        "DATA": data,
    }.items():
        text = text.replace(f"<!--{name}-->", value)
    replace_file(evaluation.folder / "report.html", text)


def _known(evaluation: Evaluation, benchmark: Benchmark, others: Mapping[str, Evaluation]) -> list[list[Scored]]:
    """All that was asked, and the same of each baseline."""
    there = [other.scored(benchmark) if other.is_loaded(benchmark) else [] for other in others.values()]
    return [evaluation.scored(benchmark), *there]


def _shown(benchmark: Benchmark, known: list[list[Scored]], letters: int) -> Iterator[dict[str, Any]]:
    beside = [{(one.item.key, one.run): one for one in found} for found in known[1:]]
    for one in known[0]:
        place = (one.item.key, one.run)
        yield {
            "benchmark": benchmark.title, "key": one.item.key, "run": one.run, "groups": dict(one.item.groups),
            "question": [_part(part, benchmark.name, letters) for part in one.item.parts],
            "gold": _cut(str(one.item.grading.get("gold", one.item.grading.get("answer", ""))), letters),
            "answers": [_answer(one, letters), *(_answer(found.get(place), letters) for found in beside)],
        }  # fmt: skip


def _part(part: Part, folder: str, letters: int) -> Part:
    if isinstance(part, str):
        return _cut(part, letters)
    return {"picture": f"{folder}/{part['picture']}"} if "picture" in part else f"(code of {part['code']})"


def _cut(text: str, letters: int, *, keeps_end: bool = False) -> str:
    if len(text) <= letters:
        return text
    return f"{_CUT} {text[-letters:]}" if keeps_end else f"{text[:letters]} {_CUT}"


def _answer(one: Scored | None, letters: int) -> dict[str, Any]:
    if one is None or one.answer is None:
        return {"mark": "not asked", "cause": "", "reason": "", "content": "", "reasoning": ""}
    verdict = one.verdict or {"mark": "not scored", "cause": "", "reason": ""}
    return {
        "mark": verdict["mark"], "cause": verdict["cause"], "reason": _cut(verdict["reason"], letters),
        "content": _cut(str(one.answer.get("content", one.answer.get("failed", ""))), letters),
        "reasoning": _cut(str(one.answer.get("reasoning", "")), letters, keeps_end=True),
        "finish": one.answer.get("finish", ""), "tokens": one.answer.get("tokens"),
    }  # fmt: skip
