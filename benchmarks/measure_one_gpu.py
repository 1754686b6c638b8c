"""One precision of the whole model on one GPU, in a process of its own: real steps, and the parts of a step timed.

``one_gpu.py`` starts this file as ``python -m benchmarks.measure_one_gpu SPECIFICATION RESULT``, lets it import and
prepare, and says when the device is free by a line on standard input.
"""

from __future__ import annotations

import importlib
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import CASES, small, workload
from benchmarks.measure import environment, prepared, seconds_of_step
from benchmarks.one_gpu_report import SPECIFIED
from benchmarks.stages import stage_of
from benchmarks.subjects.ours import Ours
from megatron_apriel.batch import Batch
from megatron_apriel.formats.flops import step_flops
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning.hardware import KINDS
from megatron_apriel.planning.memory import rank_memory
from megatron_apriel.planning.step_time import step_time
from megatron_apriel.train.optimizer import own_optimizers
from megatron_apriel.train.state_placement import memory_for_program
from megatron_apriel.train.step_result import StepResult


def measured(specification: dict[str, Any], wait: Callable[[], Any] = lambda: None) -> dict[str, Any]:
    """Figures as fields of :class:`benchmarks.one_gpu_report.OneGpu`.

    Args:
        specification: ``case``, ``precision``, ``layers``, ``recomputed``, ``host``, ``settings``, ``steps``, ``few``,
            ``more``, ``whole``, ``brief``, ``tiny``.
        wait: returns when the device is free.
    """
    more = specification["more"]
    config = stage_of(specification)
    case = replace(CASES[specification["case"]], micro_batches=more)
    case = small(case) if specification["tiny"] else case
    architecture, made = prepared(case, "ours", specification["layers"], specification["tiny"])
    if torch.cuda.is_available():
        importlib.import_module("transformer_engine.pytorch")
    wait()
    with groups.initialized(Layout()) as device:
        begun = time.perf_counter()
        subject = Ours(architecture, config, Layout())
        begin_s = time.perf_counter() - begun
        given = [batch.to(device) for batch in made]
        results, durations = _real_steps(subject, given, specification["steps"], specification["few"])
        micro_batch, per_step = _parts(subject, given, 1 if specification["brief"] else 2)
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        update = subject.update_seconds()
        many = [given[place % more] for place in range(specification["whole"])]
        whole = seconds_of_step(subject, many, 1)[0] if many else 0.0
        memory, work = rank_memory(config, architecture, Layout(), 0, memory_for_program(device)), workload(made)
        plan = step_time(config, architecture, Layout(), KINDS["h200"], work)
        return {
            **_held(subject),
            "begin_s": begin_s,
            "losses": [result.loss for result in results],
            "norms": [result.gradient_norm for result in results],
            "real_ms": [1e3 * seconds for seconds in durations],
            "tokens": case.sequence_length,
            "document_tokens": work.document_tokens,
            "image_tokens": work.image_tokens,
            "flops": sum(step_flops(architecture, case.train, batch) for batch in made) / len(made),
            "micro_batch_ms": 1e3 * micro_batch,
            "per_step_ms": 1e3 * per_step,
            "update_ms": 1e3 * update,
            "whole_ms": 1e3 * whole,
            "peak": peak,
            "predicted_peak": memory.total,
            "predicted_micro_batch_ms": 1e3 * plan.compute / plan.micro_batches,
            "predicted_per_step_ms": 1e3 * plan.optimizer,
        }


def _real_steps(
    subject: Ours, given: Sequence[Batch], steps: int, micro_batches: int
) -> tuple[list[StepResult], list[float]]:
    """Results and seconds of steps on batches that take turns; the peak of memory is of those after the first."""
    results, durations = [], []
    for number in range(steps):
        if number == 1 and torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        batches = [given[(number * micro_batches + place) % len(given)] for place in range(micro_batches)]
        begun = time.perf_counter()
        results.append(subject.trainer.step(iter(batches), subject.trainer.config.optimizer.peak, micro_batches))
        durations.append(time.perf_counter() - begun)
        assert results[-1].applied, f"step {number} was skipped"
    return results, durations


def _held(subject: Ours) -> dict[str, int]:
    """Parameters that train, and bytes of what is kept for them."""
    own, held, inputs = own_optimizers(subject.trainer.optimizer), subject.memory(), subject.trainer.inputs
    return {
        "parameters": sum(each.numel() for one in own for group in one.param_groups for each in group["params"]),
        "host_bytes": sum(one.states.host_bytes for one in own),
        "input_bytes": inputs.host_bytes if inputs is not None else 0,
        "state_bytes": sum(tensor.nbytes for one in own for tensor in one.states.tensors()),
        "weight_bytes": held["weights"],
        "gradient_bytes": held["main gradients"],
    }


def _parts(subject: Ours, given: Sequence[Batch], repetitions: int) -> tuple[float, float]:
    """Seconds that a micro-batch adds to a step, and of the step besides.

    What a step does once is timed alone and taken off a step of all micro-batches. Two steps' difference would say it
    less well: of one micro-batch and three, a tenth of a second that disturbs one of them is 3% of a micro-batch.
    """
    all_of_them = statistics.median(seconds_of_step(subject, given, 1)[0] for _ in range(repetitions))
    per_step = statistics.median(subject.update_seconds(with_norm=True) for _ in range(3))
    return (all_of_them - per_step) / len(given), per_step


def main(arguments: Sequence[str]) -> int:
    """Measure what the first argument says, and write the result to the second."""
    specification, destination = json.loads(arguments[0]), Path(arguments[1])
    result = {key: specification[key] for key in SPECIFIED}
    try:
        result |= {"status": "measured"} | measured(specification, sys.stdin.readline)
    except torch.OutOfMemoryError as error:
        result |= {"status": "failed", "reason": f"out of memory: {str(error).splitlines()[0][:160]}"}
        traceback.print_exc()
    except Exception as error:
        result |= {"status": "failed", "reason": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        traceback.print_exc()
    destination.write_text(json.dumps({"measurement": result, "environment": environment()}), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
