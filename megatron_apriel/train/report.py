"""What a step tells of itself: losses and counts of all ranks, added up on the device and copied to the host.

The copy is begun as soon as the numbers are there and waited for only when everything of the step is queued behind
them, so that the device never stands idle because the host wants to know something.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from megatron_apriel.checkpoint.writing import WriteState
from megatron_apriel.parallel.groups import current_device


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


@dataclass(frozen=True)
class Sums:
    """What the ranks saw in a step, added up, the same on every rank; float64, on the device.

    Attributes:
        source_sums, source_tokens: [sources], see :class:`StepReport`.
        totals: the caller's own numbers.
        states: highest exit code asked for, and greatest state of writing a checkpoint.
    """

    source_sums: Tensor
    source_tokens: Tensor
    totals: Tensor
    states: Tensor

    @classmethod
    def over_ranks(
        cls, losses: list[MicroBatchLoss], sources: int, totals: list[float], stop_code: int, write_state: WriteState
    ) -> Self:
        """Collective. ``totals`` are of whole sequences, the losses of this context-parallel rank's tokens."""
        counts = [0.0] * sources
        for loss in losses:
            counts[loss.source] += loss.num_tokens
        counts_losses = _first_with_losses()
        counts_totals = counts_losses and parallel_state.get_context_parallel_rank() == 0
        counted = [count * counts_losses for count in counts] + [total * counts_totals for total in totals]
        numbers = _on_device([*counted, stop_code, write_state], torch.float64)
        sums = torch.zeros(sources, dtype=torch.float64, device=numbers.device)
        if losses and counts_losses:
            index = _on_device([loss.source for loss in losses], torch.int64)
            sums.index_add_(0, index, torch.stack([loss.loss_sum.double() for loss in losses]))
        added, states = torch.cat([sums, numbers[:-2]]), numbers[-2:].clone()
        dist.all_reduce(added)
        dist.all_reduce(states, op=dist.ReduceOp.MAX)
        source_sums, source_tokens, added_totals = added.split([sources, sources, len(totals)])
        return cls(source_sums, source_tokens, added_totals, states)

    def to_host(self, gradient_norm: Tensor | None = None, factor: Tensor | None = None) -> PendingReport:
        """Begin to copy these to the host, with two numbers of the step's update where it has one."""
        none = self.states.new_zeros(())
        update = torch.stack([none if number is None else number for number in (gradient_norm, factor)])
        parts = [update, self.states, self.totals, self.source_sums, self.source_tokens]
        return PendingReport(torch.cat(parts), [len(part) for part in parts])


class PendingReport:
    """Numbers of a step on their way to the host, behind what was queued on the device before them."""

    def __init__(self, values: Tensor, sizes: list[int]) -> None:
        self._values, self._sizes = values, sizes
        self._arrived: torch.cuda.Event | None = None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.current_stream().record_event()

    def report(self) -> StepReport:
        """The only place where a step waits for the device; it goes on with what was queued after these numbers."""
        if self._arrived is not None:
            self._arrived.synchronize()
        (norm, factor), states, totals, sums, tokens = (part.tolist() for part in self._values.split(self._sizes))
        return StepReport(
            loss=sum(sums) / max(sum(tokens), 1.0),
            source_sums=sums,
            source_tokens=tokens,
            gradient_norm=norm,
            applied=not math.isnan(factor),
            totals=totals,
            stop_code=int(states[0]),
            write_state=WriteState(int(states[1])),
        )


def _on_device(numbers: Sequence[float], dtype: torch.dtype) -> Tensor:
    """A tensor of ``numbers`` on this rank's device, which is not waited for."""
    device = current_device()
    return torch.tensor(numbers, dtype=dtype, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def _first_with_losses() -> bool:
    """Whether this is the first of the ranks that hold the losses of the same tokens: tensor-parallel, last stage."""
    last_stage = parallel_state.is_pipeline_last_stage(ignore_virtual=True)
    return last_stage and parallel_state.get_tensor_model_parallel_rank() == 0


def gather_bad_sequences(losses: list[MicroBatchLoss]) -> list[int]:
    """Numbers of the sequences of all ranks whose loss is not finite; collective, and waits for the device."""
    mine = [loss.sequence for loss in losses if not math.isfinite(loss.loss_sum.item())]
    gathered: list[list[int]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, mine)
    return sorted({sequence for part in gathered for sequence in part})
