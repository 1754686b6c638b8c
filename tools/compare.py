#!/usr/bin/env python
"""Compare results of evaluations: scores with intervals, differences on the items of both, and a plot over tokens."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_apriel.command_line import CommandLine
from megatron_apriel.errors import ConfigError, ExitCode, run_command
from megatron_apriel.output_files import check_file, replace_file
from megatron_apriel.outputs import followed
from megatron_apriel.terminal import say

if TYPE_CHECKING:
    from megatron_apriel.evaluate.comparing import Compared, Result
    from megatron_apriel.tables import Table

EXAMPLES = """\
examples:
  # what a stage did: each of its checkpoints, and differences to what it began from (step 0)
  python tools/compare.py runs/cpt_stage2

  # two runs over tokens, with the released model as a level across
  python tools/compare.py runs/cpt_stage2 runs/cpt_stage2_longer evaluations/released --plot scores.png

  # did the second evaluation become better? and the same for programs
  python tools/compare.py evaluations/before evaluations/after --json compared.json --csv compared.csv

  # differences to another result than the first
  python tools/compare.py runs/cpt_stage2 runs/sft --to evaluations/released

A result is a directory that tools/evaluate.py made, or a run that it followed, which has a result for each checkpoint.
A difference is the mean over the items whose question and scoring are the same in both, with the 95% interval of a
bootstrap over them: an interval without 0 is a difference. Scores alone can overlap while the difference is clear.
Other settings, data or scorers are named below the table.

Files that exist are replaced with --overwrite only, and a file of a result never.

Exit code: 0 if all results were compared, 1 if one cannot be, 2 for a wrong command line.
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = CommandLine(description=__doc__, epilog=EXAMPLES, allow_abbrev=False)
    parser.add_argument("results", metavar="RESULT", nargs="+", type=Path, help="evaluations, and runs")
    parser.add_argument("--to", metavar="RESULT", type=Path, help="what others differ from (default: the first one)")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="picture of the scores, as .png, .svg or .pdf")
    parser.add_argument("--json", metavar="FILE", type=Path, help="rows and remarks; - for standard output")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="rows; - for standard output")
    parser.add_argument("--overwrite", action="store_true", help="replace these files")
    arguments = parser.parse_args(argv)
    # Only now: the imports take a while, and --help should not.
    from megatron_apriel.evaluate.comparing import compare, remarks, results_in
    from megatron_apriel.evaluate.score_plot import check_picture, draw_scores
    from megatron_apriel.tables import standard_output

    if arguments.plot is not None:
        check_picture(arguments.plot)
    folders = list(dict.fromkeys(arguments.results))
    results = [result for folder in folders for result in results_in(folder)]
    _check_files(arguments, results)
    base = results[0] if arguments.to is None else _base(results, arguments.to)
    compared, said = compare(results, base), remarks(results, base)
    if not compared:
        raise ConfigError("there is nothing to compare: no result has a benchmark that was loaded.")
    quiet = Path("-") in (arguments.json, arguments.csv)
    if not quiet:
        standard_output(160).print(_table(compared, base))
        say(*said)
    records = [one.as_record() for one in compared]
    if arguments.json is not None:
        whole = {"compared_to": base.name, "rows": records, "remarks": said}
        _write(arguments.json, json.dumps(whole, indent=1, ensure_ascii=False))
    if arguments.csv is not None:
        text = io.StringIO()
        writer = csv.DictWriter(text, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        _write(arguments.csv, text.getvalue().rstrip("\n"))
    if arguments.plot is not None:
        draw_scores(compared, arguments.plot)
        if not quiet:
            say(f"plot: {arguments.plot}")
    return ExitCode.OK


def _check_files(arguments: argparse.Namespace, results: list[Result]) -> None:
    """Raise OutputError or ConfigError if one of the files cannot be written as it is named."""
    named = {f"--{name}": getattr(arguments, name) for name in ("plot", "json", "csv")}
    named = {option: path for option, path in named.items() if path is not None and str(path) != "-"}
    for option, path in named.items():
        if twice := [one for one, other in named.items() if one < option and followed(other) == followed(path)]:
            raise ConfigError(f"{twice[0]} and {option} are both {path}.", fix="Give each a name of its own.")
        check_file(path, arguments.overwrite, [result.evaluation.folder for result in results])


def _base(results: list[Result], folder: Path) -> Result:
    """The result that others are compared to; of a run its first."""
    from megatron_apriel.evaluate.comparing import results_in

    found = results_in(folder)[0]
    return next((one for one in results if one.evaluation.folder == found.evaluation.folder), found)


def _table(compared: list[Compared], base: Result) -> Table:
    from megatron_apriel.tables import figures

    headings = ("benchmark", "result", "tokens", "score", "95% interval", "asked", "none", "truncated", "failed",
                "difference", "95% interval", "items of both")  # fmt: skip
    table = figures(*headings, words=(0, 1), title=f"percent right of all that was asked; differences to {base.name}")
    for place, one in enumerate(compared):
        row, gain, tokens = one.row, one.difference, one.result.tokens
        first = place == 0 or compared[place - 1].row.name != row.name
        last = place == len(compared) - 1 or compared[place + 1].row.name != row.name
        table.add_row(
            row.title if first else "", one.result.name, "" if tokens is None else f"{tokens:,}",
            f"{row.score.value:.2f}", f"{row.score.low:.2f} to {row.score.high:.2f}",
            *(f"{count:,}" for count in (row.asked, row.none, row.truncated, row.failed)),
            "" if gain is None else f"{gain.value:+.2f}",
            "" if gain is None else f"{gain.low:+.2f} to {gain.high:+.2f}", f"{one.both:,}" if one.both else "",
            end_section=last,
        )  # fmt: skip
    return table


def _write(path: Path, text: str) -> None:
    if str(path) == "-":
        say(*text.split("\n"))
        return
    replace_file(path, text + "\n")


if __name__ == "__main__":
    sys.exit(run_command(main))
