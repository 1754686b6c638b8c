"""What is logged of the steps since the last record: means, counts and sums, so that a curve shows all of them.

One step's loss is that of the documents that happen to be in it, and every tenth of them is a noisy curve that leaves
nine tenths out. So a record carries, beside its own step's figures, those of all steps since the record before:

- losses and the objective's figures: means over all their loss tokens, as if these had been one step; those of a
  source over its own;
- the gradient norm: the mean of the steps that had an update;
- steps without an update, skipped or empty: their numbers;
- rates, and the share of time spent waiting for data: over the whole time of the steps.

Where every step is logged, the two are the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from megatron_apriel.train.step_result import StepResult


class SinceLastRecord:
    """Adds up what steps did, until a record is made of it.

    Args:
        labels: of the mixture's sources.
        world_size: ranks, over which operations are divided.
    """

    def __init__(self, labels: Sequence[str], world_size: int) -> None:
        self._labels, self._world_size = list(labels), world_size
        self._clear()

    def _clear(self) -> None:
        self._steps, self._updates, self._skipped, self._empty = 0, 0, 0, 0
        self._sums, self._counts = [0.0] * len(self._labels), [0.0] * len(self._labels)
        self._figures: dict[str, float] = {}
        self._gradient_norms = 0.0
        self._work = [0.0, 0.0, 0.0]
        self._seconds, self._waited = 0.0, 0.0

    def add(self, result: StepResult, seconds: float, waited: float) -> None:
        """Count a step; its losses only if there was an update by them.

        Args:
            result: with the step's tokens, its operations, and those of tower and projector, as the caller's sums.
            seconds: that it took.
            waited: of these, for data.
        """
        self._steps += 1
        self._seconds, self._waited = self._seconds + seconds, self._waited + waited
        self._work = _added(self._work, result.sums)
        self._skipped += not result.finite
        self._empty += result.empty
        if not result.applied:
            return
        self._updates += 1
        self._gradient_norms += result.gradient_norm
        self._sums = _added(self._sums, result.source_sums)
        self._counts = _added(self._counts, result.source_counts)
        tokens = sum(result.source_counts)
        for name, figure in result.figures.items():
            self._figures[name] = self._figures.get(name, 0.0) + figure * tokens

    def take(self) -> dict[str, Any]:
        """The figures of all steps since the last call; there must have been one with an update."""
        tokens, seconds = sum(self._counts), self._seconds
        work, flops, of_images = self._work
        taken = {
            "count": self._steps,
            "skipped": self._skipped,
            "empty": self._empty,
            "loss": sum(self._sums) / tokens,
            "loss_by_source": self._by_source(),
            **{name: figure / tokens for name, figure in self._figures.items()},
            "gradient_norm": self._gradient_norms / self._updates,
            "loss_tokens": tokens,
            "tokens_per_second": work / seconds,
            "tflops_per_gpu": flops / seconds / self._world_size / 1e12,
            "image_share": of_images / flops,
            "data_wait": min(self._waited / seconds, 1.0),
        }
        self._clear()
        return taken

    def _by_source(self) -> dict[str, float | None]:
        """Every source by its name; None where no token of it carried loss."""
        rows = zip(self._labels, self._sums, self._counts, strict=True)
        return {label: total / count if count else None for label, total, count in rows}


def _added(first: Sequence[float], second: Sequence[float]) -> list[float]:
    return [one + other for one, other in zip(first, second, strict=True)]
