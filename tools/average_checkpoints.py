"""Average the weights of several checkpoints into a new Hugging Face directory."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from megatron_apriel.command_line import CommandLine, bytes_above_zero
from megatron_apriel.errors import ConfigError, ExitCode, run_command
from megatron_apriel.formats.json_files import read_json
from megatron_apriel.formats.run_directory import is_checkpoint
from megatron_apriel.formats.sidecars import CONFIG
from megatron_apriel.outputs import check_destination, followed
from megatron_apriel.quantities import counted
from megatron_apriel.surgery import run_steps
from megatron_apriel.surgery.average import AveragePlan, Distances, average, plan_average
from megatron_apriel.surgery.average_inputs import AverageInput
from megatron_apriel.surgery.mean import normalised
from megatron_apriel.tables import figures, standard_output
from megatron_apriel.terminal import quiet_libraries, say

EXAMPLES = """\
examples:
  # the recipe's stage 1: the equal mean of six equally spaced checkpoints of a run
  python tools/average_checkpoints.py models/stage1 --run runs/cpt_stage1 --equispaced 6

  # the release: the mean of two finished stages, computed twice and compared
  python tools/average_checkpoints.py models/release --checkpoints runs/sft_subset/final runs/sft_long/final --verify

  # three quarters of one and a quarter of the other, in at most 500 MB of memory
  python tools/average_checkpoints.py DST --checkpoints A B --weights 3 1 --max-memory 500MB

  # what would be done; nothing is written
  python tools/average_checkpoints.py models/stage1 --run runs/cpt_stage1 --steps 1000 2000 3000 --dry-run

Equal weights give the exact mean, rounded once. NaN, infinity and checkpoints that differ in tensors, shapes, dtypes or
architecture are refused by name. A table at the end says how far each input lies from the mean. DST is whole or as it
was.
"""


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("destination", metavar="DST", help="Hugging Face directory to be made")
    inputs = parser.add_argument_group("what is averaged")
    kind = inputs.add_mutually_exclusive_group(required=True)
    kind.add_argument(
        "--checkpoints", nargs="+", metavar="DIR", help="Hugging Face directories, or single steps of runs"
    )
    kind.add_argument("--run", metavar="RUN", help="a stage's output directory, whose own checkpoints are averaged")
    steps = inputs.add_mutually_exclusive_group()
    steps.add_argument(
        "--equispaced", type=int, metavar="N", help="with --run: N equally spaced ones, ending with the last"
    )
    steps.add_argument("--last", type=int, metavar="N", help="with --run: the last N")
    steps.add_argument("--steps", type=int, nargs="+", metavar="STEP", help="with --run: these")
    inputs.add_argument("--weights", type=float, nargs="+", metavar="W", help="one per checkpoint (default: all equal)")
    work = parser.add_argument_group("work and output")
    work.add_argument(
        "--max-memory",
        type=bytes_above_zero,
        default="2GB",
        metavar="SIZE",
        help="of the process (default: %(default)s)",
    )
    work.add_argument("--dry-run", action="store_true", help="check the inputs, print the plan, and write nothing")
    work.add_argument(
        "--verify", action="store_true", help="compute everything again and compare with what was written"
    )
    work.add_argument("--overwrite", action="store_true", help="replace an earlier result at DST")
    return parser


def _inputs(arguments: argparse.Namespace) -> list[AverageInput]:
    selection = [arguments.equispaced, arguments.last, arguments.steps]
    if arguments.checkpoints:
        if any(value is not None for value in selection):
            raise ConfigError(
                "--equispaced, --last and --steps choose among a run's checkpoints.", fix="Give --run RUN."
            )
        _refuse_repeats([str(followed(path)) for path in arguments.checkpoints], "--checkpoints")
        return [_opened(Path(path)) for path in arguments.checkpoints]
    available = run_steps.available_steps(arguments.run)
    steps = list(available)
    if arguments.equispaced is not None:
        chosen = run_steps.equispaced(steps, arguments.equispaced)
    elif arguments.last is not None:
        chosen = run_steps.last(steps, arguments.last)
    elif arguments.steps is not None:
        _refuse_repeats([str(step) for step in arguments.steps], "--steps")
        chosen = run_steps.chosen(steps, arguments.steps)
    else:
        raise ConfigError(
            "--run needs to know which checkpoints.", fix="Give --equispaced N, --last N or --steps STEP [STEP ...]."
        )
    return [_opened_step(available[step]) for step in chosen]


def _opened(path: Path) -> AverageInput:
    """A Hugging Face directory, or a run's distributed checkpoint."""
    return _opened_step(path) if is_checkpoint(path) else AverageInput.from_directory(path)


def _opened_step(path: Path) -> AverageInput:
    # Reading a distributed checkpoint needs torch; Hugging Face directories are averaged without it.
    quiet_libraries()
    from megatron_apriel.checkpoint.distributed_weights import DistributedCheckpointReader

    reader = DistributedCheckpointReader(path)
    return AverageInput(str(path), reader, reader.sidecars, read_json(reader.sidecars / CONFIG))


def _refuse_repeats(values: Sequence[str], option: str) -> None:
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        raise ConfigError(
            f"{option} names {repeated[0]} more than once.", fix="Use --weights to let one count for more."
        )


def _weights(arguments: argparse.Namespace, inputs: int) -> tuple[float, ...] | None:
    if arguments.weights is None:
        return None
    if len(arguments.weights) != inputs:
        raise ConfigError(
            f"--weights has {counted(len(arguments.weights), 'number')} for {counted(inputs, 'checkpoint')}.",
            fix="Give one each.",
        )
    if not all(math.isfinite(weight) and weight > 0 for weight in arguments.weights):
        shown = " ".join(f"{weight:g}" for weight in arguments.weights)
        raise ConfigError(
            f"--weights {shown}: every weight must be a positive number.", fix="They need not add up to 1."
        )
    return normalised(arguments.weights)


def _print_plan(plan: AveragePlan, console: Console) -> None:
    table = figures("checkpoint", "weight")
    table.columns[0].overflow = "fold"
    for number, given in enumerate(plan.inputs):
        weight = f"1/{len(plan.inputs)}" if plan.weights is None else f"{plan.weights[number]:.6g}"
        table.add_row(f"{number + 1}  {given.label}", weight)
    console.print(table)
    tensors = sum(len(shard.tensors) for shard in plan.shards)
    say(f"{counted(tensors, 'tensor')}, {counted(plan.size, 'byte')}, in {counted(len(plan.shards), 'file')}")


def _print_distances(plan: AveragePlan, distances: Distances, console: Console) -> None:
    say("distance from the mean, relative to the mean's norm (L2):")
    table = figures("component", *(str(number + 1) for number in range(len(plan.inputs))))
    for component, values in distances.relative().items():
        table.add_row(component, *(f"{value:.3g}" for value in values))
    console.print(table)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns 0 only when the result is whole."""
    arguments = _parser().parse_args(argv)
    inputs = _inputs(arguments)
    plan = plan_average(inputs, _weights(arguments, len(inputs)), max_memory=arguments.max_memory)
    console = standard_output()
    _print_plan(plan, console)
    check_destination(arguments.destination, arguments.overwrite, "config.json", [given.label for given in inputs])
    if arguments.dry_run:
        return ExitCode.OK
    distances = average(plan, arguments.destination, overwrite=arguments.overwrite, verify=arguments.verify)
    _print_distances(plan, distances, console)
    checked = "; computed again and equal" if arguments.verify else ""
    say(f"{arguments.destination} is whole{checked}.")
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(run_command(main))
