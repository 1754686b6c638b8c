"""The learning-rate schedule, against hand-computed values and transformers' schedules."""

import math

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from megatron_apriel.config.schedule import learning_rate, warmup_steps
from megatron_apriel.config.training_sections import OptimizerSection


def rates(steps: int, **settings: object) -> list[float]:
    section = OptimizerSection(peak=1.0, **settings)
    return [learning_rate(step, steps, section) for step in range(steps)]


@pytest.mark.parametrize("decay", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [1, 2, 7, 100])
def test_reaches_peak_after_warmup_and_minimum_at_the_end(decay: str, steps: int) -> None:
    values = rates(steps, warmup=0.3, decay=decay, minimum=0.1)
    rising = round(0.3 * steps)
    assert all(value > 0 for value in values)
    if rising:
        assert values[rising - 1] == 1.0
        assert values[:rising] == sorted(values[:rising])
    assert values[rising:] == sorted(values[rising:], reverse=True)
    assert values[-1] == pytest.approx(0.1)


def test_linear_decay_is_a_straight_line() -> None:
    values = rates(11, warmup=0.0, decay="linear", minimum=0.0)
    assert values == pytest.approx([1 - (step + 1) / 11 for step in range(11)])


def test_cosine_equals_the_one_of_transformers() -> None:
    steps, rising = 60, 6
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    reference = get_cosine_schedule_with_warmup(optimizer, rising, steps)
    expected = []
    for _ in range(steps):
        optimizer.step()
        reference.step()  # theirs gives update 0 a rate of zero; ours is theirs one update later
        expected.append(reference.get_last_lr()[0])
    assert rates(steps, warmup=0.1, decay="cosine", minimum=0.0) == pytest.approx(expected, abs=1e-12)


def test_constant_stays_at_the_peak() -> None:
    assert rates(10, warmup=0.2, decay="constant")[1:] == [1.0] * 9


def test_warmup_never_exceeds_the_run() -> None:
    section = OptimizerSection(peak=1.0, warmup=1.0)
    assert warmup_steps(5, section) == 5
    assert learning_rate(4, 5, section) == 1.0
    assert math.isfinite(learning_rate(9, 5, section))
