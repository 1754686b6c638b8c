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

from benchmarks.cases import CASES, small
from benchmarks.measure import environment, prepared, seconds_of_step
from benchmarks.subjects.ours import Ours, stage_config
from megatron_apriel.batch import Batch
from megatron_apriel.config.machine_sections import RecomputeSection
from megatron_apriel.formats.flops import step_flops
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning.hardware import KINDS
from megatron_apriel.planning.memory import rank_memory
from megatron_apriel.planning.step_time import Workload, step_time
from megatron_apriel.train.optimizer import apply_gradients, own_optimizers
from megatron_apriel.train.state_placement import memory_for_program

UPDATES = 3


def measured(specification: dict[str, Any], wait: Callable[[], Any] = lambda: None) -> dict[str, Any]:
    """Figures as fields of :class:`benchmarks.one_gpu_report.OneGpu`.

    Args:
        specification: ``case``, ``precision``, ``layers``, ``recomputed``, ``host``, ``steps``, ``few``, ``more``,
            ``whole``, ``tiny``.
        wait: returns when the device is free.
    """
    precision, few, more = specification["precision"], specification["few"], specification["more"]
    case = replace(CASES[specification["case"]], micro_batches=more)
    case = small(case) if specification["tiny"] else case
    architecture, made = prepared(case, "ours", specification["layers"], specification["tiny"])
    host = specification["host"] if specification["host"] == "auto" else float(specification["host"])
    config = stage_config(
        case,
        precision,
        recompute=RecomputeSection(mode="full", layers=specification["recomputed"]),
        fp8_weights="kept" if precision == "bf16" else "remade",
        host=host,
    )
    flops = sum(step_flops(architecture, case.train, batch) for batch in made) / len(made)
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        importlib.import_module("transformer_engine.pytorch")
    wait()
    with groups.initialized(Layout()) as device:
        begun = time.perf_counter()
        subject = Ours(architecture, config, Layout())
        begin_s = time.perf_counter() - begun
        given = [batch.to(device) for batch in made]
        results = []
        for number in range(specification["steps"]):
            if number == 1 and on_gpu:
                torch.cuda.reset_peak_memory_stats()
            batches = [given[(number * few + place) % more] for place in range(few)]
            results.append(subject.trainer.step(iter(batches), config.optimizer.peak, few))
            assert results[-1].applied, f"step {number} was skipped"
        peak = torch.cuda.max_memory_allocated() if on_gpu else 0
        one, all_of_them = _alternated(subject, given, (1, more))
        micro_batch = (all_of_them - one) / (more - 1)
        update = _update_alone(subject)
        many = [given[place % more] for place in range(specification["whole"])]
        whole, _ = seconds_of_step(subject, many, 1)
        memory = rank_memory(config, architecture, Layout(), 0, memory_for_program(device))
        plan = step_time(config, architecture, Layout(), KINDS["h200"], Workload.of(config, images=0.0))
        states = [own.states for own in own_optimizers(subject.trainer.optimizer)]
        held = subject.memory()
        return {
            "parameters": sum(each.numel() for own in own_optimizers(subject.trainer.optimizer)
                              for group in own.param_groups for each in group["params"]),
            "host_bytes": sum(each.host_bytes for each in states),
            "state_bytes": sum(tensor.nbytes for each in states for tensor in each.tensors()),
            "weight_bytes": held["weights"],
            "gradient_bytes": held["main gradients"],
            "begin_s": begin_s,
            "losses": [result.loss for result in results],
            "norms": [result.gradient_norm for result in results],
            "tokens": case.sequence_length,
            "flops": flops,
            "micro_batch_ms": 1e3 * micro_batch,
            "per_step_ms": 1e3 * (one - micro_batch),
            "update_ms": 1e3 * update,
            "whole_ms": 1e3 * whole,
            "peak": peak,
            "predicted_peak": memory.total,
            "predicted_micro_batch_ms": 1e3 * plan.compute / plan.micro_batches,
        }  # fmt: skip


def _alternated(subject: Ours, given: Sequence[Batch], counts: tuple[int, int]) -> list[float]:
    """Seconds of steps of so many micro-batches, taken by turns; the median of each."""
    turns = [[seconds_of_step(subject, given[:count], 1)[0] for count in counts] for _ in range(2)]
    return [statistics.median(seconds) for seconds in zip(*turns, strict=True)]


def _update_alone(subject: Ours) -> float:
    """Seconds of an update from the gradients of the last step, scaled so that it changes next to nothing."""
    optimizer, durations = subject.trainer.optimizer, []
    factor = torch.full((), 1e-9, dtype=torch.float64, device=groups.current_device())
    optimizer.prepare_grads()
    for _ in range(UPDATES):
        _wait()
        begun = time.perf_counter()
        apply_gradients(optimizer, factor)
        _wait()
        durations.append(time.perf_counter() - begun)
    return statistics.median(durations)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main(arguments: Sequence[str]) -> int:
    """Measure what the first argument says, and write the result to the second."""
    specification, destination = json.loads(arguments[0]), Path(arguments[1])
    result = {key: specification[key] for key in ("case", "precision", "layers", "recomputed", "host", "few", "whole")}
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
