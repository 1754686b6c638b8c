"""One rank of measurements on several GPUs: the trainer's own step on a layout, timed, then profiled.

``spread.py`` starts as many of these as there are GPUs, as ``python -m benchmarks.measure_spread SPECIFICATION
RESULT``, and says when the devices are free by a line on standard input. The first rank writes what was found after
each measurement; a rank that fails says why in its last line of output.
"""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.cases import batches
from benchmarks.kernel_groups import division, occupancy
from benchmarks.measure import WARM_UP_STEPS, environment, seconds_of_step
from benchmarks.phases import Phases
from benchmarks.spread import Found, Spread
from benchmarks.subjects.ours import Ours
from megatron_apriel.batch import Batch
from megatron_apriel.formats.flops import step_flops
from megatron_apriel.output_files import replace_file
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.data_place import DataPlace

PROFILED_STEPS = 2
"""Of the different ones, the last."""


def own_batches(spread: Spread, rank: int) -> list[list[Batch]]:
    """What the rank sees of each of the different steps, on the host."""
    case, place = spread.sized_case(), DataPlace.of(spread.layout(), rank)
    dealing = spread.config().parallel.dealing
    return [
        batches(case, spread.architecture(), place, dealing=dealing, first=step * case.micro_batches)
        for step in range(spread.different_steps)
    ]


def measured(spread: Spread, steps: int, given: Sequence[Sequence[Batch]], phases: Phases) -> Found:
    """Time of a step, and what every rank's device does in one; all ranks call this within their process groups."""
    on_gpu = torch.cuda.is_available()
    gc.collect()  # what the measurement before has left
    if on_gpu:
        torch.cuda.empty_cache()
    architecture, train = spread.architecture(), spread.config().train
    work = [float(sum(step_flops(architecture, train, batch) for batch in step)) for step in given]
    device = groups.current_device()
    given = [[batch.to(device) for batch in step] for step in given]
    subject = Ours(architecture, spread.config(), spread.layout())
    phases.end("model")
    for number in range(WARM_UP_STEPS):
        seconds_of_step(subject, given[0], 1)
        phases.end(f"warm-up {number + 1}")
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    timed = [seconds_of_step(subject, step, steps) for step in given]
    phases.end("timed steps")
    seconds, loss = statistics.fmean(seconds for seconds, _ in timed), timed[-1][1]
    if not math.isfinite(loss):
        raise ArithmeticError(f"the loss of the last timed step is {loss}")
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    profiled = given[-PROFILED_STEPS:]
    shown, divided = _profiled(subject, profiled)
    mine = {"peak": peak, **shown}, {**divided, "steps": len(profiled)}, work
    everywhere: list[tuple[dict[str, float], dict[str, Any], list[float]]] = [({}, {}, [])] * dist.get_world_size()
    dist.all_gather_object(everywhere, mine)
    phases.end("profiled steps")
    ranks, divisions, flops_of_ranks = zip(*everywhere, strict=True)
    layout = spread.layout()
    return Found(
        spread=spread,
        status="measured",
        step_ms=1e3 * seconds,
        tokens=spread.sequences * spread.sized_case().sequence_length,
        # Each rank counts its whole sequences, which the ranks of a replica share.
        flops=sum(map(sum, flops_of_ranks)) / len(given) / layout.model_ranks,
        loss=loss,
        ranks=ranks,
        divisions=divisions,
        flops_of_ranks=flops_of_ranks,
        seconds=phases.seconds,
    )


def _profiled(subject: Ours, given: Sequence[Sequence[Batch]]) -> tuple[dict[str, float], dict[str, Any]]:
    """What this rank's device does in the steps; see :class:`Occupancy` and :class:`Division` of ``kernel_groups``."""
    on_gpu = torch.cuda.is_available()
    activity = torch.profiler.ProfilerActivity.CUDA if on_gpu else torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[activity]) as profiler:
        for step in given:
            seconds_of_step(subject, step, 1)
    with tempfile.TemporaryDirectory() as scratch:
        trace = Path(scratch) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    return asdict(occupancy(events)), asdict(division(events))


def main(arguments: Sequence[str]) -> int:
    """Measure what the first argument says; the first rank writes what was found to the second."""
    specification, destination = json.loads(arguments[0]), Path(arguments[1])
    phases, found = Phases(specification["begun"]), []
    spreads = [Spread(**one) for one in specification["spreads"]]
    rank = int(os.environ.get("RANK", "0"))
    if torch.cuda.is_available():
        importlib.import_module("transformer_engine.pytorch")  # otherwise when the model is built
    phases.end("imports")
    given = [own_batches(spread, rank) for spread in spreads]
    phases.end("tokens")
    sys.stdin.readline()
    phases.end("waiting for the devices")
    with groups.joined():
        for spread, batches_of_it in zip(spreads, given, strict=True):
            with groups.initialized(spread.layout()):
                found.append(asdict(measured(spread, specification["steps"], batches_of_it, phases)))
            if rank == 0:
                replace_file(destination, json.dumps({"found": found, "environment": environment()}))
            phases = Phases(time.time())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
