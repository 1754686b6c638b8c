"""One optimizer step, and one pass over held-out data, through Megatron's pipeline schedules.

The loss of a step is the sum over all tokens that carry loss, divided by their number in the **global** batch: not a
mean of means, so that how documents fall into micro-batches, ranks and packs does not change what is optimised.
Gradients are accumulated as sums; the update divides them on its way (``optimizer.py``).

Nothing of a step waits for the device until all of it is queued: whether there is an update, and by what the gradients
are multiplied in it, is worked out where they are. The report of a step is copied to the host while the update runs.
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
from megatron_apriel.checkpoint.writing import WriteState
from megatron_apriel.train.optimizer import apply_gradients, gradient_factor, gradient_norm, take_back
from megatron_apriel.train.report import MicroBatchLoss, StepReport, Sums, gather_bad_sequences


def run_micro_batches(
    chunks: list[DistributedDataParallel],
    batches: Iterable[Batch],
    count: int,
    sequence_length: int,
    forward_only: bool,
) -> list[MicroBatchLoss]:
    """Forward, and backward unless ``forward_only``, over ``count`` micro-batches through the pipeline schedule.

    Returns the losses on ranks of the last pipeline stage, an empty list elsewhere. After a backward pass gradients
    are the sums over the global batch, reduced over all ranks.
    """
    iterators = list(itertools.tee(batches, len(chunks))) if len(chunks) > 1 else [iter(batches)]
    single = len(chunks) == 1
    return get_forward_backward_func()(
        forward_step_func=_forward_step,
        data_iterator=iterators[0] if single else iterators,
        model=chunks[0] if single else chunks,
        num_microbatches=count,
        seq_length=sequence_length,
        micro_batch_size=1,
        forward_only=forward_only,
    )


def _forward_step(batches: Iterator[Batch], chunk: torch.nn.Module) -> tuple[Tensor, Callable[[Tensor], Any]]:
    batch = next(batches)
    return chunk(batch), partial(_sum_loss, batch)


def _sum_loss(batch: Batch, losses_S: Tensor) -> tuple[Tensor, Tensor, MicroBatchLoss]:
    loss_sum = losses_S.sum()
    # A fill, not a copy from the host: the device is not waited for.
    num_tokens = torch.full((), batch.num_loss_tokens, dtype=torch.int, device=loss_sum.device)
    report = MicroBatchLoss(batch.sequence, batch.source, loss_sum.detach(), batch.num_loss_tokens)
    return loss_sum, num_tokens, report


def train_step(
    chunks: list[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    batches: Iterable[Batch],
    *,
    micro_batches: int,
    sequence_length: int,
    sources: int,
    clip: float,
    totals: Callable[[], list[float]],
    stop_code: int,
    write_state: WriteState = WriteState.ENDED,
) -> StepReport:
    """One whole step: gradients, their norm, the update; or, where a number is not finite, no update at all.

    Args:
        chunks: this rank's model chunks.
        batches: this rank's next ``micro_batches`` batches.
        sources: number of sources in the mixture.
        totals: called once after the forward and backward passes; its numbers, of this rank's whole sequences, are
            summed over data-parallel ranks.
        stop_code: exit code this rank wants to stop with after the step, 0 for none.
        write_state: how far this rank is with writing a checkpoint in the background.
    """
    for chunk in chunks:
        chunk.zero_grad_buffer()
        chunk.module.set_is_first_microbatch()
    optimizer.zero_grad()
    losses = run_micro_batches(chunks, batches, micro_batches, sequence_length, forward_only=False)
    norm_of_sum = gradient_norm(optimizer)
    sums = Sums.over_ranks(losses, sources, totals(), stop_code, write_state)
    tokens = sums.source_tokens.sum().clamp(min=1.0)
    factor = gradient_factor(norm_of_sum, sums.source_sums, tokens, clip)
    pending = sums.to_host(norm_of_sum / tokens, factor)
    apply_gradients(optimizer, factor)
    report = pending.report()
    if not report.applied:
        take_back(optimizer)
        report.bad_sequences = gather_bad_sequences(losses)
    return report


def evaluate(
    chunks: list[DistributedDataParallel],
    batches: Iterable[Batch],
    *,
    micro_batches: int,
    sequence_length: int,
    sources: int,
) -> StepReport:
    """Loss over this and all other ranks' ``micro_batches`` batches, without gradients."""
    with torch.no_grad():
        losses = run_micro_batches(chunks, batches, micro_batches, sequence_length, forward_only=True)
    sums = Sums.over_ranks(losses, sources, [], 0, WriteState.ENDED)
    return sums.to_host().report()
