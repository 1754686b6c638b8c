"""Train the same small model on the same real text with exact optimizer states and with narrow ones, and compare.

Every form of states is trained with the same seeds: a seed gives the first weights and the order of the sequences, so
runs of one seed differ in the states' arithmetic alone. What rounding alone does is shown by a control: exact states,
with the micro-batches of each step in reverse order, which are the same sums rounded otherwise. Judged is the loss on
text that was not trained on: the mean difference over the seeds must be no larger than 0.1%, or twice the control's
deviation where that is more. Forms train side by side on one GPU, their seeds one after another. The exit code is 1 if
a form does not hold or a run failed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.cases import CASES
from benchmarks.fp8_loss import rate_at, words_of_text
from benchmarks.measure import environment
from benchmarks.options import add_output_options, require_gpu, wrong_usage
from benchmarks.report import Page, Record, markdown, write
from benchmarks.versions import facts
from megatron_apriel.command_line import CommandLine
from megatron_apriel.config.training_sections import OptimizerSection
from megatron_apriel.errors import ConfigError, ExitCode, run_command
from megatron_apriel.formats.architecture import Architecture, DecoderArchitecture

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
HEADINGS = ("states", "bytes a parameter", "held-out loss", "difference", "of each seed", "allowed", "seconds")


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(
        description=__doc__,
        epilog="example:\n  python benchmarks/narrow_states.py --steps 400 --peak 1e-5",
    )
    model = parser.add_argument_group("model")
    model.add_argument("--layers", type=int, default=8, help="decoder layers (%(default)s)")
    model.add_argument("--hidden", type=int, default=512, help="width, a multiple of 128 (%(default)s)")
    training = parser.add_argument_group("training")
    training.add_argument("--sequence-length", type=int, default=2048, help="tokens of a micro-batch (%(default)s)")
    training.add_argument("--micro-batches", type=int, default=4, help="of a step, 3 at least (%(default)s)")
    training.add_argument("--steps", type=int, default=300, help="%(default)s")
    training.add_argument("--peak", type=float, default=3e-4, help="learning rate after the warm-up (%(default)g)")
    training.add_argument("--seeds", type=int, default=3, help="%(default)s")
    compared = parser.add_argument_group("comparison")
    compared.add_argument("--forms", default=";".join(FORMS), metavar="A;B", help="default: %(default)s")
    compared.add_argument("--at-once", type=int, default=5, metavar="N", help="forms side by side (%(default)s)")
    add_output_options(parser, "narrow_states")
    parser.add_argument("--run", metavar="FORM", help=argparse.SUPPRESS)  # one form, in a process of its own
    parser.add_argument("--tokens", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # allowed without a GPU
    return parser


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Of one form, in this process: held-out loss of each seed, and what the states take."""
    tokens = torch.load(arguments.tokens, weights_only=True).view(-1, arguments.sequence_length)
    begun = time.monotonic()
    runs = [_train(arguments, tokens, seed) for seed in range(arguments.seeds)]
    return {
        "held_out": [loss for loss, _, _ in runs],
        "last": [last for _, last, _ in runs],
        "bytes": runs[0][2],
        "seconds": time.monotonic() - begun,
    }


def _train(arguments: argparse.Namespace, tokens: torch.Tensor, seed: int) -> tuple[float, float, float]:
    from benchmarks.subjects.ours import stage_config
    from megatron_apriel.parallel import groups
    from megatron_apriel.parallel.layout import Layout
    from megatron_apriel.testing.batches import make_batch
    from megatron_apriel.train.trainer import Trainer

    hidden, count = arguments.hidden, arguments.micro_batches
    heads = hidden // 128
    architecture = Architecture(
        DecoderArchitecture(
            hidden, arguments.layers, heads, max(heads // 2, 1), 128, 11 * hidden // 4, VOCABULARY, rope_theta=1e6
        )
    )
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


def _run(arguments: argparse.Namespace, scratch: Path, form: str) -> dict[str, Any]:
    """What a form's own process found, or why it failed."""
    names = ("layers", "hidden", "sequence-length", "micro-batches", "steps", "peak", "seeds")
    options = [f"--{name}={getattr(arguments, name.replace('-', '_'))}" for name in names]
    paths = [f"--tokens={scratch / 'tokens.pt'}", f"--output={scratch}", f"--run={form}"]
    command = [sys.executable, str(Path(__file__).resolve()), *options, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    result = scratch / f"{form}.json"
    if done.returncode or not result.exists():
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        print(f"{form}: failed: {last[:300]}", file=sys.stderr)
        return {"failed": last}
    found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    print(f"{form}: held-out losses {found['held_out']}, {found['seconds']:.0f} s", file=sys.stderr, flush=True)
    return found


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
        found = train(arguments)
        (arguments.output / f"{arguments.run}.json").write_text(json.dumps(found), encoding="utf-8")
        return ExitCode.OK
    chosen = [part.strip() for part in arguments.forms.split(";") if part.strip()]
    if wrong := [part for part in chosen if part not in FORMS]:
        return wrong_usage(ConfigError(f"there are no states {wrong[0]!r}.", fix=f"Forms: {'; '.join(FORMS)}."))
    if not arguments.tiny:
        require_gpu("Forms of states are compared")
    begun = datetime.datetime.now(datetime.UTC)
    names = ("layers", "hidden", "sequence_length", "micro_batches", "steps", "peak", "seeds")
    record: dict[str, Any] = facts("narrow_states", arguments.commit, environment(), begun)
    record |= {name: getattr(arguments, name) for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        count = (arguments.steps * arguments.micro_batches + HELD_OUT) * arguments.sequence_length
        torch.save(words_of_text(count, VOCABULARY), Path(scratch) / "tokens.pt")
        with ThreadPoolExecutor(max(arguments.at_once, 1)) as pool:
            runs = pool.map(partial(_run, arguments, Path(scratch)), chosen)
            record["runs"] = dict(zip(chosen, runs, strict=True))
    path = write(arguments.output, record, page(record), begun)
    table = Table(*HEADINGS, title=_model(record))
    for cells in rows(record):
        table.add_row(*cells)
    Console().print(table)
    print(f"{path}.json and .md")
    return ExitCode.OK if holds(record) else ExitCode.FAILED


if __name__ == "__main__":
    sys.exit(run_command(main))
