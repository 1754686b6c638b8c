"""The part of a training run that a checkpoint holds, small enough for several ranks on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.optimizer import MegatronOptimizer

from megatron_apriel.batch import Batch
from megatron_apriel.checkpoint.loading import load_weights
from megatron_apriel.config.output_sections import KeepPolicy
from megatron_apriel.config.training_sections import TrainedParts
from megatron_apriel.formats.architecture import (
    Architecture,
    DecoderArchitecture,
    ProjectorArchitecture,
    TowerArchitecture,
)
from megatron_apriel.parallel.data_place import DataPlace
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing.batches import make_batch, random_document
from megatron_apriel.testing.stages import small_stage
from megatron_apriel.train.trainer import Trainer

ARCHITECTURE = Architecture(
    decoder=DecoderArchitecture(32, 4, 4, 2, 16, 48, 64, rope_theta=1e6),
    tower=TowerArchitecture(32, 2, 2, 16, 48, "silu", patch_size=4, image_size=32),
    projector=ProjectorArchitecture(32, 32),
)
ALL = TrainedParts(tower=1, projector=1, decoder=1)
KEEP_ALL = KeepPolicy(policy="all")
SEQUENCE_LENGTH, SEQUENCES = 48, 4


class Run:
    """The trainer, and what a checkpoint holds of it."""

    def __init__(
        self,
        layout: Layout,
        train: TrainedParts = ALL,
        dtype: torch.dtype = torch.float32,
        host: float = 0.0,
        **forms: Any,
    ) -> None:
        self.layout = layout
        config = small_stage(
            SEQUENCE_LENGTH,
            SEQUENCES,
            train=train.model_dump(),
            parallel={"overlap": False},  # the chunks hold the newest parameters at any time
            optimizer={"peak": 1e-3, "host": host, **forms},
            precision={"compute": "bf16" if dtype == torch.bfloat16 else "fp32"},
        )
        self.trainer = Trainer(ARCHITECTURE, config, layout)
        self.chunks, self.wrapped = self.trainer.chunks, self.trainer.wrapped
        self.optimizer: MegatronOptimizer = self.trainer.optimizer

    def start_from(self, source: Path) -> None:
        load_weights(self.chunks, source, ARCHITECTURE)
        self.optimizer.reload_model_params()

    def steps(self, first: int, stop: int) -> list[float]:
        """Train steps ``first`` to ``stop``; the loss of each, the same on all ranks."""
        return [self.trainer.step(self._batches(step), 1e-3).loss for step in range(first, stop)]

    def _batches(self, step: int) -> Iterator[Batch]:
        place = DataPlace.of(self.layout, dist.get_rank())
        for number in place.sequences(0, SEQUENCES):
            generator = torch.Generator().manual_seed(1000 * step + number)
            grids = [(2, 3), (1, 4)] if number % 2 else []
            yield make_batch(
                ARCHITECTURE,
                [random_document(ARCHITECTURE, 12, grids, generator)],
                sequence_length=SEQUENCE_LENGTH,
                place=place,
            )

    def weights(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for chunk in self.chunks for parameter in chunk.parameters()]
