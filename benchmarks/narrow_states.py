"""Train the same small model on the same real text with exact optimizer states and with narrow ones, and compare.

Every form of states is trained with the same seeds: a seed gives the first weights and the order of the sequences, so
runs of one seed differ in the states' arithmetic alone. What rounding alone does is shown by a control: exact states,
with the micro-batches of each step in reverse order, which are the same sums rounded otherwise. Judged is the loss on
text that was not trained on: the mean difference over the seeds must be no larger than 0.1%, or twice the control's
deviation where that is more. Forms train side by side on one GPU, their seeds one after another. The exit code is 1 if
a form does not hold or a run failed. ``loss_runs.py`` has model and text.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.cases import CASES
from benchmarks.loss_runs import (
    add_run_options,
    architecture_of,
    as_run,
    rate_at,
    run_all,
    settings_of,
    words_of_text,
)
from benchmarks.measure import environment
from benchmarks.options import add_output_options, require_gpu, wrong_usage
from benchmarks.report import Page, Record, markdown, write
from benchmarks.versions import facts
from megatron_apriel.command_line import CommandLine
from megatron_apriel.config.training_sections import OptimizerSection
from megatron_apriel.errors import ConfigError, ExitCode, run_command

EXACT, CONTROL = "exact", "exact, reversed"
FORMS: dict[str, dict[str, Any]] = {
    EXACT: {},
    CONTROL: {},
    "16-bit moments": {"moments": "bfloat16"},
    "24-bit sums": {"gradients": "24bit"},
    "all narrow": {"moments": "int8", "master": "24bit", "gradients": "24bit"},
}
VOCABULARY, HELD_OUT = 16384, 16
ALLOWANCE = 0.001
"""Relative difference of held-out losses that is none."""
SEEDS = ("seeds",)
"""The option that runs have here besides those of every comparison."""
HEADINGS = ("states", "bytes a parameter", "held-out loss", "difference", "of each seed", "allowed", "seconds")


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(
        description=__doc__,
        epilog="example:\n  python benchmarks/narrow_states.py --steps 400 --peak 1e-5",
    )
    training = add_run_options(parser, hidden=512, sequence_length=2048, steps=300, peak=3e-4)
    training.add_argument("--seeds", type=int, default=3, help="%(default)s")
    compared = parser.add_argument_group("comparison")
    compared.add_argument("--forms", default=";".join(FORMS), metavar="A;B", help="default: %(default)s")
    compared.add_argument("--at-once", type=int, default=5, metavar="N", help="forms side by side (%(default)s)")
    add_output_options(parser, "narrow_states")
    return parser


def train(arguments: argparse.Namespace, tokens: torch.Tensor) -> dict[str, Any]:
    """Of one form: held-out loss and last loss of each seed, and what the states take."""
    sequences = tokens.view(-1, arguments.sequence_length)
    held_out, last, size = zip(*(_train(arguments, sequences, seed) for seed in range(arguments.seeds)), strict=True)
    return {"held_out": held_out, "last": last, "bytes": size[0]}


def _train(arguments: argparse.Namespace, tokens: torch.Tensor, seed: int) -> tuple[float, float, float]:
    from benchmarks.stages import stage_config
    from megatron_apriel.parallel import groups
    from megatron_apriel.parallel.layout import Layout
    from megatron_apriel.testing.batches import make_batch
    from megatron_apriel.train.trainer import Trainer

    count, architecture = arguments.micro_batches, architecture_of(arguments, VOCABULARY)
    case = replace(CASES["8192"], sequence_length=arguments.sequence_length, micro_batches=count)
    optimizer = OptimizerSection(peak=arguments.peak, **FORMS[arguments.run])
    config = stage_config(case, "bf16", compute="bf16").model_copy(update={"optimizer": optimizer})
    held_out, trained = tokens[:HELD_OUT], tokens[HELD_OUT:]
    order = torch.randperm(len(trained), generator=torch.Generator().manual_seed(seed)).view(-1, count)
    with groups.initialized(Layout(), seed) as device:

        def batches(rows: torch.Tensor) -> list[Any]:
            return [make_batch(architecture, [row.tolist()]).to(device) for row in rows]

        trainer, last = Trainer(architecture, config, Layout()), float("nan")
        for step in range(arguments.steps):
            places = order[step % len(order)]
            places = places.flip(0) if arguments.run == CONTROL else places
            rate = rate_at(step, arguments.steps, arguments.peak)
            result = trainer.step(iter(batches(trained[places])), rate)
            if not result.applied:
                raise ArithmeticError(f"step {step} was skipped: loss {result.loss}, norm {result.gradient_norm}")
            last = result.loss
        return trainer.evaluate(iter(batches(held_out)), HELD_OUT).loss, last, bytes_of_a_parameter(trainer)


def bytes_of_a_parameter(trainer: Any) -> float:
    """Of weights, gradients and states together."""
    from megatron_apriel.train.optimizer import own_optimizers

    parameters = [parameter for chunk in trainer.chunks for parameter in chunk.parameters()]
    states = sum(tensor.nbytes for own in own_optimizers(trainer.optimizer) for tensor in own.states.tensors())
    sums = sum((3 if hasattr(one, "gradient_sums") else 4) * one.numel() for one in parameters)
    return (sum(one.nbytes for one in parameters) + sums + states) / sum(one.numel() for one in parameters)


def differences(record: Record) -> dict[str, list[float]]:
    """Of each form that was trained, how far each seed's held-out loss lies above that of exact states."""
    runs = {form: run for form, run in record["runs"].items() if "held_out" in run}
    if EXACT not in runs:
        return {}
    return {
        form: [one / exact - 1 for one, exact in zip(run["held_out"], runs[EXACT]["held_out"], strict=True)]
        for form, run in runs.items()
        if form != EXACT
    }


def allowed(record: Record) -> float:
    """The largest mean difference that is none."""
    control = differences(record).get(CONTROL, [0.0])
    return max(ALLOWANCE, 2 * mean(one**2 for one in control) ** 0.5)


def rows(record: Record) -> list[list[str]]:
    """One row a form that was trained, in the columns of :data:`HEADINGS`."""
    found, most = differences(record), allowed(record)
    return [
        [
            form,
            f"{run['bytes']:.2f}",
            f"{mean(run['held_out']):.4f}",
            f"{mean(found[form]):+.3%}" if form in found else "-",
            ", ".join(f"{one:+.3%}" for one in found.get(form, [])) or "-",
            f"{most:.3%}" if form in found and form != CONTROL else "-",
            f"{run['seconds']:.0f}",
        ]
        for form, run in record["runs"].items()
        if "held_out" in run
    ]


def _model(record: Record) -> str:
    words = f"{record['hidden']} wide, {record['layers']} layers, {record['steps']} steps of real text"
    return f"{words}, learning rate {record['peak']:g}"


def page(record: Record) -> Page:
    """What this benchmark says of a record."""
    return Page(
        title="Loss with narrow optimizer states",
        question="Do fewer bits for moments, masters and gradient sums change what is learned, beside rounding alone?",
        configuration=f"{_model(record)}, {record['micro_batches']} micro-batches of {record['sequence_length']} "
        f"tokens a step, {record['seeds']} seeds, vocabulary of {VOCABULARY} words",
        measured=[f"{_model(record)}, {form}" for form, run in record["runs"].items() if "held_out" in run],
        body=markdown(HEADINGS, rows(record)),
    )


def holds(record: Record) -> bool:
    """Whether all runs ended and every form's mean difference is none."""
    if not all("held_out" in run for run in record["runs"].values()):
        return False
    # Not "greater": a loss that is no number compares as neither.
    found, most = differences(record), allowed(record)
    return all(abs(mean(found[form])) <= most for form in found if form != CONTROL)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 0 if every form holds."""
    arguments = _parser().parse_args(argv)
    if arguments.run:
        return as_run(arguments, train)
    try:
        names = [name for part in arguments.forms.split(";") if (name := part.strip())]
        if wrong := [name for name in names if name not in FORMS]:
            raise ConfigError(f"--forms: there is no {wrong[0]!r}.", fix=f"Valid: {'; '.join(FORMS)}.")
        if not arguments.tiny:
            require_gpu("Forms of states are compared")
    except ConfigError as error:
        return wrong_usage(error)
    begun = datetime.datetime.now(datetime.UTC)
    count = (arguments.steps * arguments.micro_batches + HELD_OUT) * arguments.sequence_length
    tokens = words_of_text(count, VOCABULARY)
    record = facts("narrow_states", arguments.commit, environment(), begun) | settings_of(arguments, SEEDS)
    record |= {"runs": run_all(__file__, arguments, names, tokens, SEEDS)}
    path = write(arguments.output, record, page(record), begun)
    table = Table(*HEADINGS, title=_model(record))
    for cells in rows(record):
        table.add_row(*cells)
    Console().print(table)
    print(f"{path}.json and .md")
    return ExitCode.OK if holds(record) else ExitCode.FAILED


if __name__ == "__main__":
    sys.exit(run_command(main))
