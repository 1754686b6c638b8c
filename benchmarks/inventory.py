"""Where the time of one training step goes: milliseconds by groups of kernels, beside the least that it could take.

One step of a slice of the full-width model runs under torch's profiler after a warm-up. Kernels are grouped by name
(benchmarks/kernel_groups.py, which also says what the least is counted from); names that no group knows are listed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.cases import CASES, small
from benchmarks.kernel_groups import GAPS, UNKNOWN, Inventory, inventory, least_ms
from benchmarks.measure import WARM_UP_STEPS, environment, prepared, seconds_of_step
from benchmarks.options import add_output_options, wrong_usage
from benchmarks.report import Page, Record, listed, markdown, write
from benchmarks.subjects import SUBJECTS, USUAL, family
from benchmarks.versions import facts
from megatron_apriel.command_line import CommandLine
from megatron_apriel.errors import ConfigError, ExitCode, run_command

EXAMPLES = """\
examples:
  # the default: FP8 with delayed scaling, 8 layers, 8 micro-batches of 8192 tokens
  python benchmarks/inventory.py

  # the same of a peer
  python benchmarks/inventory.py --subject megatron-delayed
"""
HEADINGS = ("group", "ms a step", "share", "least, ms", "times the least")


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(description=__doc__, epilog=EXAMPLES)
    text_cases = [name for name, case in CASES.items() if not case.has_images]
    parser.add_argument("--subject", choices=USUAL, default="ours-delayed", help="default: %(default)s")
    parser.add_argument("--case", choices=text_cases, default="8192", help="default: %(default)s")
    parser.add_argument("--layers", type=int, default=8, metavar="N", help="decoder layers of the slice (%(default)s)")
    add_output_options(parser, "inventory")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # tiny shapes, on the CPU too
    return parser


def profiled(subject: str, case_name: str, layers: int, tiny: bool) -> tuple[Inventory, dict[str, float], float]:
    """The inventory of a step, the least by group, and the step's milliseconds without the profiler."""
    case = small(CASES[case_name]) if tiny else CASES[case_name]
    architecture, host = prepared(case, subject, layers, tiny)
    squared = sum(int((batch.cu_seqlens.diff().long() ** 2).sum()) for batch in host) / len(host)
    least = least_ms(architecture, case.sequence_length, round(squared), len(host), not subject.endswith("bf16"))
    on_gpu = torch.cuda.is_available()
    given = [batch.to("cuda" if on_gpu else "cpu") for batch in host]
    activity = torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
    with family(subject).opened(architecture, case, subject.partition("-")[2]) as one:
        seconds_of_step(one, given, WARM_UP_STEPS)
        undisturbed, _ = seconds_of_step(one, given, 3)
        with torch.profiler.profile(activities=[activity]) as profiler:
            seconds_of_step(one, given, 1)
        with tempfile.TemporaryDirectory() as scratch:
            trace = Path(scratch) / "trace.json"
            profiler.export_chrome_trace(str(trace))
            events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    return inventory(events), least, 1e3 * undisturbed


def rows(found: Inventory, least: dict[str, float]) -> list[list[str]]:
    """One row a group, the largest first; in the columns of :data:`HEADINGS`."""
    shown = []
    for group, ms in sorted(found.groups.items(), key=lambda item: -item[1]):
        floor = sum(least.get(part, 0.0) for part in group.split(" and "))
        share = f"{ms / found.span_ms:.1%}" if found.span_ms else "-"
        shown.append([group, f"{ms:.1f}", share, *([f"{floor:.1f}", f"{ms / floor:.2f}"] if floor else ["-", "-"])])
    total = sum(least.values())
    last = [f"{total:.1f}", f"{found.span_ms / total:.2f}"]
    return [*shown, ["whole step, first kernel to last", f"{found.span_ms:.1f}", "100%", *last]]


def page(record: Record) -> Page:
    """What this benchmark says of a record."""
    found = Inventory(record["span_ms"], record["groups_ms"], record["kernels"], record["longest_gaps"])
    names = [f"{group}: `{name}` {ms:.2f} ms in {launches}" for group in found.kernels
             for name, ms, launches in found.biggest(group, 4)]  # fmt: skip
    names += [f"gap of {ms:.2f} ms after `{before[:80]}`, before `{after[:80]}`" for ms, before, after in
              found.longest_gaps]  # fmt: skip
    what = f"{SUBJECTS[record['subject']]}, {record['case']}, {record['layers']} layers"
    return Page(
        title=f"Inventory of a step: {what}",
        question="Where does the time of a training step go, beside the least that the device could take?",
        configuration=f"{what}; one step under the profiler after a warm-up",
        measured=[what],
        body="\n".join([
            f"{record['step_ms_without_profiler']:.1f} ms a step without the profiler.",
            "",
            markdown(HEADINGS, rows(found, record["least_ms"])),
            listed(names),
        ]),
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    arguments = _parser().parse_args(argv)
    if not (torch.cuda.is_available() or arguments.tiny):
        error = ConfigError("there is no CUDA device here.", "Kernels of a GPU are counted.", "Run it where one is.")
        return wrong_usage(error)
    begun = datetime.datetime.now(datetime.UTC)
    print(f"{arguments.subject}: building {arguments.layers} layers, warming up, profiling one step", file=sys.stderr)
    found, least, undisturbed = profiled(arguments.subject, arguments.case, arguments.layers, arguments.tiny)
    table = Table(title=f"{SUBJECTS[arguments.subject]}, {arguments.case}, {arguments.layers} layers")
    for number, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="right" if number else "left")
    for row in rows(found, least):
        table.add_row(*row)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    print(f"{undisturbed:.1f} ms a step without the profiler; {GAPS}: no kernel ran")
    for group in (UNKNOWN, "copies and other"):
        for name, ms, launches in found.biggest(group, 8):
            print(f"{group}: {ms:8.2f} ms in {launches:5} launches  {name[:120]}")
    record = {
        **facts("inventory", arguments.commit, environment(), begun), "subject": arguments.subject,
        "case": arguments.case, "layers": arguments.layers, "step_ms_without_profiler": undisturbed,
        "span_ms": found.span_ms, "groups_ms": found.groups, "least_ms": least, "kernels": found.kernels,
        "longest_gaps": found.longest_gaps,
    }  # fmt: skip
    print(f"{write(arguments.output, record, page(record), begun)}.json and .md")
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(run_command(main))
