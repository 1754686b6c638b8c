"""Measure the head and its loss on one GPU: chunk by chunk in one function, beside all logits at once.

``fused`` is what training uses (megatron_apriel/model/linear_cross_entropy.py). ``unfused`` is Megatron's own way: the
head makes all logits, and its vocabulary-parallel cross entropy works on a float32 copy of them. Both run forward and
backward on the same numbers and leave the weight's gradient in the float32 main gradient.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.measure import environment
from benchmarks.options import add_output_options, require_gpu, wrong_usage
from benchmarks.report import Page, Record, machine, markdown, write
from benchmarks.versions import facts
from megatron_apriel.batch import IGNORED_LABEL
from megatron_apriel.command_line import CommandLine
from megatron_apriel.errors import ConfigError, ExitCode, run_command
from megatron_apriel.formats.architecture import DecoderArchitecture
from megatron_apriel.parallel.layout import Layout

EXAMPLES = """\
examples:
  # 8192, 16384 and 32768 tokens; takes about a minute on one H200 and 60 GiB of its memory
  python benchmarks/loss.py

  # one length
  python benchmarks/loss.py --tokens 8192

columns:
  ms       forward and backward, median; fused and unfused take turns, so that both meet the same clocks
  GiB      peak of the memory beyond inputs, weight and main gradient
  TFLOP/s  of the head's three matrix products, 6 x tokens x hidden x vocabulary
  loss     mean over tokens, with which the two can be compared

Exit code: 0 if measured, 2 if it cannot be here.
"""

SUBJECTS = ("fused", "unfused")
HEADINGS = ("tokens", "subject", "ms", "GiB", "TFLOP/s", "loss")

Losses = Callable[[Any, Tensor, Tensor], Tensor]


def losses_of(subject: str) -> Losses:
    """The function from head, hidden states [S, 1, H] and labels [S] to the loss of every token."""
    from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

    from megatron_apriel.model.head import losses_of_labels

    def unfused_losses(head: Any, hidden_S1H: Tensor, labels_S: Tensor) -> Tensor:
        logits_S1V, _ = head(hidden_S1H)
        losses_S1 = vocab_parallel_cross_entropy(logits_S1V.float(), labels_S.clamp(min=0)[:, None])
        return torch.where(labels_S != IGNORED_LABEL, losses_S1[:, 0], 0.0)

    return losses_of_labels if subject == "fused" else unfused_losses


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(description=__doc__, epilog=EXAMPLES)
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--tokens",
        type=int,
        nargs="+",
        default=[8192, 16384, 32768],
        metavar="N",
        help="of a micro-batch (%(default)s)",
    )
    what.add_argument("--hidden", type=int, default=5120, metavar="N", help="size of hidden states (%(default)s)")
    what.add_argument("--vocabulary", type=int, default=131072, metavar="N", help="its entries (%(default)s)")
    how = parser.add_argument_group("how")
    how.add_argument("--rounds", type=int, default=10, metavar="N", help="timed passes of each (%(default)s)")
    output = parser.add_argument_group("output")
    add_output_options(output, "loss")
    return parser


def measure(tokens: int, hidden: int, vocabulary: int, rounds: int) -> list[dict[str, Any]]:
    """Figures of both subjects at one length."""
    passes = _passes(tokens, hidden, vocabulary)
    mean_losses = {name: float(run()) / tokens for _ in range(2) for name, run in passes.items()}
    peaks = {name: _peak(run) for name, run in passes.items()}
    times: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds):
        for name, run in passes.items():
            times[name].append(_milliseconds(run))
    return [
        {
            "tokens": tokens,
            "subject": name,
            "ms": statistics.median(times[name]),
            "gib": peaks[name] / 2**30,
            "tflops": 6 * tokens * hidden * vocabulary / statistics.median(times[name]) / 1e9,
            "loss": mean_losses[name],
        }
        for name in passes
    ]


def _passes(tokens: int, hidden: int, vocabulary: int) -> dict[str, Callable[[], Tensor]]:
    """Per subject, a forward and backward pass on the same head and inputs; returns the summed loss."""
    from megatron_apriel.model.decoder import build_head
    from megatron_apriel.model.options import ModelOptions, decoder_config

    # The head knows no layers; the sizes of attention only have to fit together.
    decoder = DecoderArchitecture(hidden, 1, 8, 8, hidden // 8, hidden, vocabulary, rope_theta=1e6)
    head = build_head(decoder, decoder_config(decoder, ModelOptions(dtype=torch.bfloat16, layers="local"), Layout()))
    weight = head.weight
    weight.main_grad, weight.grad_added_to_main_grad = torch.zeros_like(weight, dtype=torch.float32), False
    generator = torch.Generator(weight.device).manual_seed(1234)
    inputs = torch.randn(tokens, 1, hidden, device=weight.device, dtype=weight.dtype, generator=generator)
    inputs.requires_grad_()
    labels = torch.randint(0, vocabulary, (tokens,), device=weight.device, generator=generator)

    def run(losses: Losses) -> Tensor:
        total = losses(head, inputs, labels).sum()
        total.backward()
        # What the hook of Megatron's data parallelism does.
        if weight.grad is not None and not weight.grad_added_to_main_grad:
            weight.main_grad.add_(weight.grad)
        weight.grad, weight.grad_added_to_main_grad, inputs.grad = None, False, None
        return total.detach()

    return {name: partial(run, losses_of(name)) for name in SUBJECTS}


def _peak(run: Callable[[], Tensor]) -> int:
    """Bytes that a pass needs beyond what there was before."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before


def _milliseconds(run: Callable[[], Tensor]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _rows(record: Record) -> list[list[str]]:
    """In the columns of :data:`HEADINGS`."""
    return [
        [
            str(row["tokens"]),
            row["subject"],
            *(f"{row['ms']:.2f}", f"{row['gib']:.2f}", f"{row['tflops']:.0f}", f"{row['loss']:.5f}"),
        ]
        for row in record["figures"]
    ]


def page(record: Record) -> Page:
    """What this benchmark says of a record."""
    return Page(
        title="Head and loss",
        question="What do the head and its loss take, in one function and by Megatron's own way?",
        configuration=f"{record['hidden']} x {record['vocabulary']}, bf16, forward and backward",
        measured=[f"{row['tokens']} tokens, {row['subject']}" for row in record["figures"]],
        body=markdown(HEADINGS, _rows(record)),
    )


def _show(record: Record) -> None:
    table = Table(*HEADINGS, title=f"Head and loss, {page(record).configuration}", caption=machine(record))
    for row in _rows(record):
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 100).print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    arguments = _parser().parse_args(argv)
    try:
        _check(arguments)
    except ConfigError as error:
        return wrong_usage(error)
    from megatron_apriel.parallel import groups

    sizes = (arguments.hidden, arguments.vocabulary, arguments.rounds)
    begun = datetime.datetime.now(datetime.UTC)
    with groups.initialized(Layout()):
        figures = [row for tokens in arguments.tokens for row in measure(tokens, *sizes)]
    record = {
        **facts("loss", arguments.commit, environment(), begun),
        "hidden": arguments.hidden,
        "vocabulary": arguments.vocabulary,
        "figures": figures,
    }
    _show(record)
    print(f"{write(arguments.output, record, page(record), begun)}.json and .md")
    return ExitCode.OK


def _check(arguments: argparse.Namespace) -> None:
    numbers = {"--hidden": [arguments.hidden], "--vocabulary": [arguments.vocabulary], "--rounds": [arguments.rounds]}
    for option, values in {"--tokens": arguments.tokens, **numbers}.items():
        for value in values:
            if value < 1:
                raise ConfigError(f"{option} {value} is not a positive number.", fix="Give 1 or more.")
    if arguments.hidden % 8:
        raise ConfigError(
            f"--hidden {arguments.hidden} is not a multiple of 8.", "bfloat16 matrix products want aligned rows."
        )
    require_gpu("What is measured is the head and its loss")


if __name__ == "__main__":
    sys.exit(run_command(main))
