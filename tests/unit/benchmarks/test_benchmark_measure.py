"""How a step's time is divided, on a clock that the test turns."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from benchmarks import measure
from benchmarks.cases import CASES, small
from megatron_apriel.batch import Batch


class Clock:
    """Seconds that pass only when a subject works."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Steady:
    """A device on which a micro-batch takes 2 s, and a step 0.3 s more; numbered steps are disturbed for 5 s."""

    def __init__(self, clock: Clock, disturbed: set[int]) -> None:
        self.clock, self.disturbed = clock, disturbed
        self.sizes: list[int] = []

    def step(self, batches: Sequence[Batch]) -> float:
        self.clock.now += 0.3 + 2 * len(batches) + 5 * (len(self.sizes) in self.disturbed)
        self.sizes.append(len(batches))
        return 1.0

    def memory(self) -> dict[str, int]:
        return {}


@pytest.mark.parametrize("disturbed", [set(), {0}, {0, 1, 4, 7}])
def test_cost_of_a_step_apart_from_its_micro_batches(monkeypatch: pytest.MonkeyPatch, disturbed: set[int]) -> None:
    clock = Clock()
    monkeypatch.setattr(measure, "time", clock)
    subject = Steady(clock, disturbed)
    _, (batch, *_) = measure.prepared(small(CASES["8192"]), "ours-bf16", 1, tiny=True)
    assert measure.cost_of_a_step(subject, batch, 1, 4) == pytest.approx(0.3)
    assert subject.sizes == [1, 4] * 5
