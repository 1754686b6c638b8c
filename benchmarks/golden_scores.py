"""Whether every scorer gives the verdicts that are known: on stored outputs of others, and on answers made for it.

The golden directory holds ``mmlu_pro_*.jsonl.gz`` (one row an output: question_id, options, answer, category,
model_output, pred) and IFBench's ``ifbench_inputs.jsonl.gz`` with ``ifbench_verdicts.jsonl``. tau2-bench has no stored
outputs: its tasks' own actions are replayed. No model and no network is needed; the scoring of IFBench and tau2-bench
runs in environments of its own, which ``make scorers`` makes.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.table import Table

from benchmarks.golden_sets import SETS
from benchmarks.options import add_output_options, wrong_usage
from benchmarks.report import Page, Record, listed, markdown, write
from benchmarks.versions import facts, processor
from megatron_apriel.command_line import CommandLine, chosen
from megatron_apriel.errors import AprielError, ConfigError, ExitCode, run_command
from megatron_apriel.grading import conversations, instructions

EXAMPLES = """\
examples:
  # all of it; takes about a minute
  python benchmarks/golden_scores.py --golden ../golden

  # only what needs no environment of its own
  python benchmarks/golden_scores.py --golden ../golden --only mmlu_pro,answer_forms,linear_time

Exit code: 0 if every figure is what it must be, 1 if one is not or could not be had.
"""
HEADINGS = ("set", "what", "found", "must be", "")


def rows(record: Record) -> list[tuple[str, ...]]:
    """One row a figure."""
    return [
        (one["set"], one["what"], one["found"], one["wanted"], "yes" if one["holds"] else "**no**")
        for one in record["proofs"]
    ]


def page(record: Record) -> Page:
    """What this benchmark says of a record."""
    shown = [f"{one['set']}, {one['what']}: {remark}" for one in record["proofs"] for remark in one["remarks"]]
    held = sum(one["holds"] for one in record["proofs"])
    return Page(
        title="Golden scores",
        question="Do the scorers give the verdicts that are known?",
        configuration=f"{held} of {len(record['proofs'])} figures are what they must be",
        measured=[f"{one['set']}: {one['what']}" for one in record["proofs"]],
        body=markdown(HEADINGS, rows(record)) + ("\n" + listed(shown) if shown else ""),
    )


def prove(names: Sequence[str], golden: Path) -> list[dict[str, Any]]:
    """Every figure of some sets; a set that cannot be tried is one that does not hold."""
    proofs: list[dict[str, Any]] = []
    for name in names:
        try:
            for proof in SETS[name](golden):
                proofs.append({
                    "set": name, "what": proof.what, "found": proof.found, "wanted": proof.wanted,
                    "holds": proof.holds, "remarks": list(proof.remarks),
                })  # fmt: skip
        except (AprielError, OSError) as error:
            why = error.what if isinstance(error, AprielError) else str(error)
            proofs.append({"set": name, "what": "not tried", "found": why, "wanted": "", "holds": False, "remarks": []})
    return proofs


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--golden", type=Path, required=True, metavar="DIR", help="directory of golden outputs")
    parser.add_argument("--only", default=",".join(SETS), metavar="LIST", help="some of %(default)s")
    add_output_options(parser, "golden_scores")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    arguments = _parser().parse_args(argv)
    try:
        names = chosen(arguments.only, list(SETS), "--only")
    except ConfigError as error:
        return wrong_usage(error)
    begun = datetime.datetime.now(datetime.UTC)
    proofs = prove(names, arguments.golden)
    packages = dict(one.split() for one in (instructions.VERSION, conversations.VERSION))
    environment = {"device": "CPU", "versions": packages}
    record = {
        **facts("golden_scores", arguments.commit, environment, begun), "hardware": processor(), "proofs": proofs,
    }  # fmt: skip
    table = Table(*HEADINGS, title="what the scorers make of what is known")
    for cells in rows(record):
        table.add_row(*(cell.replace("[", "\\[") for cell in cells))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    print(f"{write(arguments.output, record, page(record), begun)}.json and .md")
    return ExitCode.OK if all(one["holds"] for one in proofs) else ExitCode.FAILED


if __name__ == "__main__":
    sys.exit(run_command(main))
