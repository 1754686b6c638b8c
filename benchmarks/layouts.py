"""Train the recipe's stages on several GPUs of one host, on the layouts that the plan thinks best, or on given ones.

Every stage runs on the full-width model at its true sequence length, with random weights and sequences like the
stage's, by the trainer's own step. The plan's prediction for the very same step stands beside what was measured.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cases import STAGES
from benchmarks.spread import Prediction, Spread, predicted
from benchmarks.spread_cli import PRECISIONS, SpreadBenchmark, workload_of
from benchmarks.spread_report import LAYOUT_HEADINGS, layout_rows
from megatron_apriel.command_line import above_zero, chosen
from megatron_apriel.config.choices import Fp8Weights
from megatron_apriel.config.training_sections import parse_host_share
from megatron_apriel.config.yaml_text import parse_yaml
from megatron_apriel.errors import ConfigError, run_command
from megatron_apriel.parallel.checks import check_layout
from megatron_apriel.planning.hardware import Hardware
from megatron_apriel.planning.layouts import Candidate, candidates
from megatron_apriel.planning.workload import Workload

EXAMPLES = """\
examples:
  # the three best layouts of CPT-1, CPT-2 and SFT at full size on all GPUs of this host
  python benchmarks/layouts.py

  # what would be measured on eight H200, from anywhere
  python benchmarks/layouts.py --gpus 8 --gpu h200 --dry-run

  # half the depth, where the whole model does not fit; every layout of two GPUs
  python benchmarks/layouts.py --stages cpt_stage2 --layers 24 --best 8

  # what a tensor-parallel step waits for, with gathers and scatters behind products and beside them
  python benchmarks/layouts.py --gpus 2 --stages cpt_stage2 --layers 8 --precision bf16,delayed \\
      --parallel '{tensor: 2, sequence: true}' --parallel '{tensor: 2, sequence: true, tensor_overlap: true}'

  # how long the host takes to start a layer's kernels, by layout: of sequences so short that the GPUs wait for it
  python benchmarks/layouts.py --gpus 2 --stages cpt_stage2 --layers 8 --precision delayed --tokens 512 \\
      --parallel '{}' --parallel '{context: 2}' --parallel '{tensor: 2, sequence: true}'

  # the whole model without splitting it: optimizer states that do not fit lie on the host
  python benchmarks/layouts.py --gpus 2 --stages cpt_stage2 --parallel '{}' --recompute full --host auto
"""


def _add_options(what: argparse._ArgumentGroup) -> None:
    what.add_argument("--stages", default="cpt_stage1,cpt_stage2,sft", metavar="A,B",
                      help=f"of {', '.join(STAGES)} (default: %(default)s)")  # fmt: skip
    what.add_argument("--best", type=int, default=3, metavar="N", help="layouts of each stage (%(default)s)")
    what.add_argument("--parallel", action="append", metavar="YAML",
                      help="run this parallel section instead of the plan's best layouts; repeatable")  # fmt: skip
    what.add_argument("--recompute", default="none", metavar="MODE[:LAYERS]",
                      help="with --parallel: what is recomputed (%(default)s)")  # fmt: skip
    what.add_argument("--host", type=parse_host_share, default=0.0, metavar="SHARE",
                      help="part of the optimizer's states in host memory, or auto (%(default)g)")  # fmt: skip
    what.add_argument("--fp8-weights", choices=get_args(Fp8Weights),
                      help="8-bit copies (as the plan's best layouts have them; with --parallel: kept)")  # fmt: skip
    what.add_argument("--layers", type=int, default=48, metavar="N", help="decoder layers (%(default)s)")
    what.add_argument("--tokens", type=above_zero, metavar="N",
                      help="of a sequence, in place of the stage's; with few, a step is the host's time")  # fmt: skip
    what.add_argument("--sequences", type=int, default=8, metavar="N", help="of a step, over all GPUs (%(default)s)")


def spread_of(candidate: Candidate, bare: Spread) -> Spread:
    """The measurement of a layout that the plan proposes."""
    config = candidate.config
    return replace(
        bare,
        parallel=config.parallel.model_dump(mode="json"),
        recompute=config.recompute.mode,
        recompute_layers=config.recompute.layers,
        inputs=config.recompute.inputs,
        fp8_weights=config.precision.fp8_weights,
    )


def _given(bare: Spread, arguments: argparse.Namespace) -> list[Spread]:
    """The measurements of the layouts that were named. Raises ConfigError for one that cannot be."""
    mode, _, layers = arguments.recompute.partition(":")
    spreads = []
    for text in arguments.parallel:
        try:
            recomputed = int(layers) if layers else None
            spread = replace(
                bare, parallel=parse_yaml(text, "--parallel")[0], recompute=mode, recompute_layers=recomputed
            )
            check_layout(spread.config(), spread.architecture(), spread.gpus)
        except (TypeError, ValueError) as error:  # pydantic's errors are ValueErrors
            raise ConfigError(f"--parallel={text} --recompute={arguments.recompute} is no layout: {error}") from None
        spreads.append(spread)
    return spreads


def _proposed(
    stage: str, bare: Spread, weights: Fp8Weights | None, best: int, gpu: Hardware, work: Workload
) -> list[Spread]:
    """The measurements of the plan's best layouts for a stage, with given 8-bit copies of weights or those that it
    chooses. Raises ConfigError where none fits.
    """
    config = bare.config()
    if weights is None:
        precision = type(config.precision).model_validate(config.precision.model_dump(exclude={"fp8_weights"}))
        config = config.model_copy(update={"precision": precision})
    found = candidates(config, bare.architecture(), bare.gpus, gpu, work).fitting()
    if not found:
        raise ConfigError(
            f"no layout of {stage} with {bare.layers} layers in {bare.precision} fits {bare.gpus} {gpu.name}.",
            f"The plan leaves {gpu.reserve:g} GiB of each GPU to CUDA, NCCL and the allocator's gaps.",
            "Give fewer --layers, more --gpus, other --stages, --host=auto, or a smaller --set reserve=GIB.",
        )
    return [spread_of(candidate, bare) for candidate in found[:best]]


def _plan(arguments: argparse.Namespace, gpus: int, gpu: Hardware) -> list[tuple[Spread, Prediction]]:
    """What is measured of each stage and precision, with predictions. Raises ConfigError where nothing can be."""
    if arguments.recompute != "none" and not arguments.parallel:
        raise ConfigError(
            f"--recompute={arguments.recompute} is given without --parallel.",
            "The plan's best layouts say themselves what is recomputed.",
            "Leave it out, or name the layout with --parallel.",
        )
    plan: list[tuple[Spread, Prediction]] = []
    for stage in chosen(arguments.stages, list(STAGES), "--stages"):
        for precision in chosen(arguments.precision, PRECISIONS, "--precision"):
            weights: Fp8Weights | None = "kept" if precision == "bf16" else arguments.fp8_weights
            bare = Spread(
                STAGES[stage], precision, arguments.layers, gpus, arguments.sequences,
                host=arguments.host, fp8_weights=weights or "kept", tokens=arguments.tokens, tiny=arguments.tiny,
            )  # fmt: skip
            work = workload_of(bare)
            spreads = (
                _given(bare, arguments)
                if arguments.parallel
                else _proposed(stage, bare, weights, arguments.best, gpu, work)
            )
            plan += [(spread, predicted(spread, gpu, work)) for spread in spreads]
    return plan


BENCHMARK = SpreadBenchmark(
    name="layouts",
    title="Layouts of several GPUs",
    question="How fast do the recipe's stages train on the layouts that the plan thinks best, and does the plan hold?",
    description=__doc__,
    examples=EXAMPLES,
    add_options=_add_options,
    planned=_plan,
    headings=LAYOUT_HEADINGS,
    rows_of=layout_rows,
)
page, main = BENCHMARK.page, BENCHMARK.main


if __name__ == "__main__":
    sys.exit(run_command(main))
