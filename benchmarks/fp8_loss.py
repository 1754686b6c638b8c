"""Train the same small model on the same real text in bf16 and in each FP8 recipe, and compare the losses.

Every run starts from the same weights and sees the same tokens in the same steps, so what differs is the arithmetic.
How far two runs drift apart by rounding alone is shown by a control: bf16 again, with the micro-batches of each step in
reverse order, which are the same sums rounded otherwise. The result is a table, a plot, and an exit code: 1 if the
judged recipe's loss, averaged over the last steps, differs from bf16's by more than the allowance. ``loss_runs.py`` has
model and text.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
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
    real_text,
    run_all,
    settings_of,
    words_of_text,
)
from benchmarks.measure import environment
from benchmarks.options import add_output_options, require_gpu, wrong_usage
from benchmarks.report import Page, Record, markdown, write
from benchmarks.versions import facts
from megatron_apriel.command_line import CommandLine, chosen
from megatron_apriel.config.choices import FP8_RECIPES
from megatron_apriel.errors import ConfigError, DataError, ExitCode, run_command

CONTROL = "bf16-reversed"
PRECISIONS = ("bf16", CONTROL, *FP8_RECIPES)
VOCABULARY = 131072
WINDOW = 50
"""Steps over which differences are averaged."""
HEADINGS = ("precision", "first loss", f"loss, last {WINDOW} steps", "difference from bf16", "seconds")


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(
        description=__doc__,
        epilog="example:\n  python benchmarks/fp8_loss.py --steps 200 --judged tensorwise",
    )  # fmt: skip
    add_run_options(parser, hidden=2048, sequence_length=4096, steps=200, peak=2e-4)
    compared = parser.add_argument_group("comparison")
    compared.add_argument("--precisions", default=",".join(PRECISIONS), metavar="A,B", help="default: %(default)s")
    compared.add_argument("--judged", choices=PRECISIONS[2:], default="tensorwise", help="must hold (%(default)s)")
    compared.add_argument("--allowance", type=float, default=0.01, help="relative difference (%(default)g)")
    compared.add_argument("--at-once", type=int, default=1, metavar="N", help="runs that share the GPU, 17 GiB each as "
                          "the model stands; losses are the same, seconds longer (%(default)s)")  # fmt: skip
    add_output_options(parser, "fp8_loss", ".json, .md and .png")
    return parser


def smoothed(values: Sequence[float], window: int = WINDOW) -> list[float]:
    """Mean of each value and those before it, ``window`` at most."""
    means = []
    for end in range(1, len(values) + 1):
        last = values[max(end - window, 0) : end]
        means.append(sum(last) / len(last))
    return means


def relative_difference(losses: Sequence[float], reference: Sequence[float]) -> list[float]:
    """How far each smoothed loss lies above the smoothed reference, as a fraction of it."""
    pairs = zip(smoothed(losses), smoothed(reference), strict=True)
    return [loss / base - 1 for loss, base in pairs]


def token_stream(count: int) -> tuple[torch.Tensor, str]:
    """``count`` tokens of real text, int64, and by which tokenizer.

    Tekken's, where mistral-common is installed; otherwise words and signs, numbered by how often they occur.
    """
    try:
        import mistral_common
        from mistral_common.tokens.tokenizers.tekken import Tekkenizer
    except ImportError:
        return words_of_text(count, VOCABULARY), "words"
    table = Path(mistral_common.__file__).parent / "data" / "tekken_240911.json"
    tokenizer, tokens = Tekkenizer.from_file(table), []
    for text in real_text():
        tokens += tokenizer.encode(text, bos=True, eos=True)
        if len(tokens) >= count:
            return torch.tensor(tokens[:count]), "tekken"
    raise DataError(f"only {len(tokens):,} tokens of text are installed here, {count:,} are needed.")


def train(arguments: argparse.Namespace, tokens: torch.Tensor) -> dict[str, Any]:
    """The losses of one run."""
    from benchmarks.stages import stage_config
    from benchmarks.subjects.ours import Ours
    from megatron_apriel.parallel import groups
    from megatron_apriel.parallel.layout import Layout
    from megatron_apriel.testing.batches import make_batch

    length, count = arguments.sequence_length, arguments.micro_batches
    architecture = architecture_of(arguments, VOCABULARY)
    case = replace(CASES["8192"], sequence_length=length, micro_batches=count)
    losses = []
    with groups.initialized(Layout()) as device:
        reverse = arguments.run == CONTROL
        subject = Ours(architecture, stage_config(case, "bf16" if reverse else arguments.run), Layout())
        for step, part in enumerate(tokens.view(arguments.steps, count, length)):
            rows = part.flip(0) if reverse else part
            batches = [make_batch(architecture, [row.tolist()]).to(device) for row in rows]
            losses.append(subject.step(batches, rate_at(step, arguments.steps, arguments.peak)))
    return {"losses": losses}


def _plot(runs: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 7), sharex=True, layout="constrained")
    for name, run in runs.items():
        (line,) = above.plot(smoothed(run["losses"], 5), label=name, lw=1.2)
        if name != "bf16" and "bf16" in runs:
            difference = relative_difference(run["losses"], runs["bf16"]["losses"])
            below.plot([100 * value for value in difference], label=name, color=line.get_color())
    above.set_ylabel("loss, mean of 5 steps")
    below.set_ylabel(f"difference from bf16, %\nmean of {WINDOW} steps")
    below.set_xlabel("step")
    below.axhline(0, color="black", lw=0.6)
    above.legend()
    figure.savefig(path, dpi=140)


def _model(record: Record) -> str:
    return f"{record['hidden']} wide, {record['layers']} layers, {record['steps']} steps of real text"


def rows(record: Record) -> list[list[str]]:
    """One row a run that ended, in the columns of :data:`HEADINGS`."""
    ends = record["relative_difference_at_the_end"]
    return [
        [
            name,
            f"{run['losses'][0]:.3f}",
            f"{smoothed(run['losses'])[-1]:.4f}",
            f"{ends[name]:+.2%}" if name in ends else "-",
            f"{run['seconds']:.0f}",
        ]
        for name, run in record["runs"].items()
        if "losses" in run
    ]


def page(record: Record) -> Page:
    """What this benchmark says of a record."""
    return Page(
        title="Loss in 8 bits",
        question="Does training in FP8 change what is learned, beside bf16 and beside rounding alone?",
        configuration=f"{_model(record)}, {record['micro_batches']} micro-batches of {record['sequence_length']} "
        f"tokens a step, learning rate {record['peak']:g}, tokenizer {record['tokenizer']}",
        measured=[f"{_model(record)}, {name}" for name, run in record["runs"].items() if "losses" in run],
        body=markdown(HEADINGS, rows(record)),
    )


def _conclude(arguments: argparse.Namespace, record: dict[str, Any], begun: datetime.datetime) -> int:
    """Write the files, print the table, judge."""
    runs = {name: run for name, run in record["runs"].items() if "losses" in run}
    ends = {name: relative_difference(run["losses"], runs["bf16"]["losses"])[-1] for name, run in runs.items()
            if "bf16" in runs}  # fmt: skip
    record |= {"relative_difference_at_the_end": ends}
    path = write(arguments.output, record, page(record), begun)
    try:
        _plot(runs, path.with_suffix(".png"))
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
    table = Table(*HEADINGS, title=_model(record))
    for cells in rows(record):
        table.add_row(*cells)
    Console().print(table)
    print(f"{path}.json, .md and .png")
    if len(runs) < len(record["runs"]):
        return ExitCode.FAILED
    # Not "greater": a loss that is no number compares as neither.
    if CONTROL in ends:
        print(f"rounding alone, by the control: {ends[CONTROL]:+.2%}")
    if arguments.judged in ends and not abs(ends[arguments.judged]) <= arguments.allowance:
        print(f"{arguments.judged} differs by {ends[arguments.judged]:+.2%}, more than {arguments.allowance:.2%}")
        return ExitCode.FAILED
    return ExitCode.OK


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 0 if every run ended and the judged recipe holds."""
    arguments = _parser().parse_args(argv)
    if arguments.run:
        return as_run(arguments, train)
    try:
        names = chosen(arguments.precisions, PRECISIONS, "--precisions")
        if not arguments.tiny:
            require_gpu("Precisions are compared")
    except ConfigError as error:
        return wrong_usage(error)
    begun = datetime.datetime.now(datetime.UTC)
    tokens, tokenizer = token_stream(arguments.steps * arguments.micro_batches * arguments.sequence_length)
    record = facts("fp8_loss", arguments.commit, environment(), begun) | settings_of(arguments)
    record |= {"tokenizer": tokenizer, "runs": run_all(__file__, arguments, names, tokens)}
    return _conclude(arguments, record, begun)


if __name__ == "__main__":
    sys.exit(run_command(main))
