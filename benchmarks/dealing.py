"""How uneven the work of data-parallel ranks is on documents of real lengths, dealt in order and dealt evenly.

Slices of the full-width model train on sequences that are packed, as a stage packs them, from documents as long as the
source files of Python's standard library and of PyTorch: from a hundred tokens to several sequences. Both ways of
dealing train on the same global batches, several different steps each, by the trainer's own step.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cases import CASES, real_lengths
from benchmarks.spread import Prediction, Spread, predicted
from benchmarks.spread_cli import PRECISIONS, SpreadBenchmark, workload_of
from benchmarks.spread_report import DEALING_HEADINGS, dealing_rows
from megatron_apriel.command_line import chosen
from megatron_apriel.config.choices import DEALINGS
from megatron_apriel.errors import run_command
from megatron_apriel.planning.hardware import Hardware

EXAMPLES = """\
examples:
  # data-parallel over all GPUs of this host, in bf16 and FP8
  python benchmarks/dealing.py --precision bf16,delayed

  # two micro-batches a GPU, where chance evens out less
  python benchmarks/dealing.py --micro-batches 2 --different-steps 8
"""


def _add_options(what: argparse._ArgumentGroup) -> None:
    what.add_argument("--case", choices=CASES, default="32768-real", help="kind of sequences (%(default)s)")
    what.add_argument("--layers", type=int, default=4, metavar="N", help="decoder layers of the slice (%(default)s)")
    what.add_argument("--micro-batches", type=int, default=4, metavar="N", help="of each GPU in a step (%(default)s)")
    what.add_argument("--different-steps", type=int, default=6, metavar="N", help="of other sequences (%(default)s)")


def _plan(arguments: argparse.Namespace, gpus: int, gpu: Hardware) -> list[tuple[Spread, Prediction]]:
    plan = []
    for precision in chosen(arguments.precision, PRECISIONS, "--precision"):
        for dealing in DEALINGS:
            spread = Spread(
                arguments.case, precision, arguments.layers, gpus, gpus * arguments.micro_batches,
                {"dealing": dealing}, different_steps=arguments.different_steps, tiny=arguments.tiny,
            )  # fmt: skip
            plan.append((spread, predicted(spread, gpu, workload_of(spread))))
    return plan


def _documents() -> str:
    lengths = sorted(real_lengths())
    return (
        f"{len(lengths):,} documents of {sum(lengths) / 1e6:.1f} M tokens: half have less than"
        f" {lengths[len(lengths) // 2]:,}, one in ten more than {lengths[len(lengths) * 9 // 10]:,}, and the longest"
        f" {lengths[-1]:,}, which is split."
    )


BENCHMARK = SpreadBenchmark(
    name="dealing",
    title="Dealing sequences to ranks",
    question="How much faster is a step whose sequences are dealt evenly to data-parallel ranks?",
    description=__doc__,
    examples=EXAMPLES,
    add_options=_add_options,
    planned=_plan,
    headings=DEALING_HEADINGS,
    rows_of=dealing_rows,
    below=_documents,
)
page, main = BENCHMARK.page, BENCHMARK.main


if __name__ == "__main__":
    sys.exit(run_command(main))
