"""Measure the links between the GPUs of one host: what ``tools/plan.py`` takes as ``intra_node`` and ``latency``.

Collectives of NCCL and messages between neighbours, from small tensors, whose time is latency, to large ones.
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.logs import log_folder
from benchmarks.options import add_output_options, wrong_usage
from benchmarks.processes import Processes
from benchmarks.report import Page, Record, markdown, write
from benchmarks.spread_cli import print_table
from benchmarks.versions import facts
from megatron_apriel.command_line import CommandLine
from megatron_apriel.errors import ConfigError, ExitCode, run_command
from megatron_apriel.quantities import counted

EXAMPLES = """\
examples:
  # all GPUs of this host
  python benchmarks/links.py

  # two of them
  python benchmarks/links.py --gpus 2
"""
SIZES = (1 << 14, 1 << 20, 1 << 24, 1 << 26, 1 << 28, 1 << 30)
HEADINGS = ("communication", "MiB", "microseconds", "GB/s of a GPU and direction")


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(description=__doc__, epilog=EXAMPLES)
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs to use (default: all of this host)")
    add_output_options(parser, "links")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # small tensors, on the CPU too
    return parser


def rows(record: Record) -> list[list[str]]:
    """One row a kind of communication and size, in the columns of :data:`HEADINGS`."""
    return [
        [one["kind"], f"{one['bytes'] / 2**20:g}", f"{one['microseconds']:.0f}", f"{one['gb_s']:.1f}"]
        for one in sorted(record["found"], key=lambda one: one["kind"])
    ]


def page(record: Record) -> Page:
    """What this benchmark says of a record."""
    return Page(
        title="Links between GPUs",
        question="How much do the links between the GPUs of a host carry, and after how long?",
        configuration="collectives of NCCL and messages between neighbours, bf16",
        measured=["links"],
        body=markdown(HEADINGS, rows(record)),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    arguments = _parser().parse_args(argv)
    present = torch.cuda.device_count()
    gpus = arguments.gpus or present
    if gpus < 2 or (gpus > present and not arguments.tiny):
        error = ConfigError(
            f"--gpus={gpus}, and this host shows {counted(present, 'CUDA device')}.",
            "Links are between at least two.",
            "Run it on a host with several GPUs.",
        )
        return wrong_usage(error)
    begun = datetime.datetime.now(datetime.UTC)
    sizes = SIZES[:2] if arguments.tiny else SIZES
    with log_folder() as logs:
        result = Processes("benchmarks.measure_links", "links", {"sizes": sizes}, logs.folder, gpus).run(300)
        logs.wanted = isinstance(result, str)
    if isinstance(result, str):
        print(f"failed: {result}", file=sys.stderr)
        return ExitCode.FAILED
    record = {**facts("links", arguments.commit, result["environment"], begun, gpus), "found": result["found"]}
    print_table(page(record).title, HEADINGS, rows(record))
    print(f"{write(arguments.output, record, page(record), begun)}.json and .md")
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(run_command(main))
