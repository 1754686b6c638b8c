"""One measurement in a process of its own: fresh memory, and nothing of another subject imported.

``step.py`` starts this file as ``python -m benchmarks.measure SPECIFICATION RESULT`` with a specification in JSON, lets
it import and prepare, and says when the device is free by a line on standard input. The result is a JSON file that is
written in any case: figures, or why there are none.
"""

from __future__ import annotations

import gc
import importlib
import json
import math
import statistics
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import CASES, Case, batches, small
from benchmarks.step_report import FULL_DEPTH, Measurement
from benchmarks.subjects import NotPossible, Subject, Updated, family
from megatron_apriel.batch import Batch, PackedImages
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.flops import step_flops

WARM_UP_STEPS = 2
PROBES = 5
"""Pairs of short steps from which the cost of a step follows that is not of its micro-batches."""
PACKAGES = (
    "torch",
    "triton",
    "megatron-core",
    "transformer-engine",
    "flash-attn-4",
    "transformers",
    "liger-kernel",
    "torchao",
)


def prepared(case: Case, subject: str, layers: int, tiny: bool) -> tuple[Architecture, list[Batch]]:
    """The full-width model with ``layers`` decoder layers, and the tokens.

    Peers have no tower: they get the tokens of the same sequences, image tokens included, and no pixels.
    """
    whole = Architecture.from_preset("tiny" if tiny else "apriel-15b").with_layers(layers)
    text_only = Architecture(decoder=whole.decoder, image_token_id=whole.image_token_id)
    made = batches(case, whole if case.has_images else text_only)
    if case.has_images and subject.startswith("ours"):
        return whole, made
    return text_only, [replace(batch, images=PackedImages.empty(0)) for batch in made]


def environment() -> dict[str, Any]:
    """Device and versions of what takes part."""
    found: dict[str, Any] = {"python": sys.version.split()[0], "versions": {}}
    for package in PACKAGES:
        try:
            found["versions"][package] = version(package)
        except PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found |= {"device": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
        found["cuda"] = torch.version.cuda
    else:
        found["device"] = "CPU"
    return found


def seconds_of_step(subject: Subject, given: Sequence[Batch], steps: int) -> tuple[float, float]:
    """Median duration of ``steps`` steps over the batches, and the last loss."""
    durations, loss = [], 0.0
    for _ in range(steps):
        _wait()
        started = time.perf_counter()
        loss = subject.step(given)
        _wait()
        durations.append(time.perf_counter() - started)
    return statistics.median(durations), loss


def cost_of_a_step(subject: Subject, batch: Batch, few: int, more: int, probes: int = PROBES) -> float:
    """Seconds of an optimizer step that its micro-batches do not account for: norm, clipping, update, copies.

    Steps of ``few`` and of ``more`` micro-batches differ in their number alone, since all are the same batch. They are
    taken by turns, so that a clock that drifts or another process that disturbs meets both, and the medians count.
    """
    turns = [[seconds_of_step(subject, [batch] * count, 1)[0] for count in (few, more)] for _ in range(probes)]
    short, longer = (statistics.median(seconds) for seconds in zip(*turns, strict=True))
    return short - few * (longer - short) / (more - few)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measured(specification: dict[str, Any], wait: Any = lambda: None) -> dict[str, Any]:
    """Figures of one subject, case and depth, as the fields of :class:`benchmarks.step_report.Measurement`.

    Args:
        specification: ``subject``, ``case``, ``layers``, ``steps`` and ``tiny``; fewer ``probes`` than usual, and
            another number of ``micro_batches`` than the case's.
        wait: returns when the device is free.
    """
    name, tiny = specification["subject"], specification["tiny"]
    case = CASES[specification["case"]]
    case = replace(case, micro_batches=specification.get("micro_batches", case.micro_batches))
    case = small(case) if tiny else case
    architecture, host = prepared(case, name, specification["layers"], tiny)
    deep = architecture.with_layers(FULL_DEPTH)
    work = [(step_flops(architecture, case.train, batch), step_flops(deep, case.train, batch)) for batch in host]
    opened = family(name).opened
    if torch.cuda.is_available() and name.startswith("ours"):
        importlib.import_module("transformer_engine.pytorch")  # otherwise when the model is built
    wait()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    given = [batch.to(device) for batch in host]
    with opened(architecture, case, name.partition("-")[2]) as subject:
        figures = _timed(subject, given, case.probe, specification["steps"], specification.get("probes", PROBES))
        if isinstance(subject, Updated) and not case.has_images:  # all that the slice has is trained
            figures["update_ms"] = 1e3 * subject.update_seconds(with_norm=True)
        del subject
    gc.collect()
    count = len(given)
    return figures | {
        "micro_batches": count,
        "tokens": case.sequence_length,
        "flops": sum(slice_flops for slice_flops, _ in work) / count,
        "full_depth_flops": sum(full_flops for _, full_flops in work) / count,
        "parameters": architecture.parameters,
    }


def _timed(subject: Subject, given: Sequence[Batch], probe: tuple[int, int], steps: int, probes: int) -> dict[str, Any]:
    """Times of whole steps, the cost of a step apart from its micro-batches, and memory."""
    on_gpu = torch.cuda.is_available()
    seconds_of_step(subject, given, WARM_UP_STEPS)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    whole, loss = seconds_of_step(subject, given, steps)
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    per_step = cost_of_a_step(subject, given[0], *probe, probes=probes)
    memory = subject.memory()
    if not math.isfinite(loss):
        raise ArithmeticError(f"the loss of the last timed step is {loss}")
    return {
        "step_ms": 1e3 * whole,
        "per_step_ms": 1e3 * per_step,
        "loss": loss,
        "memory": memory | {"activations and rest": peak - sum(memory.values()), "peak": peak} if on_gpu else {},
    }


def main(arguments: Sequence[str]) -> int:
    """Measure what the first argument says, and write the result to the second."""
    specification, destination = json.loads(arguments[0]), Path(arguments[1])
    result: dict[str, Any] = {key: specification[key] for key in ("subject", "case", "layers")}
    try:
        result |= {"status": "measured"} | measured(specification, sys.stdin.readline)
    except NotPossible as reason:
        result |= {"status": "not possible", "reason": str(reason)}
    except torch.OutOfMemoryError as error:
        result |= {"status": "failed", "reason": f"out of memory: {str(error).splitlines()[0][:120]}"}
        traceback.print_exc()
    except Exception as error:
        result |= {"status": "failed", "reason": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        traceback.print_exc()
    Measurement.from_json(result)
    destination.write_text(json.dumps({"measurement": result, "environment": environment()}), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
