"""Train the whole model on one GPU: all 48 layers, and as much of the states in host memory as the GPU lacks.

Real steps first, whose losses are kept. Then what a micro-batch adds to a step and what a step takes once are timed
apart, figures for large steps are composed of them, and one larger step is timed as a whole beside its composition.
All of it stands beside what the plan says. Slices of the model that fit on the GPU give the figure that the whole model
is compared with, and of the peers, from the fastest on, the first that holds the whole model is measured, in the same
call. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.cases import CASES
from benchmarks.logs import log_folder
from benchmarks.one_gpu_report import SPECIFIED, OneGpu, page, remarks, tables_of, update_traffic
from benchmarks.options import add_output_options, require_gpu, wrong_usage
from benchmarks.processes import Planned, Processes, measure_all
from benchmarks.report import write
from benchmarks.spread_cli import PRECISIONS, print_table
from benchmarks.stages import stage_of
from benchmarks.step_report import Measurement
from benchmarks.subjects import SUBJECTS
from benchmarks.versions import device, facts
from megatron_apriel.command_line import CommandLine, above_zero, chosen, zero_or_more
from megatron_apriel.config.training_sections import parse_host_share
from megatron_apriel.errors import ConfigError, ExitCode, run_command

EXAMPLES = """\
examples:
  # FP8 tensorwise and delayed and bf16 at 8192 tokens, and their slices; about 20 minutes on one H200
  python benchmarks/one_gpu.py

  # a long stage, with settings of its own; little else than its real steps
  python benchmarks/one_gpu.py --cases 32768-sft --precision tensorwise --few 1 --more 3 --whole 0 --slices 2,4 \\
      recompute.inputs=host

  # beside the fastest peer that holds the whole model
  python benchmarks/one_gpu.py --precision delayed --recomputed 40 --peers liger-float8+8bit,liger-float8+8bit+full

  # one precision without slices, which takes about 4 minutes
  python benchmarks/one_gpu.py --precision tensorwise --slices none

  # eight layers not recomputed, for which more of the states go to the host
  python benchmarks/one_gpu.py --precision tensorwise --recomputed 40 --slices none

  # 16-bit moments, all of them on the host, so that nothing is recomputed
  python benchmarks/one_gpu.py --precision delayed --recomputed 0 optimizer.moments=bfloat16

  # a fixed part of the states on the host, and what would be measured
  python benchmarks/one_gpu.py --precision bf16 --host 70% --dry-run

Every measurement is a process of its own; one that fails is reported, and the others go on. Exit code: 0 if none
failed, 1 if one did, 2 if the command cannot be run here.
"""


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(description=__doc__, epilog=EXAMPLES)
    what = parser.add_argument_group("what is measured")
    what.add_argument("--cases", default="8192", metavar="A,B", help="kinds of sequences (%(default)s)")
    what.add_argument("--precision", default="tensorwise,delayed,bf16", metavar="A,B", help="default: %(default)s")
    what.add_argument("--layers", type=above_zero, default=48, metavar="N", help="decoder layers (%(default)s)")
    what.add_argument("--recomputed", type=zero_or_more, metavar="N", help="of them, are recomputed (all)")
    what.add_argument("--host", default="auto", metavar="SHARE", help="optimizer.host of the stage (%(default)s)")
    what.add_argument("--slices", default="4,8", metavar="N,M", help="layers of the slices, or none (%(default)s)")
    what.add_argument("--peers", default="none", metavar="A,B", help="in this order until one starts (%(default)s)")
    what.add_argument("settings", nargs="*", metavar="key=value", help="further settings of the stage")
    how = parser.add_argument_group("how")
    how.add_argument("--steps", type=above_zero, default=5, metavar="N", help="real steps (%(default)s)")
    how.add_argument("--few", type=above_zero, default=2, metavar="N", help="micro-batches of each (%(default)s)")
    how.add_argument("--more", type=above_zero, default=8, metavar="N", help="timed beside one (%(default)s)")
    how.add_argument(
        "--whole", type=zero_or_more, default=16, metavar="N", help="of the whole step; 0: none (%(default)s)"
    )
    how.add_argument("--brief", action="store_true", help="fewer repetitions, and slices and peers by --more batches")
    how.add_argument("--budget", type=float, metavar="SECONDS", help="begin no measurement after so many seconds")
    how.add_argument("--limit", type=float, default=500, metavar="SECONDS", help="of one measurement (%(default)g)")
    how.add_argument("--dry-run", action="store_true", help="list the measurements and stop")
    output = parser.add_argument_group("output")
    add_output_options(output, "one_gpu")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # tiny shapes, on the CPU too
    return parser


def _plan(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Specifications of the measurements of the whole model. Raises ConfigError."""
    try:
        host = str(parse_host_share(arguments.host))
    except ValueError as error:
        raise ConfigError(f"--host {arguments.host}: {error}.") from None
    if arguments.more < 2:
        raise ConfigError(f"--more={arguments.more} is no more than one.", fix="Give 2 or more.")
    names = ("layers", "recomputed", "settings", "steps", "few", "more", "whole", "brief", "tiny")
    common = {name: getattr(arguments, name) for name in names}
    plan = [
        {"case": case, "precision": precision, "host": host, **common}
        for case in chosen(arguments.cases, list(CASES), "--cases")
        for precision in chosen(arguments.precision, PRECISIONS, "--precision")
    ]
    for specification in plan:
        stage_of(specification, compute=None if arguments.tiny else "bf16")
    return plan


def _slices(arguments: argparse.Namespace, plan: Sequence[dict[str, Any]]) -> list[Planned]:
    if arguments.slices == "none":
        return []
    depths = sorted({int(text) for text in chosen(arguments.slices, [str(n) for n in range(1, 49)], "--slices")})
    return [Planned(f"ours-{one['precision']}", one["case"], layers) for one in plan for layers in depths]


def _peers(arguments: argparse.Namespace, plan: Sequence[dict[str, Any]]) -> list[list[Planned]]:
    """For each kind of sequences those that may hold the whole model, the fastest first."""
    if arguments.peers == "none":
        return []
    names = chosen(arguments.peers, [name for name in SUBJECTS if not name.startswith("ours-")], "--peers")
    cases = dict.fromkeys(specification["case"] for specification in plan)
    return [[Planned(name, case, arguments.layers) for name in names] for case in cases]


def _first_that_starts(
    peers: Sequence[Sequence[Planned]], options: dict[str, Any], logs: Path, budget: float | None, limit: float
) -> Iterator[dict[str, Any]]:
    """Results of :func:`measure_all` on each list, up to the first that is measured; one budget for all."""
    begun = time.monotonic()
    for planned in peers:
        for one in planned:
            left = None if budget is None else max(budget - (time.monotonic() - begun), 0.0)
            (result,) = measure_all([one], options, logs, left, limit)
            yield result
            if result["measurement"]["status"] == "measured":
                break


def _measured(
    plan: Sequence[dict[str, Any]], logs: Path, budget: float | None, limit: float
) -> Iterator[dict[str, Any]]:
    """Results in the plan's order, each with ``measurement`` and, if it ran, ``environment``."""
    begun = time.monotonic()
    for number, specification in enumerate(plan):
        named = {key: specification[key] for key in SPECIFIED}
        if budget is not None and time.monotonic() - begun > budget:
            yield {"measurement": {**named, "status": "not run", "reason": f"the budget of {budget:.0f} s was spent"}}
            continue
        title = OneGpu(status="not run", **named).title
        print(f"[{number + 1}/{len(plan)}] {title}", file=sys.stderr, flush=True)
        # Not begun while the one before runs: it would be one more process in the host's memory.
        result = Processes("benchmarks.measure_one_gpu", f"one-gpu-{number}", specification, logs).run(limit)
        if isinstance(result, str):
            result = {"measurement": {**named, "status": "failed", "reason": result}}
        one = OneGpu.from_json(result["measurement"])
        said = f"{one.micro_batch_ms:.0f} ms a micro-batch, {one.per_step_ms:.0f} ms a step besides"
        print(f"    {said if one.status == 'measured' else one.reason}", file=sys.stderr, flush=True)
        yield result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if no measurement failed."""
    arguments = _parser().parse_intermixed_args(argv)
    try:
        plan = _plan(arguments)
        slices, peers = _slices(arguments, plan), _peers(arguments, plan)
        if not (arguments.tiny or arguments.dry_run):
            require_gpu("The whole model is trained")
    except ConfigError as error:
        return wrong_usage(error)
    if arguments.dry_run:
        for specification in plan:
            print(
                ", ".join(f"{name} {value}" for name, value in specification.items() if name not in ("tiny", "brief"))
            )
        for planned in [*slices, *itertools.chain(*peers)]:
            print(planned.title)
        return ExitCode.OK
    begun, started = datetime.datetime.now(datetime.UTC), time.monotonic()
    record: dict[str, Any] = {"measurements": [], "slices": [], "peers": []}
    environment: dict[str, Any] = {"device": device()}
    path = arguments.output
    how = {"steps": 2, "probes": 1, "micro_batches": arguments.more} if arguments.brief else {"steps": 3}
    how["tiny"] = arguments.tiny

    def left() -> float | None:
        return None if arguments.budget is None else arguments.budget - (time.monotonic() - started)

    with log_folder() as logs:
        for kind, begin in (
            ("measurements", lambda: _measured(plan, logs.folder, left(), arguments.limit)),
            ("slices", lambda: measure_all(slices, how, logs.folder, left(), arguments.limit)),
            ("peers", lambda: _first_that_starts(peers, how, logs.folder, left(), arguments.limit)),
        ):
            for result in begin():
                record[kind].append(result["measurement"])
                logs.wanted |= result["measurement"]["status"] == "failed"
                environment = result.get("environment") or environment
                # Kept after every measurement: what is interrupted has cost device time all the same.
                record = {**facts("one_gpu", arguments.commit, environment, begun), **record, "steps": arguments.steps}
                path = write(arguments.output, record, page(record), begun)
    measured = [OneGpu.from_json(values) for values in record["measurements"]]
    of_slices, of_peers = ([Measurement.from_json(values) for values in record[kind]] for kind in ("slices", "peers"))
    for title, headings, rows in tables_of(measured, of_slices, of_peers):
        if rows:
            print_table(title, headings, rows)
    for line in [*update_traffic(of_slices), *remarks(measured, [*of_slices, *of_peers])]:
        print(line)
    print(f"{path}.json and .md")
    states = [one.status for one in measured] + [one.status for one in of_slices]
    return ExitCode.FAILED if "failed" in states else ExitCode.OK


if __name__ == "__main__":
    sys.exit(run_command(main))
