"""Runs measurements one after the other on one device, each in a process of its own.

The next process starts while the one before measures, and waits with its imports and tokens done until the device is
free: half of a measurement's time would otherwise pass on an idle device.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Planned:
    """A measurement to be made."""

    subject: str
    case: str
    layers: int

    @property
    def title(self) -> str:
        return f"{self.case}, {self.subject}, {self.layers} layers"

    def without_figures(self, status: str, reason: str) -> dict[str, Any]:
        values = {"subject": self.subject, "case": self.case, "layers": self.layers}
        return {"measurement": {**values, "status": status, "reason": reason}}


class _Process:
    """A measurement's process, which waits for its turn."""

    def __init__(self, planned: Planned, options: dict[str, Any], logs: Path) -> None:
        self.planned = planned
        name = f"{planned.case}-{planned.subject}-{planned.layers}"
        self.result, self.log = logs / f"{name}.json", logs / f"{name}.log"
        specification = {"subject": planned.subject, "case": planned.case, "layers": planned.layers, **options}
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        # Without this, sequences of ever different images leave gaps that look like a need for memory.
        environment = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", **os.environ, "PYTHONPATH": path}
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.measure", json.dumps(specification), str(self.result)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=environment,
                text=True,
            )

    def run(self, limit: float) -> dict[str, Any]:
        """Let it measure, and return what it found."""
        try:
            self.process.communicate("go\n", timeout=limit)
        except subprocess.TimeoutExpired:
            self.stop()
            return self.planned.without_figures("failed", f"took longer than {limit:.0f} s; log in {self.log}")
        if self.result.exists():
            found: dict[str, Any] = json.loads(self.result.read_text(encoding="utf-8"))
            return found
        said = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = f"exit code {self.process.returncode}: {(said or ['no output'])[-1][:200]}"
        return self.planned.without_figures("failed", reason)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def measure_all(
    plan: list[Planned], options: dict[str, Any], logs: Path, budget: float | None, limit: float
) -> Iterator[dict[str, Any]]:
    """Results in the plan's order, each with ``measurement`` and, if it ran, ``environment``.

    Where the deepest slice of a subject does not fit, half of the shallowest is measured instead, so that there are two
    depths to tell a layer's cost from.

    Args:
        plan: what to measure.
        options: for every measurement; see ``measure.py``.
        logs: directory for their output.
        budget: seconds after which none is begun; None for no limit.
        limit: seconds that one may take.
    """
    begun, queue, done = time.monotonic(), list(plan), 0
    waiting: _Process | None = None
    try:
        while queue:
            spent = time.monotonic() - begun
            if budget is not None and spent > budget:
                break
            planned = queue.pop(0)
            process = waiting or _Process(planned, options, logs)
            waiting = _Process(queue[0], options, logs) if queue else None
            left = f", about {spent / done * (len(queue) + 1) / 60:.0f} min left" if done else ""
            print(f"[{done + 1}/{done + 1 + len(queue)}] {planned.title}{left}", file=sys.stderr, flush=True)
            result = process.run(limit)
            done += 1
            print(f"    {_short(result['measurement'])}", file=sys.stderr, flush=True)
            yield result
            following = _following(planned, plan, queue, result["measurement"])
            if waiting and following[:1] != queue[:1]:
                waiting.stop()
                waiting = None
            queue = following
        for planned in queue:
            yield planned.without_figures("not run", f"the budget of {budget:.0f} s was spent")
    finally:
        if waiting:
            waiting.stop()


def _short(measurement: dict[str, Any]) -> str:
    if measurement["status"] != "measured":
        return f"{measurement['status']}: {measurement['reason']}"
    per_micro_batch = measurement["step_ms"] / measurement["micro_batches"]
    return f"{per_micro_batch:.1f} ms a micro-batch, {measurement['flops'] / per_micro_batch / 1e9:.0f} TFLOP/s"


def _following(
    planned: Planned, plan: list[Planned], queue: list[Planned], measurement: dict[str, Any]
) -> list[Planned]:
    """What comes after a measurement: the queue, with a slice more or without those that are known to be in vain."""

    def same(one: Planned) -> bool:
        return (one.subject, one.case) == (planned.subject, planned.case)

    if measurement["status"] == "not possible":
        return [one for one in queue if not same(one)]
    depths = sorted(one.layers for one in plan if same(one))
    half = depths[0] // 2
    if "out of memory" in measurement.get("reason", "") and planned.layers == depths[-1] > depths[0] and half:
        return [Planned(planned.subject, planned.case, half), *queue]
    return queue
