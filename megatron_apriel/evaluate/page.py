"""The page of an evaluation: every answer with its verdict, to be filtered, beside those of a baseline.

One file that opens from disk and fetches nothing; pictures are read from the folders beside it. Answers are data in it
and never markup: they are put in as text.
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
from megatron_apriel.outputs import replace_file

if TYPE_CHECKING:
    from megatron_apriel.evaluate.benchmarks import Benchmark
    from megatron_apriel.evaluate.running import Evaluation

MOST_ITEMS = 2000
"""Of a benchmark that are on the page; the files have all."""
_MOST_LETTERS = 3000
_TEMPLATE = Path(__file__).with_name("page.html")


def write_page(
    evaluation: Evaluation, benchmarks: Sequence[Benchmark], report: Report, others: Mapping[str, Evaluation]
) -> None:
    """Write ``report.html``."""
    items = [one for benchmark in benchmarks for one in _shown(evaluation, benchmark, others)]
    data = {"items": items, "names": [str(evaluation.folder), *others]}
    heading = "".join(f"<th>{html.escape(name)}</th>" for name in HEADINGS)
    rows = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells(row)) + "</tr>" for row in report.rows
    )
    remarks = "".join(f"<li>{html.escape(remark)}</li>" for remark in report.remarks())
    text = _TEMPLATE.read_text(encoding="utf-8")
    for name, value in {
        "TITLE": html.escape(str(report.settings["model"])),
        "TABLE": f"<table><tr>{heading}</tr>{rows}</table><ul>{remarks}</ul>",
        # Inside a script nothing but its end is markup.
        "DATA": json.dumps(data, ensure_ascii=True).replace("<", "\\u003c"),
    }.items():
        text = text.replace(f"<!--{name}-->", value)
    replace_file(evaluation.folder / "report.html", text)


def _shown(evaluation: Evaluation, benchmark: Benchmark, others: Mapping[str, Evaluation]) -> Iterator[dict[str, Any]]:
    answers = [evaluation.scored(benchmark)]
    for other in others.values():
        answers.append(other.scored(benchmark) if (other.folder / benchmark.name).is_dir() else [])
    beside = [{(one.item.key, one.run): one for one in found} for found in answers[1:]]
    for one in answers[0][:MOST_ITEMS]:
        place = (one.item.key, one.run)
        yield {
            "benchmark": benchmark.title, "key": one.item.key, "run": one.run, "groups": dict(one.item.groups),
            "question": [_part(part, benchmark.name) for part in one.item.parts],
            "gold": str(one.item.grading.get("gold", one.item.grading.get("answer", ""))),
            "answers": [_answer(one), *(_answer(found.get(place)) for found in beside)],
        }  # fmt: skip


def _part(part: Part, folder: str) -> Part:
    if isinstance(part, str):
        return part[:_MOST_LETTERS]
    return {"picture": f"{folder}/{part['picture']}"} if "picture" in part else f"(code of {part['code']})"


def _answer(one: Scored | None) -> dict[str, Any]:
    if one is None or one.answer is None:
        return {"mark": "not asked", "cause": "", "reason": "", "content": "", "reasoning": ""}
    verdict = one.verdict or {"mark": "not scored", "cause": "", "reason": ""}
    return {
        "mark": verdict["mark"], "cause": verdict["cause"], "reason": verdict["reason"],
        "content": str(one.answer.get("content", one.answer.get("failed", "")))[:_MOST_LETTERS],
        "reasoning": str(one.answer.get("reasoning", ""))[-_MOST_LETTERS:], "finish": one.answer.get("finish", ""),
        "tokens": one.answer.get("tokens"),
    }  # fmt: skip
