"""The plan's predictions beside every stored measurement on several GPUs, computed anew: needs no GPU.

A record keeps the prediction of its own day. This says what the plan of today makes of the same steps, of the very
sequences that were measured.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.report import RESULTS, markdown
from benchmarks.spread import Found, Prediction, Spread, predicted
from benchmarks.spread_cli import workload_of
from megatron_apriel.command_line import CommandLine
from megatron_apriel.errors import ExitCode, run_command
from megatron_apriel.formats.architecture import DecoderArchitecture
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning import layer_time
from megatron_apriel.planning.hardware import KINDS, Hardware
from megatron_apriel.planning.workload import Content, Workload, busiest_part
from megatron_apriel.terminal import say

EXAMPLES = """\
examples:
  # all of them, as a table of Markdown
  python benchmarks/predictions.py
"""
BENCHMARKS = ("layouts", "scaling", "dealing")
HEADINGS = (
    "result", "case", "layout", "recompute", "precision", "layers", "s a step", "predicted", "off",
    "computing", "predicted", "waiting and idle", "predicted",
)  # fmt: skip
ADDED_UP_SINCE = "2026-11-30 12:27"
"""Until then autograd made the gradients of gathered keys and values out of tensors of zeros: :func:`as_of`."""


class Measured(NamedTuple):
    """A measurement on several GPUs: when, in which result, and what was found."""

    date: str
    result: str
    found: Found


def on_several_gpus() -> list[Measured]:
    """All that are stored, the oldest first, but for those of few tokens: they say how long the host takes."""
    records = [
        (json.loads(path.read_text(encoding="utf-8")), path.stem)
        for name in BENCHMARKS
        for path in RESULTS.glob(f"{name}-*.json")
    ]
    rows = [
        Measured(record["date"], result, Found.from_json(row["found"]))
        for record, result in records
        for row in record["measurements"]
        for spread in [row["found"]["spread"]]
        if row["found"]["status"] == "measured" and spread["gpus"] > 1 and spread.get("tokens") is None
    ]
    return sorted(rows, key=lambda row: row.date)


@contextlib.contextmanager
def as_of(date: str) -> Iterator[None]:
    """The plan of what the code did at a date."""
    with (
        patch.object(layer_time, "context_seconds", _copied_before)
        if date < ADDED_UP_SINCE
        else contextlib.nullcontext()
    ):
        yield


def _copied_before(
    decoder: DecoderArchitecture, layout: Layout, gpu: Hardware, content: Content
) -> tuple[float, float]:
    """What a context-parallel layer copied then, forward and backward.

    Forward the gathered keys and values were put into the sequence's order too. Backward, each of the 4 C pieces made
    three tensors of zeros, of 2, 4 and 4 C pieces, and had its gradient copied into each; then all were added.
    """
    if layout.context == 1:
        return 0.0, 0.0
    length, heads, ranks = sum(content.documents), 2 * decoder.head_dim / layout.tensor, layout.context
    keys, queries = heads * 2 * decoder.num_kv_heads * length, heads * decoder.num_heads * length / ranks
    seen = busiest_part(content, ranks).keys / length
    forward = (2 / ranks + 2 + 2 * seen) * keys + 2 * queries
    pieces = 2 + 4 + 4 * ranks + 2 * (1 + 2 + 4) + 3 * (4 * ranks - 1)
    backward = (pieces + 5 + 2 * seen) * keys + 7 * queries
    rate = gpu.copy_bandwidth * layer_time.GIGA
    return forward / rate, backward / rate


@cache
def _work(case: str, sequences: int, different_steps: int) -> Workload:
    return workload_of(Spread(case, "bf16", 1, 1, sequences, different_steps=different_steps))


def work_of(spread: Spread) -> Workload:
    """What the sequences of a measurement hold, made once for all with the same ones."""
    return _work(spread.case, spread.sequences, spread.different_steps)


def predicted_of(row: Measured, gpu: Hardware = KINDS["h200"]) -> Prediction:
    """What the plan says of a measurement."""
    spread = row.found.spread
    with as_of(row.date):
        return predicted(spread, gpu, work_of(spread))


def cells(row: Measured) -> list[str]:
    """A line of the table, in the columns of :data:`HEADINGS`."""
    found, said = row.found, predicted_of(row)
    spread, seconds = found.spread, found.tokens / found.spread.gpus / said.tokens_per_second
    return [
        row.result,
        spread.case,
        spread.label,
        spread.recomputation,
        spread.precision,
        str(spread.layers),
        f"{found.step_ms / 1e3:.2f}",
        f"{seconds:.2f}",
        f"{said.tokens_per_second / found.tokens_per_second - 1:+.1%}",
        f"{1 - found.share('communicating_ms') - found.share('idle_ms'):.1%}",
        f"{1 - said.communicating:.1%}",
        f"{found.share('communicating_ms') + found.share('idle_ms'):.1%}",
        f"{said.communicating:.1%}",
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    CommandLine(description=__doc__, epilog=EXAMPLES).parse_args(argv)
    say(*markdown(HEADINGS, map(cells, on_several_gpus())).split("\n"))
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(run_command(main))
