"""Measure the matrix products of training alone on one GPU, for long enough that its power decides the clock.

Every product of a decoder layer and of the head runs by itself, in bf16: by the algorithm that cuBLAS takes, which is
what a training step gets, and by the best of all that cuBLAS offers. With attention alone beside them, what a step
would reach if nothing else took time is the ceiling of this GPU, as it is in this run.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.attention import measure as measure_attention
from benchmarks.cublas import Algorithm, Product
from benchmarks.measure import environment
from benchmarks.options import add_output_options, require_gpu, wrong_usage
from benchmarks.report import Page, Record, listed, markdown, write
from benchmarks.step_report import FULL_DEPTH
from benchmarks.sustained import Sustained, sustained
from benchmarks.versions import facts
from megatron_apriel.command_line import CommandLine
from megatron_apriel.errors import ConfigError, ExitCode, run_command
from megatron_apriel.formats.architecture import Architecture, DecoderArchitecture
from megatron_apriel.formats.flops import decoder_forward
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.parallel.logit_parts import tokens_per_part

EXAMPLES = """\
examples:
  # everything; takes two minutes on one H200
  python benchmarks/products.py

  # only what cuBLAS takes by itself, at another length
  python benchmarks/products.py --tokens 32768 --no-search

Exit code: 0 if measured, 2 if it cannot be here.
"""
HEADINGS = ("weight", "product", "tokens x in x out", "ms", "TFLOP/s", "W", "best, ms", "TFLOP/s", "W", "algorithms")
CANDIDATES = 3
"""Algorithms that are measured at length after a short look at all."""


@dataclass(frozen=True)
class Weight:
    """A weight matrix [outputs, inputs] and how many tokens it meets at a time.

    Attributes:
        repeats: how often a micro-batch does so in one decoder layer, or in the head.
    """

    name: str
    outputs: int
    inputs: int
    tokens: int
    repeats: int = 1

    @property
    def in_head(self) -> bool:
        return self.name == "head"

    @property
    def operations(self) -> int:
        """Of each of the three products."""
        return 2 * self.outputs * self.inputs * self.tokens


def weights(decoder: DecoderArchitecture, tokens: int) -> list[Weight]:
    """Those of a decoder layer, and the head, which takes its tokens by parts."""
    hidden, feed_forward = decoder.hidden_size, decoder.ffn_hidden_size
    width = decoder.num_heads * decoder.head_dim
    both = 2 * decoder.num_kv_heads * decoder.head_dim
    part = tokens_per_part(tokens, decoder.vocab_size)
    return [
        Weight("q, k, v", width + both, hidden, tokens),
        Weight("attention's way out", hidden, width, tokens),
        Weight("gate, up", 2 * feed_forward, hidden, tokens),
        Weight("down", hidden, feed_forward, tokens),
        Weight("head", decoder.vocab_size, hidden, part, -(-tokens // part)),
    ]


def products(weight: Weight) -> Iterator[tuple[str, Product]]:
    """Its three products in training, over numbers of the size that a fresh model has."""
    generator = torch.Generator("cuda").manual_seed(1234)

    def numbers(rows: int, columns: int, size: float) -> Tensor:
        return (torch.randn(rows, columns, device="cuda", generator=generator) * size).bfloat16()

    matrix_OI = numbers(weight.outputs, weight.inputs, 0.02)
    inputs_TI, gradient_TO = numbers(weight.tokens, weight.inputs, 1.0), numbers(weight.tokens, weight.outputs, 1e-3)
    main_grad_OI = torch.zeros_like(matrix_OI, dtype=torch.float32)
    yield "forward", Product(inputs_TI, matrix_OI.t(), torch.empty_like(gradient_TO), accumulate=False)
    yield "gradient of input", Product(gradient_TO, matrix_OI, torch.empty_like(inputs_TI), accumulate=False)
    yield "gradient of weight", Product(gradient_TO.t(), inputs_TI, main_grad_OI, accumulate=True)


@dataclass(frozen=True)
class Figures:
    """One product, by the algorithm that cuBLAS takes and by the best of ``offered``; the same where none is better."""

    weight: Weight
    product: str
    taken: Sustained
    best: Sustained
    offered: int


def measure(product: Product, seconds: float, search: bool) -> tuple[Sustained, Sustained, int]:
    """Of the algorithm that cuBLAS takes, of the best one, and how many there are."""
    offered = product.algorithms()

    def timed(algorithm: Algorithm, share: float) -> Sustained:
        return sustained(functools.partial(product.run, algorithm), share * seconds)

    taken = timed(offered[0], 1.0)
    if not search:
        return taken, taken, len(offered)
    promising = sorted(offered[1:], key=lambda algorithm: timed(algorithm, 0.4).ms)[:CANDIDATES]
    # Once more after the others, since the GPU has grown warmer meanwhile.
    again = timed(offered[0], 1.0)
    return (
        again,
        min([again, *(timed(algorithm, 1.0) for algorithm in promising)], key=lambda one: one.ms),
        len(offered),
    )


def ceiling(
    decoder: DecoderArchitecture, tokens: int, layer_ms: float, head_ms: float, attention_ms: float
) -> tuple[float, float]:
    """Milliseconds and TFLOP/s of a micro-batch of ``FULL_DEPTH`` layers in which nothing else takes time."""
    linear, attention = decoder_forward(decoder, tokens, tokens**2)
    ms = decoder.num_layers * (layer_ms + attention_ms) + head_ms
    return ms, 3 * (linear + attention) / ms / 1e9


def row(figures: Figures) -> list[str]:
    """In the columns of :data:`HEADINGS`."""

    def three(one: Sustained) -> list[str]:
        rate = figures.weight.operations / one.ms / 1e9
        return [f"{one.ms:.3f}", f"{rate:.0f}", "-" if one.watt is None else f"{one.watt:.0f}"]

    weight = figures.weight
    shape = f"{weight.tokens} x {weight.inputs} x {weight.outputs}"
    best = three(figures.best) if figures.best != figures.taken else ["-"] * 3
    return [weight.name, figures.product, shape, *three(figures.taken), *best, str(figures.offered)]


def summary(found: list[Figures], decoder: DecoderArchitecture, tokens: int, attention_ms: float) -> list[str]:
    """What the products add up to, and the ceiling that follows."""
    lines = []
    for which, title in (("taken", "as cuBLAS takes them"), ("best", "the best of each")):
        layer, head = (
            sum(getattr(one, which).ms * one.weight.repeats for one in found if one.weight.in_head == in_head)
            for in_head in (False, True)
        )
        operations = sum(one.weight.operations for one in found if not one.weight.in_head)
        ms, tflops = ceiling(decoder, tokens, layer, head, attention_ms)
        lines.append(
            f"{title}: {layer:.2f} ms for the products of a layer ({operations / layer / 1e9:.0f} TFLOP/s), "
            f"{head:.1f} ms for the head's; with {attention_ms:.2f} ms for a layer's attention and nothing else, "
            f"{decoder.num_layers} layers take {ms:.0f} ms: {tflops:.0f} TFLOP/s"
        )
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--tokens", type=int, default=8192, metavar="N", help="of a micro-batch (%(default)s)")
    parser.add_argument("--seconds", type=float, default=0.6, help="of each measurement (%(default)g)")
    parser.add_argument("--no-search", action="store_true", help="only the algorithms that cuBLAS takes by itself")
    add_output_options(parser, "products")
    return parser


def _decoder() -> DecoderArchitecture:
    """Of the whole model."""
    return Architecture.from_preset("apriel-15b").with_layers(FULL_DEPTH).decoder


def page(record: Record) -> Page:
    """What this benchmark says of a record."""
    found = [
        Figures(
            Weight(**one["weight"]), one["product"], Sustained(**one["taken"]), Sustained(**one["best"]), one["offered"]
        )
        for one in record["products"]
    ]
    tokens = record["tokens"]
    return Page(
        title="Matrix products alone",
        question="How fast can the matrix products of a step be at the clock that the GPU's power leaves?",
        configuration=f"bf16, {tokens} tokens",
        measured=[f"{tokens} tokens"],
        body="\n".join([
            markdown(HEADINGS, map(row, found)),
            listed(summary(found, _decoder(), tokens, record["attention"]["ms"])),
        ]),
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.tokens < 128 or arguments.tokens % 128:
            raise ConfigError(f"--tokens={arguments.tokens} is no multiple of 128.", fix="Give one, such as 8192.")
        require_gpu("What is measured are matrix products")
    except ConfigError as error:
        return wrong_usage(error)
    begun = datetime.datetime.now(datetime.UTC)
    found = []
    for weight in weights(_decoder(), arguments.tokens):
        for name, product in products(weight):
            print(f"{weight.name}, {name}", file=sys.stderr, flush=True)
            figures = measure(product, arguments.seconds, not arguments.no_search)
            found.append(Figures(weight, name, *figures))
    with groups.initialized(Layout()):
        attention = measure_attention(str(arguments.tokens), "flash", arguments.seconds)
    record = {
        **facts("products", arguments.commit, environment(), begun), "tokens": arguments.tokens,
        "products": [asdict(one) for one in found], "attention": attention,
    }  # fmt: skip
    table = Table(*HEADINGS, title=f"Matrix products alone, bf16, {arguments.tokens} tokens")
    for one in found:
        table.add_row(*row(one))
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    print("\n".join(summary(found, _decoder(), arguments.tokens, attention["ms"])))
    print(f"{write(arguments.output, record, page(record), begun)}.json and .md")
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(run_command(main))
