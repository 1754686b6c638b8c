"""Every layout of the table on real GPUs, over NCCL, in bf16 and each FP8 recipe, against one GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from layout_runs import can_run

from megatron_apriel.testing.layouts import GPU_LAYOUTS, LAYOUTS
from megatron_apriel.testing.marks import needs_gpus, needs_transformer_engine

pytestmark = [pytest.mark.gpu, needs_gpus(2), needs_transformer_engine]

RUNNER = Path(__file__).parent / "layout_runs.py"
PRECISIONS = ("bf16", "delayed", "tensorwise", "blockwise")
# Weights and activations have 8 bits of precision in bf16, and 4 in FP8, whose scales are those of each rank's part.
TOLERANCES = {"bf16": (2e-3, 2e-2)} | dict.fromkeys(PRECISIONS[1:], (1e-2, 6e-2))
"""Precision -> relative tolerance of losses and of gradient norms."""
TABLE = {
    name: row for name, row in (LAYOUTS | GPU_LAYOUTS).items() if row.layout.world_size <= torch.cuda.device_count()
} or LAYOUTS  # fmt: skip


def started(ranks: int, precision: str, directory: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """The process that trains in ``precision`` on every layout of so many ranks, and where its result will be."""
    result = directory / f"{ranks}-{precision}.json"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    with result.with_suffix(".log").open("wb") as log:
        command = [*launcher, str(RUNNER), str(result), precision]
        paths = os.pathsep.join(filter(None, [str(RUNNER.parents[2]), os.environ.get("PYTHONPATH", "")]))
        environment = {**os.environ, "PYTHONPATH": paths}
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment), result


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """By precision and layout, losses and norms of every case; a layout that failed is not among them."""
    directory = tmp_path_factory.mktemp("layouts")
    merged: dict[str, dict[str, Any]] = {precision: {} for precision in PRECISIONS}
    # The precisions side by side, since most of the time goes to starting and compiling; numbers of ranks by turns.
    for ranks in sorted({1, *(row.layout.world_size for row in TABLE.values())}):
        running = [started(ranks, precision, directory) for precision in PRECISIONS]
        try:
            for process, _ in running:
                process.wait(timeout=600)
        finally:
            for process, _ in running:
                process.terminate()
        for process, result in running:
            if process.returncode:
                print(result.with_suffix(".log").read_text(errors="replace")[-6000:])
            by_precision = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
            for precision, rows in by_precision.items():
                merged[precision] |= rows
    return merged


@pytest.mark.parametrize(
    ("name", "precision"),
    [(name, precision) for name, row in TABLE.items() for precision in PRECISIONS if can_run(row, precision)],
)
def test_layout_equals_one_gpu(found: dict[str, dict[str, Any]], name: str, precision: str) -> None:
    assert {"one GPU", name} <= found[precision].keys(), "its ranks failed; their output is printed above"
    expected = found[precision]["one GPU"]
    losses, norms = TOLERANCES[precision]
    for case, outcome in found[precision][name].items():
        assert outcome["losses"] == pytest.approx(expected[case]["losses"], rel=losses), case
        assert outcome["norms"] == pytest.approx(expected[case]["norms"], rel=norms), case
