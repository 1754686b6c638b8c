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

from megatron_apriel.architecture import Architecture, DecoderArchitecture, ProjectorArchitecture, TowerArchitecture
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.model.builder import build_model
from megatron_apriel.model.freeze import apply_freezing
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing.checkpoints import hf_model
from megatron_apriel.testing.layouts import CASES, GPU_LAYOUTS, LAYOUTS, Case, Setup, batches
from megatron_apriel.testing.stages import small_stage
from megatron_apriel.testing.weights import from_transformers, load_full
from megatron_apriel.train.optimizer import build_optimizer, set_learning_rate, wrap_data_parallel
from megatron_apriel.train.report import StepReport
from megatron_apriel.train.step import train_step

ALONE = "one GPU"
RUN = ("all, mixed", "projector and decoder, mixed", "tower and projector, images")
SEQUENCE_LENGTH, TEXT, STEPS = 1024, 180, 3
ARCHITECTURE = Architecture(
    decoder=DecoderArchitecture(256, 4, 8, 4, 128, 512, 4096, rope_theta=1e6),
    tower=TowerArchitecture(128, 2, 2, 64, 256, "silu", patch_size=16, image_size=256),
    projector=ProjectorArchitecture(128, 256),
)


def rows(ranks: int) -> dict[str, Setup]:
    """The layouts for so many ranks."""
    if ranks == 1:
        return {ALONE: Setup(Layout())}
    return {name: row for name, row in (LAYOUTS | GPU_LAYOUTS).items() if row.layout.world_size == ranks}


def stage_of(case: Case, row: Setup, precision: str) -> StageConfig:
    """The trainer's configuration of a row of the table."""
    layout = row.layout
    parallel = {
        "tensor": layout.tensor, "sequence": layout.sequence, "pipeline": layout.pipeline, "virtual": layout.virtual,
        "context": layout.context, "layers_per_stage": layout.layers_per_stage, "overlap": row.overlap,
    }  # fmt: skip
    return small_stage(
        SEQUENCE_LENGTH,
        len(case.images),
        train=case.train.model_dump(),
        parallel=parallel,
        precision={"fp8": "none" if precision == "bf16" else precision},
        recompute={"mode": row.options.recompute},
        optimizer={"peak": 1e-3},
    )


class Trainer:
    """The trainer's own steps on a rank of a layout, from the given weights."""

    def __init__(self, case: Case, row: Setup, precision: str, weights: dict[str, torch.Tensor]) -> None:
        self.case, self.layout, config = case, row.layout, stage_of(case, row, precision)
        self.chunks = build_model(ARCHITECTURE, config, row.layout)
        load_full(self.chunks, weights)
        apply_freezing(self.chunks, config.train)
        self._wrapped = wrap_data_parallel(self.chunks, config)
        self._optimizer = build_optimizer(self._wrapped, config)
        self._clip = config.optimizer.clip
        set_learning_rate(self._optimizer, config.optimizer.peak, config.optimizer)

    def step(self, number: int) -> StepReport:
        """On the tokens and images of step ``number``."""
        given = batches(ARCHITECTURE, self.case, number, self.layout, SEQUENCE_LENGTH, TEXT)
        return train_step(
            self._wrapped,
            self._optimizer,
            (batch.pin_memory().to(groups.current_device()) for batch in given),
            micro_batches=len(self.case.images) // self.layout.data,
            sequence_length=SEQUENCE_LENGTH,
            sources=1,
            clip=self._clip,
            totals=list,
            stop_code=0,
        )


def run(case: Case, row: Setup, precision: str, weights: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    """Losses and gradient norms of a few of the trainer's steps."""
    trainer = Trainer(case, row, precision, weights)
    reports = [trainer.step(number) for number in range(STEPS)]
    return {"losses": [report.loss for report in reports], "norms": [report.gradient_norm for report in reports]}


def _forget_scales() -> None:
    """Transformer Engine keeps the largest values that it has seen in one place for all models of a process."""
    from transformer_engine.pytorch.quantization import FP8GlobalStateManager

    FP8GlobalStateManager.reset()


def main(result: Path, precisions: list[str]) -> None:
    weights = from_transformers(hf_model(ARCHITECTURE, seed=1).state_dict(), ARCHITECTURE)
    found: dict[str, Any] = {}
    with groups.joined():
        for precision in precisions:
            for name, row in rows(dist.get_world_size()).items():
                with groups.initialized(row.layout):
                    cases = {}
                    for case in RUN:
                        if precision != "bf16":
                            _forget_scales()
                        cases[case] = run(CASES[case], row, precision, weights)
                found.setdefault(precision, {})[name] = cases
                if dist.get_rank() == 0:
                    result.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2].split(","))
