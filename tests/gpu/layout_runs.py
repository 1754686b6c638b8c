"""Trains on layouts of the table, one after the other in the same processes; run by torchrun.

    torchrun --nproc-per-node 2 layout_runs.py RESULT.json '[["TP2 SP", "bf16"], ["TP2 SP", "delayed"]]'

The first rank writes losses and gradient norms by layout, precision and case after every pair, so that what comes
before a failure is kept, and who waits for them need not wait for all. One group of processes at a time: kernels of
several groups would take turns on a GPU, and those that wait for another GPU's do so for as long as turns take.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterable
from operator import itemgetter
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
from megatron_apriel.output_files import replace_file
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.fp8_scales import forget_scales
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


TABLE = {ALONE: Setup(Layout())} | LAYOUTS | GPU_LAYOUTS


def by_worth(names: Iterable[str]) -> list[str]:
    """Those of the fewest ranks first, since they can run anywhere; of them those with the most in them.

    Layouts with buffers of Transformer Engine's own come last: of all that can go wrong, only they leave a GPU waiting
    for ever.
    """

    def worth(name: str) -> tuple[int, bool, int]:
        row = TABLE[name]
        sizes = (row.layout.tensor, row.layout.context, row.layout.pipeline, row.layout.virtual, row.layout.data)
        extras = (row.layout.sequence, row.layout.layers_per_stage, row.overlap, row.recompute != "none")
        return row.layout.world_size, row.tensor_overlap, -sum(size > 1 for size in sizes) - sum(map(bool, extras))

    return sorted(names, key=worth)


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


def main(result: Path, pairs: list[tuple[str, str]]) -> None:
    weights = from_transformers(hf_model(ARCHITECTURE, seed=1).state_dict(), ARCHITECTURE)
    found: dict[str, Any] = {}
    with groups.joined():
        for name, precisions in itertools.groupby(pairs, itemgetter(0)):
            row = TABLE[name]
            with groups.initialized(row.layout):
                for _, precision in precisions:
                    cases = {}
                    for case in RUN:
                        forget_scales()
                        cases[case] = run(CASES[case], row, precision, weights)
                    found.setdefault(name, {})[precision] = cases
                    if dist.get_rank() == 0:
                        replace_file(result, json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
