"""Trains on every layout of the table for this number of ranks, one after the other; run by torchrun.

    torchrun --nproc-per-node 2 layout_runs.py RESULT.json bf16,delayed

The first rank writes losses and gradient norms by precision, layout and case after every layout, so that what comes
before a failure is kept.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_apriel.formats.architecture import (
    Architecture,
    DecoderArchitecture,
    ProjectorArchitecture,
    TowerArchitecture,
)
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing.checkpoints import hf_model
from megatron_apriel.testing.layouts import CASES, GPU_LAYOUTS, LAYOUTS, Case, LayoutRun, Setup
from megatron_apriel.testing.weights import from_transformers

ALONE = "one GPU"
RUN = ("all, mixed", "projector and decoder, mixed", "tower and projector, images")
SEQUENCE_LENGTH, TEXT, STEPS = 1024, 180, 3
ARCHITECTURE = Architecture(
    decoder=DecoderArchitecture(256, 4, 8, 4, 128, 512, 4096, rope_theta=1e6),
    tower=TowerArchitecture(128, 2, 2, 64, 256, "silu", patch_size=16, image_size=256),
    projector=ProjectorArchitecture(128, 256),
)


def rows(ranks: int, precision: str) -> dict[str, Setup]:
    """The layouts for so many ranks that can run in ``precision``."""
    if ranks == 1:
        return {ALONE: Setup(Layout())}
    possible = {name: row for name, row in (LAYOUTS | GPU_LAYOUTS).items() if can_run(row, precision)}
    return {name: row for name, row in possible.items() if row.layout.world_size == ranks}


def can_run(row: Setup, precision: str) -> bool:
    """Whether a stage may say both."""
    return not (row.tensor_overlap and precision == "blockwise")


def run_of(case: Case, row: Setup, precision: str, weights: dict[str, torch.Tensor], **changes: Any) -> LayoutRun:
    """The trainer on a row of the table, in ``bf16`` or with a recipe of FP8; ``changes`` are further settings."""
    fp8 = "none" if precision == "bf16" else precision
    return LayoutRun(ARCHITECTURE, case, row, weights, SEQUENCE_LENGTH, TEXT, precision={"fp8": fp8}, **changes)


def run(case: Case, row: Setup, precision: str, weights: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    """Losses and gradient norms of a few of the trainer's steps."""
    layout_run = run_of(case, row, precision, weights)
    results = [layout_run.step(number) for number in range(STEPS)]
    return {"losses": [result.loss for result in results], "norms": [result.gradient_norm for result in results]}


def forget_scales() -> None:
    """Transformer Engine keeps the largest values that it has seen in one place for all models of a process."""
    from transformer_engine.pytorch.quantization import FP8GlobalStateManager

    FP8GlobalStateManager.reset()


def main(result: Path, precisions: list[str]) -> None:
    weights = from_transformers(hf_model(ARCHITECTURE, seed=1).state_dict(), ARCHITECTURE)
    found: dict[str, Any] = {}
    with groups.joined():
        for precision in precisions:
            for name, row in rows(dist.get_world_size(), precision).items():
                with groups.initialized(row.layout):
                    cases = {}
                    for case in RUN:
                        if precision != "bf16":
                            forget_scales()
                        cases[case] = run(CASES[case], row, precision, weights)
                found.setdefault(precision, {})[name] = cases
                if dist.get_rank() == 0:
                    result.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","))
