"""One optimizer step, and one pass over held-out data, through Megatron's pipeline schedules.

The loss of a step is the sum over all tokens that carry loss, divided by their number in the **global** batch: not a
mean of means, so that how documents fall into micro-batches, ranks and packs does not change what is optimised.
Gradients are accumulated as sums; the update divides them on its way (``optimizer.py``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_apriel.batch import Batch
from megatron_apriel.checkpoint.writing import WriteState
from megatron_apriel.train.optimizer import apply_gradients, gradient_norm


@dataclass
class StepReport:
    """What a step did, the same on every rank.

    Attributes:
        loss: mean over the global batch's tokens that carry loss.
        source_sums, source_tokens: per source of the mixture, loss sum and number of loss tokens.
        gradient_norm: of the mean over those tokens, before clipping.
        applied: False if the step was skipped because loss or gradient was not finite.
        totals: the caller's own numbers, summed over data-parallel ranks.
        stop_code: highest exit code that any rank asked to stop with, 0 for none.
        write_state: greatest of the ranks' states of writing a checkpoint in the background.
        bad_sequences: numbers of sequences whose loss was not finite; empty for a sound step.
    """

    loss: float
    source_sums: list[float]
    source_tokens: list[float]
    gradient_norm: float = 0.0
    applied: bool = True
    totals: list[float] = field(default_factory=list)
    stop_code: int = 0
    write_state: WriteState = WriteState.ENDED
    bad_sequences: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class MicroBatchLoss:
    """One micro-batch's loss on the last stage, kept on the device until the step is over."""

    sequence: int
    source: int
    loss_sum: Tensor
    num_tokens: int


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
    optimizer.zero_grad()
    losses = run_micro_batches(chunks, batches, micro_batches, sequence_length, forward_only=False)
    norm_of_sum = gradient_norm(optimizer)
    report = summarise(losses, sources, totals(), stop_code, write_state)
    tokens = max(sum(report.source_tokens), 1.0)
    report.gradient_norm = norm_of_sum / tokens
    report.applied = math.isfinite(norm_of_sum) and all(map(math.isfinite, report.source_sums))
    if report.applied:
        apply_gradients(optimizer, tokens, report.gradient_norm, clip)
    else:
        report.bad_sequences = _gather_bad(losses)
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
    return summarise(losses, sources, [], 0, WriteState.ENDED)


def summarise(
    losses: list[MicroBatchLoss], sources: int, totals: list[float], stop_code: int, write_state: WriteState
) -> StepReport:
    """Add up what the ranks saw; every rank gets the same report. The only place where a step waits for the device."""
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    counts = [0.0] * sources
    for loss in losses:
        counts[loss.source] += loss.num_tokens
    # The caller's totals are of whole sequences, the losses of this context-parallel rank's tokens.
    counts_losses = _first_with_losses()
    counts_totals = counts_losses and parallel_state.get_context_parallel_rank() == 0
    counted = [count * counts_losses for count in counts] + [total * counts_totals for total in totals]
    host = torch.tensor(counted, dtype=torch.float64)
    sums = torch.zeros(sources, dtype=torch.float64, device=device)
    if losses and counts_losses:
        index = torch.tensor([loss.source for loss in losses], device=device)
        sums.index_add_(0, index, torch.stack([loss.loss_sum.double() for loss in losses]))
    flat = torch.cat([sums, host.to(device)])
    dist.all_reduce(flat)
    states = torch.tensor([stop_code, write_state], device=device)
    dist.all_reduce(states, op=dist.ReduceOp.MAX)
    values = flat.tolist()
    source_sums, source_tokens = values[:sources], values[sources : 2 * sources]
    highest_stop_code, highest_write_state = states.tolist()
    return StepReport(
        loss=sum(source_sums) / max(sum(source_tokens), 1.0),
        source_sums=source_sums,
        source_tokens=source_tokens,
        totals=values[2 * sources :],
        stop_code=highest_stop_code,
        write_state=WriteState(highest_write_state),
    )


def _first_with_losses() -> bool:
    """Whether this is the first of the ranks that hold the losses of the same tokens: tensor-parallel, last stage."""
    last_stage = parallel_state.is_pipeline_last_stage(ignore_virtual=True)
    return last_stage and parallel_state.get_tensor_model_parallel_rank() == 0


def _gather_bad(losses: list[MicroBatchLoss]) -> list[int]:
    mine = [loss.sequence for loss in losses if not math.isfinite(loss.loss_sum.item())]
    gathered: list[list[int]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, mine)
    return sorted({sequence for part in gathered for sequence in part})
