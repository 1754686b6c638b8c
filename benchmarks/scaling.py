"""How throughput holds as GPUs of one host are added: data parallelism at constant work for each GPU.

Slices of the full-width model train on 1, 2, 4, ... GPUs, every GPU the same number of micro-batches, with the
distributed optimizer and its communication overlapped. By the trainer's own step.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cases import CASES
from benchmarks.spread import Prediction, Spread, predicted
from benchmarks.spread_cli import PRECISIONS, SpreadBenchmark, workload_of
from benchmarks.spread_report import SCALING_HEADINGS, scaling_rows
from megatron_apriel.command_line import chosen
from megatron_apriel.errors import run_command
from megatron_apriel.planning.hardware import Hardware

EXAMPLES = """\
examples:
  # 1, 2, 4, ... up to all GPUs of this host, in bf16 and FP8
  python benchmarks/scaling.py --precision bf16,delayed

  # packed documents, four micro-batches a GPU
  python benchmarks/scaling.py --case 32768-packed --micro-batches 4 --layers 4
"""


def _add_options(what: argparse._ArgumentGroup) -> None:
    what.add_argument("--case", choices=CASES, default="8192", help="kind of sequences (%(default)s)")
    what.add_argument("--layers", type=int, default=8, metavar="N", help="decoder layers of the slice (%(default)s)")
    what.add_argument("--micro-batches", type=int, default=8, metavar="N", help="of each GPU in a step (%(default)s)")


def _plan(arguments: argparse.Namespace, gpus: int, gpu: Hardware) -> list[tuple[Spread, Prediction]]:
    counts = [1 << power for power in range(gpus.bit_length()) if 1 << power < gpus] + [gpus]
    plan = []
    for count in counts:
        for precision in chosen(arguments.precision, PRECISIONS, "--precision"):
            sequences = count * arguments.micro_batches
            spread = Spread(arguments.case, precision, arguments.layers, count, sequences, tiny=arguments.tiny)
            plan.append((spread, predicted(spread, gpu, workload_of(spread))))
    return plan


BENCHMARK = SpreadBenchmark(
    name="scaling",
    title="Scaling over GPUs",
    question="What does data parallelism cost as GPUs of one host are added?",
    description=__doc__,
    examples=EXAMPLES,
    add_options=_add_options,
    planned=_plan,
    headings=SCALING_HEADINGS,
    rows_of=scaling_rows,
)
page, main = BENCHMARK.page, BENCHMARK.main


if __name__ == "__main__":
    sys.exit(run_command(main))
