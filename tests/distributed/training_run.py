"""The part of a training run that a checkpoint holds, small enough for several ranks on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func

from megatron_apriel.architecture import Architecture, DecoderArchitecture, ProjectorArchitecture, TowerArchitecture
from megatron_apriel.batch import Batch
from megatron_apriel.checkpoint.hf import load_weights
from megatron_apriel.config.schema import KeepPolicy, TrainedParts
from megatron_apriel.model.builder import build_model
from megatron_apriel.model.freeze import apply_freezing
from megatron_apriel.model.options import ModelOptions
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing.batches import make_batch, random_document
from megatron_apriel.train.optimizer import use_own_adamw

ARCHITECTURE = Architecture(
    decoder=DecoderArchitecture(32, 4, 4, 2, 16, 48, 64, rope_theta=1e6),
    tower=TowerArchitecture(32, 2, 2, 16, 48, "silu", patch_size=4, image_size=32),
    projector=ProjectorArchitecture(32, 32),
)
ALL = TrainedParts(tower=1, projector=1, decoder=1)
KEEP_ALL = KeepPolicy(policy="all")
SEQUENCE_LENGTH, SEQUENCES = 48, 4

LAYOUTS = {
    "one": Layout(1),
    "DP2": Layout(2),
    "TP2": Layout(2, tensor=2, sequence=True),
    "PP2 VP2": Layout(2, pipeline=2, virtual=2),
    "TP2 PP2": Layout(4, tensor=2, pipeline=2, sequence=True),
    "TP2 DP2": Layout(4, tensor=2, sequence=True),
    "CP2": Layout(2, context=2),
    "TP2 CP2": Layout(4, tensor=2, sequence=True, context=2),
}


class Run:
    """The part of a training run that a checkpoint holds."""

    def __init__(self, layout: Layout, train: TrainedParts = ALL, dtype: torch.dtype = torch.float32) -> None:
        self.layout = layout
        self.chunks = build_model(ARCHITECTURE, ModelOptions(dtype=dtype), layout)
        apply_freezing(self.chunks, train)
        config = self.chunks[0].config
        settings = DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True)
        self.wrapped = [DistributedDataParallel(config, settings, chunk) for chunk in self.chunks]
        bf16 = dtype == torch.bfloat16
        use_own_adamw()
        self.optimizer: MegatronOptimizer = get_megatron_optimizer(
            OptimizerConfig(
                lr=1e-3, weight_decay=0.1, clip_grad=1.0, use_distributed_optimizer=True, bf16=bf16, params_dtype=dtype
            ),
            self.wrapped,
        )
        config.finalize_model_grads_func = finalize_model_grads
        config.grad_scale_func = self.optimizer.scale_loss

    def start_from(self, source: Path) -> None:
        load_weights(self.chunks, source, ARCHITECTURE)
        self.optimizer.reload_model_params()

    def steps(self, first: int, stop: int) -> list[float]:
        """Train steps ``first`` to ``stop``; the sum of the losses of each, the same on all ranks."""
        return [self._step(step) for step in range(first, stop)]

    def _step(self, step: int) -> float:
        for chunk in self.wrapped:
            chunk.zero_grad_buffer()
        self.optimizer.zero_grad()
        outputs = get_forward_backward_func()(
            forward_step_func=_forward_step,
            data_iterator=[self._batches(step) for _ in self.wrapped],
            model=self.wrapped,
            num_microbatches=SEQUENCES // self.layout.data,
            seq_length=SEQUENCE_LENGTH,
            micro_batch_size=1,
        )
        self.optimizer.step()
        total = torch.stack(outputs).sum() if outputs else torch.zeros(())
        dist.all_reduce(total)
        return float(total) / self.layout.tensor

    def _batches(self, step: int) -> Iterator[Batch]:
        shares, context = groups.image_shares_group(), groups.context_group()
        for number in range(parallel_state.get_data_parallel_rank(), SEQUENCES, self.layout.data):
            generator = torch.Generator().manual_seed(1000 * step + number)
            grids = [(2, 3), (1, 4)] if number % 2 else []
            yield make_batch(
                ARCHITECTURE,
                [random_document(ARCHITECTURE, 12, grids, generator)],
                sequence_length=SEQUENCE_LENGTH,
                shares=shares.size(),
                share=shares.rank(),
                context=context.rank(),
                contexts=context.size(),
            )

    def weights(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for chunk in self.chunks for parameter in chunk.parameters()]


def _forward_step(iterator: Iterator[Batch], chunk: torch.nn.Module) -> tuple[torch.Tensor, Any]:
    batch = next(iterator)

    def loss(losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return losses.sum(), torch.tensor(batch.num_loss_tokens, dtype=torch.int), losses.detach().sum()

    return chunk(batch), loss
