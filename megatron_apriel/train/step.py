"""One optimizer step, and one pass over held-out data, through Megatron's pipeline schedules.

The loss of a step is the objective's sum divided by what it counts in the **global** batch: not a mean of means, so
that how documents fall into micro-batches, ranks and packs does not change what is optimised.
Gradients are accumulated as sums; the update divides them on its way (``optimizer.py``).

Nothing of a step waits for the device until all of it is queued: whether there is an update, and by what the gradients
are multiplied in it, is worked out where they are. The result of a step is copied to the host while the update runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_apriel.batch import Batch
from megatron_apriel.train.objectives.objective import Counted, Objective
from megatron_apriel.train.optimizer import apply_gradients, gradient_factor, gradient_norm, take_back
from megatron_apriel.train.step_result import MicroBatch, Shared, StepResult, Sums, gather_bad_sequences


def run_micro_batches(
    chunks: list[DistributedDataParallel],
    objective: Objective,
    batches: Iterable[Batch],
    count: int,
    sequence_length: int,
    forward_only: bool,
) -> list[MicroBatch]:
    """Forward, and backward unless ``forward_only``, over ``count`` micro-batches through the pipeline schedule.

    Returns the objective's results on ranks of the last pipeline stage, an empty list elsewhere. After a backward pass
    gradients are the sums over the global batch, reduced over all ranks.
    """
    iterators = list(itertools.tee(batches, len(chunks))) if len(chunks) > 1 else [iter(batches)]
    single = len(chunks) == 1
    return get_forward_backward_func()(
        forward_step_func=partial(_forward_step, objective),
        data_iterator=iterators[0] if single else iterators,
        model=chunks[0] if single else chunks,
        num_microbatches=count,
        seq_length=sequence_length,
        micro_batch_size=1,
        forward_only=forward_only,
    )


def _forward_step(
    objective: Objective, batches: Iterator[Batch], chunk: torch.nn.Module
) -> tuple[Tensor, Callable[[Tensor], Any]]:
    batch = next(batches)
    result = chunk(batch, objective)
    if not isinstance(result, Counted):  # hidden states, for the next pipeline stage
        return result, _not_called
    micro_batch = MicroBatch(batch.sequence, batch.source, result.sum.detach(), result.count, result.figures_F)
    # A fill, not a copy from the host: the device is not waited for.
    count = torch.full((), result.count, dtype=torch.int, device=result.sum.device)
    return result.sum, lambda total: (total, count, micro_batch)


def _not_called(_: Tensor) -> Any:
    raise AssertionError("Megatron asks for the loss on the last pipeline stage only")


def train_step(
    chunks: list[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    objective: Objective,
    batches: Iterable[Batch],
    shared: Shared,
    *,
    micro_batches: int,
    sequence_length: int,
    sources: int,
    clip: float,
) -> StepResult:
    """One whole step: gradients, their norm, the update; or no update at all, neither of weights nor of moments.

    There is none where a number is not finite, and none where the objective counts nothing in the global batch.

    Args:
        chunks: this rank's model chunks.
        objective: what is minimised.
        batches: this rank's next ``micro_batches`` batches.
        shared: the caller's numbers; asked for once the forward and backward passes are queued.
        sources: number of sources in the mixture.
    """
    for chunk in chunks:
        chunk.zero_grad_buffer()
        chunk.module.set_is_first_microbatch()
    optimizer.zero_grad()
    results = run_micro_batches(chunks, objective, batches, micro_batches, sequence_length, forward_only=False)
    norm_of_sum = gradient_norm(optimizer)
    sums = Sums.over_ranks(results, sources, objective.figures, shared)
    count = sums.source_counts.sum()
    factor = gradient_factor(norm_of_sum, sums.source_sums, count, clip)
    pending = sums.to_host(norm_of_sum / count.clamp(min=1.0), factor)
    apply_gradients(optimizer, factor)
    result = pending.result()
    if not result.applied:
        take_back(optimizer)
    if not result.finite:
        result.bad_sequences = gather_bad_sequences(results)
    return result


def evaluate(
    chunks: list[DistributedDataParallel],
    objective: Objective,
    batches: Iterable[Batch],
    *,
    micro_batches: int,
    sequence_length: int,
    sources: int,
) -> StepResult:
    """The objective over this and all other ranks' ``micro_batches`` batches, without gradients."""
    with torch.no_grad():
        results = run_micro_batches(chunks, objective, batches, micro_batches, sequence_length, forward_only=True)
    return Sums.over_ranks(results, sources, objective.figures, Shared()).to_host().result()
