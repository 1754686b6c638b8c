"""Train the recipe's stages on several GPUs of one host, each on the layouts that the plan thinks best.

Every stage runs on the full-width model at its true sequence length, with random weights and sequences like the
stage's, by the trainer's own step. The plan's prediction for the very same step stands beside what was measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cases import STAGES
from benchmarks.options import wrong_usage
from benchmarks.report import Page, Record
from benchmarks.spread import Prediction, Spread, predicted
from benchmarks.spread_cli import (
    PRECISIONS,
    add_common_options,
    finish,
    hardware_of,
    show_plan,
    usable_gpus,
    workload_of,
)
from benchmarks.spread_report import LAYOUT_HEADINGS, layout_rows, page_of
from megatron_apriel.command_line import CommandLine, chosen
from megatron_apriel.errors import ConfigError, run_command
from megatron_apriel.planning.hardware import Hardware
from megatron_apriel.planning.layouts import Candidate, candidates

EXAMPLES = """\
examples:
  # the three best layouts of CPT-1, CPT-2 and SFT at full size on all GPUs of this host
  python benchmarks/layouts.py

  # what would be measured on eight H200, from anywhere
  python benchmarks/layouts.py --gpus 8 --gpu h200 --dry-run

  # half the depth, where the whole model does not fit; every layout of two GPUs
  python benchmarks/layouts.py --stages cpt_stage2 --layers 24 --best 8
"""


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(description=__doc__, epilog=EXAMPLES)
    what = parser.add_argument_group("what is measured")
    what.add_argument("--stages", default="cpt_stage1,cpt_stage2,sft", metavar="A,B",
                      help=f"of {', '.join(STAGES)} (default: %(default)s)")  # fmt: skip
    what.add_argument("--best", type=int, default=3, metavar="N", help="layouts of each stage (%(default)s)")
    what.add_argument("--layers", type=int, default=48, metavar="N", help="decoder layers (%(default)s)")
    what.add_argument("--sequences", type=int, default=8, metavar="N", help="of a step, over all GPUs (%(default)s)")
    add_common_options("layouts", parser, what)
    return parser


def spread_of(candidate: Candidate, case: str, arguments: argparse.Namespace, precision: str) -> Spread:
    """The measurement of a layout that the plan proposes."""
    return Spread(
        case=case,
        precision=precision,
        layers=arguments.layers,
        gpus=candidate.layout.world_size,
        sequences=arguments.sequences,
        parallel=candidate.config.parallel.model_dump(mode="json"),
        recompute=candidate.config.recompute.mode,
        tiny=arguments.tiny,
    )


def _plan(arguments: argparse.Namespace, gpus: int, gpu: Hardware) -> list[tuple[Spread, Prediction]]:
    """The best layouts of each stage and precision, with their predictions. Raises ConfigError where none fits."""
    plan: list[tuple[Spread, Prediction]] = []
    for stage in chosen(arguments.stages, list(STAGES), "--stages"):
        for precision in chosen(arguments.precision, PRECISIONS, "--precision"):
            bare = Spread(STAGES[stage], precision, arguments.layers, gpus, arguments.sequences, tiny=arguments.tiny)
            work = workload_of(bare)
            found = candidates(bare.config(), bare.architecture(), gpus, gpu, work).fitting()
            if not found:
                raise ConfigError(
                    f"no layout of {stage} with {arguments.layers} layers in {precision} fits {gpus} {gpu.name}.",
                    f"The plan leaves {gpu.reserve:g} GiB of each GPU to CUDA, NCCL and the allocator's gaps.",
                    "Give fewer --layers, more --gpus, other --stages, or a smaller --set reserve=GIB.",
                )
            for candidate in found[: arguments.best]:
                spread = spread_of(candidate, STAGES[stage], arguments, precision)
                plan.append((spread, predicted(spread, gpu, work)))
    return plan


def page(record: Record) -> Page:
    """What this benchmark says of a record."""
    question = "How fast do the recipe's stages train on the layouts that the plan thinks best, and does the plan hold?"
    return page_of("Layouts of several GPUs", question, record, LAYOUT_HEADINGS, layout_rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if no measurement failed."""
    arguments = _parser().parse_args(argv)
    try:
        gpus, gpu = usable_gpus(arguments), hardware_of(arguments)
        plan = _plan(arguments, gpus, gpu)
    except ConfigError as error:
        return wrong_usage(error)
    if arguments.dry_run:
        return show_plan(plan)
    return finish("layouts", arguments, plan, page, LAYOUT_HEADINGS, layout_rows)


if __name__ == "__main__":
    sys.exit(run_command(main))
