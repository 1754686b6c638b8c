"""Measure attention alone on one GPU: FlashAttention-4 beside cuDNN through Transformer Engine, in time and energy.

Both get the decoder's packed queries, keys and values (32 and 8 heads of 128) as training gives them, causal within
each document. Energy counts on a GPU that runs at its power limit, as training a dense model does: what takes less of
it leaves the matrix products a higher clock.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.measure import environment
from benchmarks.options import add_output_options, require_gpu, wrong_usage
from benchmarks.report import Page, Record, markdown, write
from benchmarks.sustained import sustained
from benchmarks.versions import facts
from megatron_apriel.command_line import CommandLine
from megatron_apriel.errors import ConfigError, ExitCode, run_command
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.model.attention import packed
from megatron_apriel.model.options import ModelOptions, decoder_config
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.layout import Layout

EXAMPLES = """\
examples:
  # everything; takes half a minute on one H200
  python benchmarks/attention.py

  # other packs: documents of 4000, 4000 and 192 tokens, and one of 16384
  python benchmarks/attention.py --packs 4000,4000,192 16384

TFLOP/s by the rule of megatron_apriel/formats/flops.py: the causal half, a backward pass twice its forward pass.
"""
PACKS = ["8192", "2900,3040,2252", "32768", ",".join(["3000"] * 10 + ["2768"])]
HEADINGS = ("documents", "kernels", "forward, ms", "forward and backward, ms", "TFLOP/s", "joule")
KINDS = {"flash": "FlashAttention-4", "cudnn": "cuDNN, Transformer Engine"}


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--packs", nargs="+", default=PACKS, metavar="N,M", help="lengths of a sequence's documents")
    parser.add_argument("--seconds", type=float, default=0.8, help="of each measurement (%(default)g)")
    add_output_options(parser, "attention")
    return parser


def passes(kind: str, lengths: list[int]) -> tuple[Callable[[], Tensor], Callable[[], None]]:
    """A forward pass, and a forward and backward pass, over one sequence on this process's GPU."""
    decoder = Architecture.from_preset("apriel-15b").decoder
    options = ModelOptions(dtype=torch.bfloat16, layers="transformer_engine", attention=kind)  # type: ignore[arg-type]
    alone = groups.group_of_one()
    core = options.chosen_layers().core_attention(
        config=decoder_config(decoder, options, Layout()),
        layer_number=1,
        attn_mask_type=AttnMaskType.causal,
        attention_type="self",
        pg_collection=ProcessGroupCollection(tp=alone, cp=alone),
    )
    heads = (decoder.num_heads, decoder.num_kv_heads, decoder.num_kv_heads, decoder.num_heads)
    generator = torch.Generator("cuda").manual_seed(1234)
    *inputs, gradient = (
        torch.randn(sum(lengths), number, decoder.head_dim, device="cuda", generator=generator).bfloat16()
        for number in heads
    )
    leaves = [tensor.requires_grad_() for tensor in inputs]
    borders = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device="cuda")
    params = packed(borders, max(lengths))

    def forward() -> Tensor:
        output: Tensor = core(
            *leaves, None, attn_mask_type=AttnMaskType.causal, attention_bias=None, packed_seq_params=params
        )
        return output.view(gradient.shape)

    def both() -> None:
        torch.autograd.grad(forward(), leaves, gradient)

    return forward, both


def measure(pack: str, kind: str, seconds: float) -> dict[str, Any]:
    """Figures of one kind of kernels on one pack."""
    lengths = [int(word) for word in pack.split(",")]
    decoder = Architecture.from_preset("apriel-15b").decoder
    operations = 3 * 2 * sum(length**2 for length in lengths) * decoder.num_heads * decoder.head_dim
    forward, both = passes(kind, lengths)
    whole = sustained(both, seconds)
    return {
        "documents": pack, "kind": kind, "forward_ms": sustained(forward, seconds).ms, "ms": whole.ms,
        "tflops": operations / whole.ms / 1e9, "joule": whole.joule,
    }  # fmt: skip


def row(figures: dict[str, Any]) -> list[str]:
    """In the columns of :data:`HEADINGS`."""
    lengths = figures["documents"].split(",")
    documents = f"1 of {lengths[0]}" if len(lengths) == 1 else f"{len(lengths)}, the longest {max(map(int, lengths))}"
    joule = "-" if figures["joule"] is None else f"{figures['joule']:.2f}"
    return [
        documents, KINDS[figures["kind"]], f"{figures['forward_ms']:.2f}", f"{figures['ms']:.2f}",
        f"{figures['tflops']:.0f}", joule,
    ]  # fmt: skip


def page(record: Record) -> Page:
    """What this benchmark says of a record."""
    rows = [row(figures) for figures in record["figures"]]
    return Page(
        title="Attention alone",
        question="How long does attention take by itself, and how much energy, with either kind of kernels?",
        configuration="32 query and 8 key-value heads of 128, bf16, causal; FLOPs by the rule of "
        "megatron_apriel/formats/flops.py",
        measured=[f"{documents}, {kernels}" for documents, kernels, *_ in rows],
        body=markdown(HEADINGS, rows),
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    arguments = _parser().parse_args(argv)
    try:
        wrong = [
            pack for pack in arguments.packs if not all(word.isdecimal() and int(word) for word in pack.split(","))
        ]
        if wrong:
            raise ConfigError(f"--packs {wrong[0]} is no list of lengths.", fix="Write them as 4000,4000,192.")
        require_gpu("What is measured is attention")
    except ConfigError as error:
        return wrong_usage(error)
    begun = datetime.datetime.now(datetime.UTC)
    with groups.initialized(Layout()):
        found = [measure(pack, kind, arguments.seconds) for pack in arguments.packs for kind in KINDS]
    record = {**facts("attention", arguments.commit, environment(), begun), "figures": found}
    table = Table(*HEADINGS, title="Attention alone, 32 query and 8 key-value heads of 128, bf16")
    for figures in found:
        table.add_row(*row(figures))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    print(f"{write(arguments.output, record, page(record), begun)}.json and .md")
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(run_command(main))
