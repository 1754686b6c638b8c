"""The command line of every benchmark on several GPUs: options, what there is, running, showing, keeping."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.cases import batches, workload
from benchmarks.logs import log_folder
from benchmarks.measure import WARM_UP_STEPS
from benchmarks.options import add_output_options, wrong_usage
from benchmarks.report import GIB, Page, Record, write
from benchmarks.spread import Prediction, Spread, measure_spreads
from benchmarks.spread_report import Row, page_of, recorded, remarks
from benchmarks.versions import device, facts
from megatron_apriel.command_line import CommandLine
from megatron_apriel.config.choices import FP8_RECIPES
from megatron_apriel.errors import ConfigError, ExitCode
from megatron_apriel.planning.hardware import KINDS, Hardware, hardware
from megatron_apriel.planning.workload import Workload
from megatron_apriel.quantities import counted

PRECISIONS = ("bf16", *FP8_RECIPES)


def _add_common_options(benchmark: str, parser: argparse.ArgumentParser, what: argparse._ArgumentGroup) -> None:
    """Options of every such command line; ``what`` is its group of what is measured."""
    what.add_argument("--precision", default="bf16", metavar="A,B",
                      help=f"of {', '.join(PRECISIONS)} (default: %(default)s)")  # fmt: skip
    machine = parser.add_argument_group("hardware")
    machine.add_argument("--gpus", type=int, metavar="N", help="GPUs to run on (default: all of this host)")
    machine.add_argument("--gpu", choices=sorted(KINDS), help="their kind, for the plan (default: as they are named)")
    machine.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                         help="a number of the plan's, as of tools/plan.py; repeatable")  # fmt: skip
    how = parser.add_argument_group("how")
    how.add_argument("--steps", type=int, default=2, metavar="N", help="timed steps; the median counts (%(default)s)")
    how.add_argument("--budget", type=float, metavar="SECONDS", help="begin nothing after so many seconds")
    how.add_argument("--limit", type=float, default=300, metavar="SECONDS", help="of one measurement (%(default)g)")
    how.add_argument("--dry-run", action="store_true", help="show the plan and stop; needs no GPU")
    output = parser.add_argument_group("output")
    add_output_options(output, benchmark)
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # tiny shapes, on the CPU too


def usable_gpus(arguments: argparse.Namespace) -> int:
    """How many GPUs are to be used. Raises ConfigError where there are fewer, unless nothing is to be run on them."""
    present = torch.cuda.device_count()
    wanted = arguments.gpus or present
    anywhere = arguments.dry_run or arguments.tiny
    if wanted < 1 or (wanted > present and not anywhere):
        raise ConfigError(
            f"--gpus={wanted}, and this host shows {counted(present, 'CUDA device')}.",
            "Every rank drives one.",
            "Run it where they are; --dry-run --gpus=N shows the plan anywhere.",
        )
    return int(wanted)


def hardware_of(arguments: argparse.Namespace) -> Hardware:
    """The plan's numbers for the GPUs that are here, or that were named. Raises ConfigError."""
    kind = arguments.gpu
    if kind is None:
        name = torch.cuda.get_device_properties(0).name if torch.cuda.is_available() else "no CUDA device"
        kind = next((known for known in KINDS if known.upper() in name), None)
        if kind is None and not arguments.tiny:
            raise ConfigError(
                f"the plan has no numbers for {name}.",
                "It proposes and predicts by measured rates.",
                f"Name the nearest kind with --gpu, of {', '.join(sorted(KINDS))}, and correct it with --set.",
            )
    return hardware(kind or "h200", None, arguments.set)


def workload_of(spread: Spread) -> Workload:
    """What the plan should take sequences to hold: those of the steps that are measured, one step after the other."""
    case, architecture = spread.sized_case(), spread.architecture()
    steps = range(spread.different_steps)
    return workload([batch for step in steps for batch in batches(case, architecture, first=step * case.micro_batches)])


def show_plan(plan: Sequence[tuple[Spread, Prediction]]) -> int:
    """What would be measured, with the plan's predictions."""
    headings = ("case", "GPUs", "layout", "recompute", "precision", "layers", "tokens/s/GPU", "TFLOP/s/GPU", "GiB")
    rows = [
        [
            spread.case, str(spread.gpus), spread.label, spread.recomputation, spread.precision, str(spread.layers),
            f"{said.tokens_per_second:,.0f}", f"{said.tflops:.0f}", f"{said.peak / GIB:.1f}",
        ]
        for spread, said in plan
    ]  # fmt: skip
    print_table("the plan and its predictions", headings, rows)
    return ExitCode.OK


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on the console; names, the first four columns, to the left."""
    table = Table(title=title, title_justify="left")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number < 4 else "right")
    for row in rows:
        table.add_row(*map(Text, row))  # nothing of a cell is markup
    Console(width=None if sys.stdout.isatty() else 220).print(table)


@dataclass(frozen=True)
class SpreadBenchmark:
    """A benchmark on several GPUs: its command line, and what it says of what it found.

    Attributes:
        name: of its file and of its results.
        title, question: of its page.
        description, examples: of its command line.
        add_options: adds the options of its own to the group of what is measured.
        planned: gives what is measured, from the arguments, the number of GPUs and their kind.
        headings, rows_of: of its table.
        below: more of its page, as Markdown.
    """

    name: str
    title: str
    question: str
    description: str
    examples: str
    add_options: Callable[[argparse._ArgumentGroup], None]
    planned: Callable[[argparse.Namespace, int, Hardware], list[tuple[Spread, Prediction]]]
    headings: Sequence[str]
    rows_of: Callable[[Sequence[Row]], list[list[str]]]
    below: Callable[[], str] | None = None

    def page(self, record: Record) -> Page:
        """What this benchmark says of a record."""
        page = page_of(self.title, self.question, record, self.headings, self.rows_of)
        return page if self.below is None else replace(page, body=f"{page.body}\n\n{self.below()}")

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run the command line; 0 if no measurement failed."""
        parser = CommandLine(description=self.description, epilog=self.examples)
        what = parser.add_argument_group("what is measured")
        self.add_options(what)
        _add_common_options(self.name, parser, what)
        arguments = parser.parse_args(argv)
        try:
            plan = self.planned(arguments, usable_gpus(arguments), hardware_of(arguments))
        except ConfigError as error:
            return wrong_usage(error)
        return show_plan(plan) if arguments.dry_run else self._measure(arguments, plan)

    def _measure(self, arguments: argparse.Namespace, plan: Sequence[tuple[Spread, Prediction]]) -> int:
        """Measure the plan, keep what was found after every measurement, and show it; 0 if none failed."""
        begun = datetime.datetime.now(datetime.UTC)
        rows: list[Row] = []
        machine: dict[str, Any] = {"device": device()}
        spreads = [spread for spread, _ in plan]
        gpus = max(spread.gpus for spread in spreads)
        path = arguments.output
        with log_folder() as logs:
            measuring = measure_spreads(spreads, arguments.steps, logs.folder, arguments.budget, arguments.limit)
            for (found, environment), (_, said) in zip(measuring, plan, strict=True):
                rows.append((found, said))
                logs.wanted |= found.status == "failed"
                machine = environment or machine
                record = {
                    **facts(self.name, arguments.commit, machine, begun, gpus),
                    "timing": f"median of {arguments.steps} steps after {WARM_UP_STEPS}",
                    "measurements": recorded(rows),
                }
                path = write(arguments.output, record, self.page(record), begun)
        print_table(self.title, self.headings, self.rows_of(rows))
        for line in remarks(rows):
            print(line)
        print(f"{path}.json and .md")
        return ExitCode.FAILED if logs.wanted else ExitCode.OK
