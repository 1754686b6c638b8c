"""What a step returns: losses and counts of all ranks, added up on the device and copied to the host.

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

from megatron_apriel.parallel.agreement import of_all_ranks
from megatron_apriel.parallel.groups import current_device


class Shared:
    """Numbers of the caller's that all ranks are to know after a step. They travel with the step's own; here none."""

    def sums(self) -> list[float]:
        """Of this rank's whole sequences; added up over data-parallel ranks."""
        return []

    def maxima(self) -> list[int]:
        """Of this rank; the greatest of all ranks' is what comes back."""
        return []


@dataclass
class StepResult:
    """What a step did, the same on every rank.

    Attributes:
        loss: the objective's mean over what it counts in the global batch.
        source_sums, source_counts: per source of the mixture, the objective's sum and what it counted.
        figures: the objective's figures by name, means over the same.
        gradient_norm: of the mean, before clipping.
        applied: False if there was no update, because loss or gradient was not finite or because nothing was counted.
        finite: whether loss and gradient were.
        sums, maxima: the caller's numbers, see :class:`Shared`.
        bad_sequences: numbers of sequences whose loss was not finite; empty for a sound step.
    """

    loss: float
    source_sums: list[float]
    source_counts: list[float]
    figures: dict[str, float] = field(default_factory=dict)
    gradient_norm: float = 0.0
    applied: bool = True
    finite: bool = True
    sums: list[float] = field(default_factory=list)
    maxima: list[int] = field(default_factory=list)
    bad_sequences: list[int] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether there was no update because the global batch holds no target."""
        return self.finite and not self.applied


@dataclass(frozen=True)
class MicroBatch:
    """One micro-batch's result on the last pipeline stage, kept on the device until the step is over.

    Attributes:
        sequence, source: number of its sequence, and of the source that it is from.
        sum, count, figures_F: see :class:`~megatron_apriel.train.objectives.objective.Counted`.
    """

    sequence: int
    source: int
    sum: Tensor
    count: int
    figures_F: Tensor | None


@dataclass(frozen=True)
class Sums:
    """What the ranks saw in a step, added up, the same on every rank; float64, on the device.

    Attributes:
        source_sums, source_counts: [sources], see :class:`StepResult`.
        figures_F: sums of the objective's figures, called ``names``.
        shared_sums, shared_maxima: the caller's.
    """

    source_sums: Tensor
    source_counts: Tensor
    figures_F: Tensor
    shared_sums: Tensor
    shared_maxima: Tensor
    names: tuple[str, ...]

    @classmethod
    def over_ranks(cls, results: list[MicroBatch], sources: int, figures: tuple[str, ...], shared: Shared) -> Self:
        """Collective. The results are of this context-parallel rank's tokens, the caller's of whole sequences."""
        counts = [0.0] * sources
        for result in results:
            counts[result.source] += result.count
        sums, maxima = shared.sums(), shared.maxima()
        has_results = _first_with_results()
        has_sums = has_results and parallel_state.get_context_parallel_rank() == 0
        counted = [count * has_results for count in counts] + [number * has_sums for number in sums]
        numbers = _on_device([*counted, *maxima], torch.float64)
        device_sums = torch.zeros(sources, dtype=torch.float64, device=numbers.device)
        figures_F = torch.zeros(len(figures), dtype=torch.float64, device=numbers.device)
        if results and has_results:
            index = _on_device([result.source for result in results], torch.int64)
            device_sums.index_add_(0, index, torch.stack([result.sum.double() for result in results]))
            for result in results:
                if result.figures_F is not None:
                    figures_F += result.figures_F
        added = torch.cat([device_sums, figures_F, numbers[: len(counted)]])
        greatest = numbers[len(counted) :].clone()
        dist.all_reduce(added)
        if maxima:
            dist.all_reduce(greatest, op=dist.ReduceOp.MAX)
        source_sums, figures_F, source_counts, added_sums = added.split([sources, len(figures), sources, len(sums)])
        return cls(source_sums, source_counts, figures_F, added_sums, greatest, figures)

    def to_host(self, gradient_norm: Tensor | None = None, factor: Tensor | None = None) -> PendingResult:
        """Begin to copy these to the host, with two numbers of the step's update where it has one."""
        none = self.source_sums.new_zeros(())
        update = torch.stack([none if number is None else number for number in (gradient_norm, factor)])
        parts = [update, self.source_sums, self.source_counts, self.figures_F, self.shared_sums, self.shared_maxima]
        return PendingResult(torch.cat(parts), [len(part) for part in parts], self.names)


class PendingResult:
    """Numbers of a step on their way to the host, behind what was queued on the device before them."""

    def __init__(self, values: Tensor, sizes: list[int], figures: tuple[str, ...]) -> None:
        self._values, self._sizes, self._figures = values, sizes, figures
        self._arrived: torch.cuda.Event | None = None
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.current_stream().record_event()

    def result(self) -> StepResult:
        """The only place where a step waits for the device, which works on what was queued after these numbers."""
        if self._arrived is not None:
            self._arrived.synchronize()
        parts = (part.tolist() for part in self._values.split(self._sizes))
        (norm, factor), source_sums, source_counts, figures, sums, maxima = parts
        count = max(sum(source_counts), 1.0)
        return StepResult(
            loss=sum(source_sums) / count,
            source_sums=source_sums,
            source_counts=source_counts,
            figures={name: figure / count for name, figure in zip(self._figures, figures, strict=True)},
            gradient_norm=norm,
            applied=not math.isnan(factor),
            finite=all(map(math.isfinite, (norm, *source_sums))),
            sums=sums,
            maxima=[int(number) for number in maxima],
        )


def _on_device(numbers: Sequence[float], dtype: torch.dtype) -> Tensor:
    """A tensor of ``numbers`` on this rank's device, which is not waited for."""
    device = current_device()
    return torch.tensor(numbers, dtype=dtype, pin_memory=device.type == "cuda").to(device, non_blocking=True)


def _first_with_results() -> bool:
    """Whether this is the first of the ranks that hold the same results: tensor-parallel ones of the last stage."""
    last_stage = parallel_state.is_pipeline_last_stage(ignore_virtual=True)
    return last_stage and parallel_state.get_tensor_model_parallel_rank() == 0


def gather_bad_sequences(results: list[MicroBatch]) -> list[int]:
    """Numbers of the sequences of all ranks whose loss is not finite; collective, and waits for the device."""
    mine = [result.sequence for result in results if not math.isfinite(result.sum.item())]
    return sorted({sequence for part in of_all_ranks(mine) for sequence in part})
