"""Measure the links between the GPUs of one host: what ``tools/plan.py`` takes as ``intra_node`` and ``latency``.

Collectives of NCCL and messages between neighbours, from small tensors, whose time is latency, to large ones.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.options import add_output_options
from benchmarks.processes import Processes
from benchmarks.report import markdown
from benchmarks.spread_cli import host_facts, print_table
from megatron_apriel.errors import ConfigError, ExitCode, run_command

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
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs to use (default: all of this host)")
    add_output_options(parser, "links-DATE.json and .md")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # small tensors, on the CPU too
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    arguments = _parser().parse_args(argv)
    present = torch.cuda.device_count()
    gpus = arguments.gpus or present
    if gpus < 2 or (gpus > present and not arguments.tiny):
        error = ConfigError(
            f"--gpus={gpus}, and this host shows {present} CUDA device(s).",
            "Links are between at least two.",
            "Run it on a host with several GPUs.",
        )
        print(f"ConfigError: {error}", file=sys.stderr)
        return ExitCode.USAGE
    logs = Path(tempfile.mkdtemp(prefix="benchmark-"))
    sizes = SIZES[:2] if arguments.tiny else SIZES
    result = Processes("benchmarks.measure_links", "links", {"sizes": sizes}, logs, gpus).run(300)
    if isinstance(result, str):
        print(f"failed: {result}", file=sys.stderr)
        return ExitCode.FAILED
    rows = [
        [one["kind"], f"{one['bytes'] / 2**20:g}", f"{one['microseconds']:.0f}", f"{one['gb_s']:.1f}"]
        for one in sorted(result["found"], key=lambda one: one["kind"])
    ]
    now = datetime.datetime.now(datetime.UTC)
    facts = host_facts("links", arguments.commit, result["environment"], now, gpus)
    print_table("links", HEADINGS, rows)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"links-{now:%Y%m%d-%H%M%S}"
    path.with_suffix(".json").write_text(json.dumps({**facts, **result}, indent=1) + "\n", encoding="utf-8")
    lines = [f"# Links between GPUs, {facts['date']}", "", *(f"- {name}: {value}" for name, value in facts.items())]
    path.with_suffix(".md").write_text("\n".join([*lines, "", markdown(HEADINGS, rows), ""]), encoding="utf-8")
    print(f"{path}.json and .md")
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(run_command(main))
