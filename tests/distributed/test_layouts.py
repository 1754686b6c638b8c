"""Every parallel layout against one process: losses over several steps, layers' outputs, gradients and their norms.

Each layout of the table runs every case of ``CASES``, which vary what trains and what the batches hold, from the same
weights on the same global batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from transformers import LlavaForConditionalGeneration  # noqa: F401  (imported once, before the ranks are forked)

from megatron_apriel.architecture import Architecture, DecoderArchitecture, ProjectorArchitecture, TowerArchitecture
from megatron_apriel.batch import Batch
from megatron_apriel.model.builder import build_model
from megatron_apriel.model.freeze import apply_freezing
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing.checkpoints import hf_model
from megatron_apriel.testing.layer_outputs import LayerOutputs, Outputs, gather_outputs
from megatron_apriel.testing.layouts import CASES, LAYOUTS, Case, Setup, batches
from megatron_apriel.testing.ranks import run_ranks
from megatron_apriel.testing.weights import from_transformers, gather_full, load_full
from megatron_apriel.train.optimizer import use_own_adamw

ARCHITECTURE = Architecture(
    decoder=DecoderArchitecture(32, 4, 4, 2, 16, 48, 64, rope_theta=1e6),
    tower=TowerArchitecture(32, 2, 2, 16, 48, "silu", patch_size=4, image_size=32),
    projector=ProjectorArchitecture(32, 32),
)
SEQUENCE_LENGTH, STEPS = 48, 2


@dataclass
class Outcome:
    """Losses of the steps and of an evaluation after them, gradient norms; layers' outputs and gradients of step 1."""

    losses: list[float]
    norms: list[float]
    outputs: Outputs
    gradients: dict[str, torch.Tensor]


def forward_step(iterator: Iterator[Batch], chunk: torch.nn.Module) -> tuple[torch.Tensor, Any]:
    batch = next(iterator)

    def loss(losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return losses.sum(), torch.tensor(batch.num_loss_tokens, dtype=torch.int), losses.detach().sum()

    return chunk(batch), loss


def run_case(case: Case, setup: Setup, weights: dict[str, torch.Tensor]) -> Outcome:
    layout = setup.layout
    chunks = build_model(ARCHITECTURE, setup.options, layout)
    load_full(chunks, weights)
    apply_freezing(chunks, case.train)
    config = chunks[0].config
    settings = DistributedDataParallelConfig(
        use_distributed_optimizer=setup.distributed_optimizer,
        overlap_grad_reduce=setup.overlap,
        overlap_param_gather=setup.overlap,
        bucket_size=4000 if setup.overlap else None,
    )
    wrapped = [
        DistributedDataParallel(config, settings, chunk, disable_bucketing=i > 0) for i, chunk in enumerate(chunks)
    ]
    use_own_adamw()
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            lr=1e-3,
            weight_decay=0.1,
            clip_grad=1.0,
            use_distributed_optimizer=setup.distributed_optimizer,
            overlap_param_gather=setup.overlap,
        ),
        wrapped,
    )
    config.grad_scale_func, config.finalize_model_grads_func = optimizer.scale_loss, finalize_model_grads
    single = len(wrapped) == 1
    if setup.overlap:
        config.no_sync_func = wrapped[0].no_sync if single else [chunk.no_sync for chunk in wrapped]
        starts = [chunk.start_param_sync for chunk in wrapped]
        config.param_sync_func = starts[0] if single else starts
    outcome = Outcome([], [], {}, {})
    listening = LayerOutputs(chunks)
    for step in range(STEPS):
        for chunk in wrapped:
            chunk.zero_grad_buffer()
        optimizer.zero_grad()
        # The distributed optimizer leaves each rank its own part of the gradients; the first step's are compared.
        sums = run_schedule(wrapped, case, step, layout, force_all_reduce=step == 0)
        if step == 0:
            outcome.outputs = gather_outputs(listening.close(), SEQUENCE_LENGTH, config.sequence_parallel)
            outcome.gradients = gather_full(chunks, lambda p: p.main_grad if p.requires_grad else None)
        _, norm, _ = optimizer.step()
        outcome.losses.append(total_loss(sums))
        outcome.norms.append(float(norm))
    with torch.no_grad():
        outcome.losses.append(total_loss(run_schedule(wrapped, case, STEPS, layout, forward_only=True)))
    return outcome


def run_schedule(
    wrapped: list[DistributedDataParallel], case: Case, step: int, layout: Layout, **how: bool
) -> list[torch.Tensor]:
    """One pass of Megatron's schedule over a global batch."""
    iterators, single = (
        [batches(ARCHITECTURE, case, step, layout, SEQUENCE_LENGTH, 8) for _ in wrapped],
        len(wrapped) == 1,
    )
    return get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=iterators[0] if single else iterators,
        model=wrapped[0] if single else wrapped,
        num_microbatches=len(case.images) // layout.data,
        seq_length=SEQUENCE_LENGTH,
        micro_batch_size=1,
        **{"forward_only": False} | how,
    )


def total_loss(sums: list[torch.Tensor]) -> float:
    """Loss summed over the global batch; only the last stage has it, once per tensor-parallel rank."""
    total = torch.stack(sums).sum() if sums else torch.zeros(())
    dist.all_reduce(total)
    return total.item() / parallel_state.get_tensor_model_parallel_world_size()


def run_all(rank: int, size: int, setup: Setup, weights: dict[str, torch.Tensor]) -> dict[str, Outcome] | None:
    with groups.initialized(setup.layout):
        outcomes = {name: run_case(case, setup, weights) for name, case in CASES.items()}
    return outcomes if rank == 0 else None


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return from_transformers(hf_model(ARCHITECTURE, seed=1).state_dict(), ARCHITECTURE)


@pytest.fixture(scope="module")
def expected(weights: dict[str, torch.Tensor]) -> dict[str, Outcome]:
    return run_ranks(1, run_all, Setup(Layout()), weights)[0]


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout_equals_one_process(name: str, weights: dict[str, torch.Tensor], expected: dict[str, Outcome]) -> None:
    setup = LAYOUTS[name]
    outcomes = run_ranks(setup.layout.world_size, run_all, setup, weights)[0]
    for case, reference in expected.items():
        outcome = outcomes[case]
        assert outcome.losses == pytest.approx(reference.losses, rel=1e-5), case
        assert outcome.norms == pytest.approx(reference.norms, rel=1e-5, abs=1e-6), case
        assert len(reference.outputs) == ARCHITECTURE.decoder.num_layers * len(CASES[case].images)
        for found, expect in ((outcome.outputs, reference.outputs), (outcome.gradients, reference.gradients)):
            assert found.keys() == expect.keys(), case
            for key, tensor in expect.items():
                largest, difference = tensor.abs().max(), (found[key] - tensor).abs().max()
                assert difference <= 1e-5 * largest, (case, key, difference, largest)
