"""Runs measurements one after the other on one device, each in a process of its own.

The next process starts while the one before measures, and waits with its imports and tokens done until the device is
free: half of a measurement's time would otherwise pass on an idle device.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {
    # Without this, sequences of ever different images leave gaps that look like a need for memory.
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    # What one process has compiled of FlashAttention-4, seconds a kernel, the next ones find.
    "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED": "1",
}
"""Of the processes' environment, where it does not say otherwise."""


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


class Processes:
    """The processes of one measurement, one a rank, which wait for their turn with their imports done.

    Args:
        module: what each runs, as ``python -m MODULE SPECIFICATION RESULT``; it reads a line from standard input before
            it touches the device.
        name: of result and logs.
        specification: what to measure, as JSON.
        logs: directory for result and output.
        ranks: how many; more than one find each other by the variables that ``torchrun`` sets.
    """

    def __init__(self, module: str, name: str, specification: dict[str, Any], logs: Path, ranks: int = 1) -> None:
        self._result, self._logs = logs / f"{name}.json", [logs / f"{name}.{rank}.log" for rank in range(ranks)]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        environment = {**SETTINGS, **os.environ, "PYTHONPATH": path}
        command = [sys.executable, "-m", module, json.dumps(specification), str(self._result)]
        self._processes = [
            _started(command, environment | place, log) for place, log in zip(places(ranks), self._logs, strict=True)
        ]
        self._limit: float | None = None

    def run(self, limit: float) -> dict[str, Any] | str:
        """Let them measure for at most ``limit`` seconds; what they found, or why they found nothing."""
        for process in self._processes:
            with contextlib.suppress(BrokenPipeError):  # it has failed already, which its exit code shows
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.close()
        ends = time.monotonic() + limit
        while None in (codes := [process.poll() for process in self._processes]):
            if any(codes) or time.monotonic() > ends:
                # Ranks whose peer has failed would wait for it; a moment for them to say what they know.
                time.sleep(1)
                self._limit = None if any(codes) else limit
                self.stop()
                break
            time.sleep(0.05)
        if self._result.exists():
            found: dict[str, Any] = json.loads(self._result.read_text(encoding="utf-8"))
            return found
        return self.reason()

    def reason(self) -> str:
        """Why they found nothing, or no more."""
        if self._limit is not None:
            log = self._logs[0]
            return f"took longer than {self._limit:.0f} s; the log ends in {_last_line(log)!r}: {log}"
        # Killed for the sake of another is no reason.
        codes = [(process.returncode, log) for process, log in zip(self._processes, self._logs, strict=True)]
        code, log = next(((code, log) for code, log in codes if code not in (0, -signal.SIGKILL)), codes[0])
        return f"exit code {code}: {_last_line(log)}"

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()


def _last_line(log: Path) -> str:
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return (said or ["no output"])[-1][:200]


def places(ranks: int) -> list[dict[str, str]]:
    """The variables by which ranks of one host find each other; none for a rank that is alone."""
    if ranks == 1:
        return [{}]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    common |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def _free_port() -> int:
    """One that nobody listens at, below those that the system deals out: the ranks may bind it minutes later."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


def _started(command: Sequence[str], environment: dict[str, str], log: Path) -> subprocess.Popen[str]:
    with log.open("w", encoding="utf-8") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=environment,
            text=True,
        )


def measure_all(
    plan: list[Planned], options: dict[str, Any], logs: Path, budget: float | None, limit: float
) -> Iterator[dict[str, Any]]:
    """Results in the plan's order, each with ``measurement`` and, if it ran, ``environment``.

    Where the deepest slice of a subject does not fit, half of the shallowest is measured instead, so that there are two
    depths to compute a layer's cost from.

    Args:
        plan: what to measure.
        options: for every measurement; see ``measure.py``.
        logs: directory for their output.
        budget: seconds after which none is begun; None for no limit.
        limit: seconds that one may take.
    """
    begun, queue, done = time.monotonic(), list(plan), 0
    waiting: Processes | None = None

    def started(planned: Planned) -> Processes:
        specification = {"subject": planned.subject, "case": planned.case, "layers": planned.layers, **options}
        name = f"{planned.case}-{planned.subject}-{planned.layers}"
        return Processes("benchmarks.measure", name, specification, logs)

    try:
        while queue:
            spent = time.monotonic() - begun
            if budget is not None and spent > budget:
                break
            planned = queue.pop(0)
            process = waiting or started(planned)
            waiting = started(queue[0]) if queue else None
            left = f", about {spent / done * (len(queue) + 1) / 60:.0f} min left" if done else ""
            print(f"[{done + 1}/{done + 1 + len(queue)}] {planned.title}{left}", file=sys.stderr, flush=True)
            result = process.run(limit)
            if isinstance(result, str):
                result = planned.without_figures("failed", result)
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
