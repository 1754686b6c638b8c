"""How throughput holds as GPUs of one host are added: data parallelism at constant work for each GPU.

Slices of the full-width model train on 1, 2, 4, ... GPUs, every GPU the same number of micro-batches, with the
distributed optimizer and its communication overlapped. By the trainer's own step.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cases import CASES
from benchmarks.report import Page, Record
from benchmarks.spread import Prediction, Spread, predicted
from benchmarks.spread_cli import PRECISIONS, add_common_options, measure, workload_of
from benchmarks.spread_report import SCALING_HEADINGS, page_of, scaling_rows
from megatron_apriel.command_line import CommandLine, chosen
from megatron_apriel.errors import run_command
from megatron_apriel.planning.hardware import Hardware

EXAMPLES = """\
examples:
  # 1, 2, 4, ... up to all GPUs of this host, in bf16 and FP8
  python benchmarks/scaling.py --precision bf16,delayed

  # packed documents, four micro-batches a GPU
  python benchmarks/scaling.py --case 32768-packed --micro-batches 4 --layers 4
"""


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(description=__doc__, epilog=EXAMPLES)
    what = parser.add_argument_group("what is measured")
    what.add_argument("--case", choices=CASES, default="8192", help="kind of sequences (%(default)s)")
    what.add_argument("--layers", type=int, default=8, metavar="N", help="decoder layers of the slice (%(default)s)")
    what.add_argument("--micro-batches", type=int, default=8, metavar="N", help="of each GPU in a step (%(default)s)")
    add_common_options("scaling", parser, what)
    return parser


def _plan(arguments: argparse.Namespace, gpus: int, gpu: Hardware) -> list[tuple[Spread, Prediction]]:
    counts = [1 << power for power in range(gpus.bit_length()) if 1 << power < gpus] + [gpus]
    plan = []
    for count in counts:
        for precision in chosen(arguments.precision, PRECISIONS, "--precision"):
            sequences = count * arguments.micro_batches
            spread = Spread(arguments.case, precision, arguments.layers, count, sequences, tiny=arguments.tiny)
            plan.append((spread, predicted(spread, gpu, workload_of(spread))))
    return plan


def page(record: Record) -> Page:
    """What this benchmark says of a record."""
    question = "What does data parallelism cost as GPUs of one host are added?"
    return page_of("Scaling over GPUs", question, record, SCALING_HEADINGS, scaling_rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if no measurement failed."""
    return measure("scaling", _parser().parse_args(argv), _plan, page, SCALING_HEADINGS, scaling_rows)


if __name__ == "__main__":
    sys.exit(run_command(main))
