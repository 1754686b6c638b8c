"""Make the index of all stored results, and every result's page again from its JSON.

The index (benchmarks/results/README.md) says of each result what it answers, on which hardware, at which commit and
when; whether it is current, or superseded because later results on the same hardware measured all of it again; and
which documents and files of the code quote it, by its name.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.processes import ROOT
from benchmarks.report import RESULTS, Page, Record, kind_of_machine, machine, markdown, text_of
from megatron_apriel.command_line import CommandLine
from megatron_apriel.errors import ExitCode, run_command

EXAMPLES = """\
examples:
  # after new results were added, or a document quotes another one
  python benchmarks/index.py

  # whether index and pages are what it would write; the files that are not are named, and none is changed
  python benchmarks/index.py --check

Exit code: 0 if all is written or as it should be, 1 if --check found a file that is not.
"""
HEADINGS = ("result", "configuration", "hardware", "commit", "date", "state", "quoted by")
INTRODUCTION = """\
# Results

Made by `python benchmarks/index.py`; do not edit. Each result is a JSON file with everything that was measured and a
Markdown file with the tables. *Superseded*: later results on the same hardware measured all of it again.
"""


@dataclass(frozen=True)
class Result:
    """A stored result.

    Attributes:
        path: of its JSON.
        quoted_by: files that name it, below the project's root.
        superseded: whether later results have measured all of it again.
    """

    path: Path
    record: Record
    page: Page
    quoted_by: Sequence[str] = ()
    superseded: bool = False


def quoting_files(root: Path) -> dict[str, str]:
    """Texts in which results are quoted, by their path below ``root``: documents and the trainer's own code."""
    patterns = ("*.md", "docs/*.md", "*/README.md", "megatron_apriel/**/*.py")
    files = sorted({file for pattern in patterns for file in root.glob(pattern)})
    return {str(file.relative_to(root)): file.read_text(encoding="utf-8") for file in files}


def results(directory: Path, root: Path = ROOT) -> list[Result]:
    """All results of a directory: by benchmark, and of each the newest first."""
    texts = quoting_files(root)
    found: list[Result] = []
    again: dict[tuple[str, str], set[str]] = {}
    records = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in directory.glob("*.json")]
    for path, record in sorted(records, key=lambda one: (one[1]["date"], one[0].name), reverse=True):
        page: Page = importlib.import_module(f"benchmarks.{record['benchmark']}").page(record)
        measured = set(page.measured)
        later = again.setdefault((record["benchmark"], kind_of_machine(record)), set())
        quoted_by = [name for name, text in texts.items() if path.stem in text]
        found.append(Result(path, record, page, quoted_by, superseded=measured <= later))
        later |= measured
    return sorted(found, key=lambda one: str(one.record["benchmark"]))


def index_of(found: Sequence[Result]) -> str:
    """The index: one heading a benchmark, with its question, and one row a result."""
    parts = [INTRODUCTION]
    for benchmark in dict.fromkeys(one.record["benchmark"] for one in found):
        own = [one for one in found if one.record["benchmark"] == benchmark]
        parts.append(f"## {benchmark}\n\n{own[0].page.question}\n\n{markdown(HEADINGS, map(_row, own))}\n")
    return "\n".join(parts)


def _row(one: Result) -> list[str]:
    return [
        f"[{one.path.stem}]({one.path.stem}.md)",
        one.page.configuration,
        machine(one.record),
        one.record["commit"][:7],
        one.record["date"],
        "superseded" if one.superseded else "current",
        ", ".join(f"[{name}](../../{name})" for name in one.quoted_by) or "-",
    ]


def written(directory: Path, root: Path = ROOT) -> Iterator[tuple[Path, str]]:
    """Every file that is made from the stored JSON, with its text."""
    found = results(directory, root)
    for one in found:
        yield one.path.with_suffix(".md"), text_of(one.record, one.page)
    yield directory / "README.md", index_of(found)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = CommandLine(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--check", action="store_true", help="change nothing; name what would be written otherwise")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="(benchmarks/results)")
    arguments = parser.parse_args(argv)
    other = [
        (file, text)
        for file, text in written(arguments.results)
        if not file.is_file() or file.read_text(encoding="utf-8") != text
    ]
    for file, text in other:
        if not arguments.check:
            file.write_text(text, encoding="utf-8")
        print(f"{'not as it would be written' if arguments.check else 'written'}: {file}")
    if not other:
        print("index and pages are as they should be")
    return ExitCode.FAILED if other and arguments.check else ExitCode.OK


if __name__ == "__main__":
    sys.exit(run_command(main))
