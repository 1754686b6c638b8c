"""How sure a prediction is: what it shares with steps that were measured, and what it does not. No torch.

Where nothing here speaks against it, predicted speed was within :data:`WITHIN` of what was measured, but for few steps
just beyond (``benchmarks/predictions.py`` shows them all). A :class:`Doubt` names what no measurement stands behind, or
what differs from machine to machine: the host that starts the kernels.
"""

from __future__ import annotations

import enum

from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning.hardware import Hardware
from megatron_apriel.planning.step_time import StepTime

WITHIN = 0.05
"""Of most measured steps on one to four H200."""
MEASURED_GPU, MEASURED_GPUS = "H200", 4
MEASURED_TENSOR, MEASURED_CONTEXT, MEASURED_PIPELINE = 4, 2, 2


class Doubt(enum.Enum):
    """Why a prediction may be further off; the value is what a legend says of it."""

    KIND = "k", f"no step on these GPUs was measured, only on {MEASURED_GPU}"
    NUMBER = "n", f"more than the {MEASURED_GPUS} GPUs of one host that were measured"
    LINKS = "l", "links between hosts are taken from datasheets"
    SPLIT = "s", f"wider than TP{MEASURED_TENSOR}, CP{MEASURED_CONTEXT} or PP{MEASURED_PIPELINE}, or PP without VP"
    HOST = "h", "layers so short that the host decides, which starts their kernels; measured on one kind of host"

    @property
    def sign(self) -> str:
        return self.value[0]

    @property
    def words(self) -> str:
        return self.value[1]


def doubts(layout: Layout, gpu: Hardware, time: StepTime) -> list[Doubt]:
    """What speaks against a predicted step."""
    found = {
        Doubt.KIND: gpu.name != MEASURED_GPU,
        Doubt.NUMBER: layout.world_size > MEASURED_GPUS,
        Doubt.LINKS: layout.world_size > gpu.gpus_per_node,
        Doubt.SPLIT: layout.tensor > MEASURED_TENSOR
        or layout.context > MEASURED_CONTEXT
        or layout.pipeline > MEASURED_PIPELINE
        or (layout.pipeline > 1 and layout.virtual == 1),
        Doubt.HOST: time.host > 0,
    }
    return [doubt for doubt, speaks in found.items() if speaks]


def signs(found: list[Doubt]) -> str:
    """Of a prediction, for a table's cell."""
    return f"? {''.join(doubt.sign for doubt in found)}" if found else f"{WITHIN:.0%}"


def legend(shown: list[list[Doubt]]) -> list[str]:
    """What the signs of these predictions mean, a line each."""
    lines = [f"sure: {WITHIN:.0%}, layouts of this kind were measured, and predicted that well"] * (not all(shown))
    return lines + [f"sure: {doubt.sign}, {doubt.words}" for doubt in Doubt if any(doubt in found for found in shown)]
