"""Measure the training step on one GPU, beside its peers on the same tokens, in one call.

Slices of the full-width model (4 and 8 of its 48 decoder layers, with embedding and head) train real steps; what a
layer costs follows from the difference, and the 48-layer model's tokens/s and TFLOP/s from that. See
benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.cases import CASES
from benchmarks.logs import log_folder
from benchmarks.options import add_output_options, wrong_usage
from benchmarks.processes import Planned, measure_all
from benchmarks.report import write
from benchmarks.step_report import (
    MEMORY_HEADINGS,
    SPEED_HEADINGS,
    Measurement,
    memory_rows,
    page,
    remarks,
    speed_rows,
)
from benchmarks.subjects import SUBJECTS, USUAL
from benchmarks.versions import device, facts
from megatron_apriel.command_line import CommandLine, chosen
from megatron_apriel.errors import ConfigError, ExitCode, run_command

EXAMPLES = f"""\
examples:
  # everything; takes about half an hour on one H200
  python benchmarks/step.py

  # what would be measured, in order
  python benchmarks/step.py --dry-run

  # one case and two subjects, stopping to begin new measurements after eight minutes
  python benchmarks/step.py --cases 8192 --subjects ours-delayed,megatron-delayed --budget 480

cases:
  8192, 32768    sequences of one document
  32768-packed   sequences packed from documents of about 3000 tokens
  16384-mix      70% sequences full of images, 30% text; tower frozen, projector and decoder trained (peers: text only)
  8192-realign   sequences full of images, only the projector trained: with --layers 48 the largest stage of one GPU

subjects:
{chr(10).join(f"  {name:26} {title}" for name, title in SUBJECTS.items())}

Every measurement is a process of its own; one that fails is reported, and the others go on. Exit code: 0 if none
failed, 1 if one did, 2 if the command cannot be run here.
"""


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(description=__doc__, epilog=EXAMPLES)
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--cases",
        default="8192,32768,32768-packed,16384-mix",
        metavar="A,B",
        help="default: %(default)s",
    )
    what.add_argument(
        "--subjects", default=",".join(USUAL), metavar="A,B", help="default: all but those with recomputation"
    )
    what.add_argument("--layers", default="4,8", metavar="N,M", help="decoder layers of the slices (%(default)s)")
    how = parser.add_argument_group("how")
    how.add_argument("--steps", type=int, default=3, metavar="N", help="timed steps, of which the median counts (3)")
    how.add_argument("--budget", type=float, metavar="SECONDS", help="begin no measurement after so many seconds")
    how.add_argument("--limit", type=float, default=300, metavar="SECONDS", help="of one measurement (%(default)g)")
    how.add_argument("--dry-run", action="store_true", help="list the measurements and stop")
    output = parser.add_argument_group("output")
    add_output_options(output, "step")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # tiny shapes, on the CPU too
    return parser


def _plan(arguments: argparse.Namespace) -> list[Planned]:
    cases = chosen(arguments.cases, list(CASES), "--cases")
    subjects = chosen(arguments.subjects, list(SUBJECTS), "--subjects")
    depths = sorted({int(text) for text in chosen(arguments.layers, [str(n) for n in range(1, 49)], "--layers")})
    if arguments.steps < 1:
        raise ConfigError(f"--steps={arguments.steps} measures nothing.", fix="Give a number above 0.")
    return [Planned(subject, case, layers) for case in cases for subject in subjects for layers in depths]


def _table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < 2 else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _show(measurements: Sequence[Measurement]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(_table("speed", SPEED_HEADINGS, speed_rows(measurements)))
    if memory := memory_rows(measurements):
        console.print(_table("peak memory of a step", MEMORY_HEADINGS, memory))
    for line in remarks(measurements):
        print(line)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 0 if no measurement failed."""
    arguments = _parser().parse_args(argv)
    try:
        plan = _plan(arguments)
        if not (torch.cuda.is_available() or arguments.tiny or arguments.dry_run):
            raise ConfigError(
                "there is no CUDA device here.",
                "What is measured is the training step on one GPU.",
                "Run it on a machine with one; --dry-run lists the measurements anywhere.",
            )
    except ConfigError as error:
        return wrong_usage(error)
    if arguments.dry_run:
        for planned in plan:
            print(planned.title)
        return ExitCode.OK
    begun = datetime.datetime.now(datetime.UTC)
    measurements: list[dict[str, Any]] = []
    environment: dict[str, Any] = {"device": device()}
    path = arguments.output
    options = {"steps": arguments.steps, "tiny": arguments.tiny}
    with log_folder() as logs:
        for result in measure_all(plan, options, logs.folder, arguments.budget, arguments.limit):
            measurements.append(result["measurement"])
            logs.wanted |= result["measurement"]["status"] == "failed"
            # Kept after every measurement: what is interrupted has cost device time all the same.
            environment = result.get("environment") or environment
            record = {
                **facts("step", arguments.commit, environment, begun), "steps": arguments.steps,
                "measurements": measurements,
            }  # fmt: skip
            path = write(arguments.output, record, page(record), begun)
    _show([Measurement.from_json(values) for values in measurements])
    print(f"{path}.json and .md")
    return ExitCode.FAILED if logs.wanted else ExitCode.OK


if __name__ == "__main__":
    sys.exit(run_command(main))
