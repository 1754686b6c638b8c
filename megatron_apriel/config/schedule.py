"""The learning rate as a function of the step: linear warm-up, then linear or cosine decay, or none. No torch."""

from __future__ import annotations

import math

from megatron_apriel.config.training_sections import OptimizerSection


def warmup_steps(steps: int, section: OptimizerSection) -> int:
    """Number of updates during which the rate rises; the peak is reached at the last of them."""
    return min(round(section.warmup * steps), steps)


def learning_rate(step: int, steps: int, section: OptimizerSection) -> float:
    """Rate of update number ``step`` (from 0) of ``steps``, for a component whose factor is 1.

    The first update already has a rate above zero, the last warm-up update has the peak, and the last update of the
    run has the minimum, so that no update is spent at zero.
    """
    rising = warmup_steps(steps, section)
    if step < rising:
        return section.peak * (step + 1) / rising
    if section.decay == "constant" or steps == rising:
        return section.peak
    progress = min((step + 1 - rising) / (steps - rising), 1.0)
    remaining = 1 - progress if section.decay == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return section.peak * (section.minimum + (1 - section.minimum) * remaining)
