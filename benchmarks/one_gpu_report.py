"""What was measured of the whole model on one GPU: figures composed of their parts, and their page. No torch.

A step of half a million tokens takes over a minute. So its parts are timed apart, what a micro-batch adds and what a
step takes once, and figures are composed of them; one step of more micro-batches is then timed as a whole to see that
the composition holds. FLOPs by the one rule of ``megatron_apriel/formats/flops.py``: recomputation is never counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from benchmarks.report import GIB, Page, Record, listed, markdown
from benchmarks.step_report import Measurement, figure

STEP_TOKENS = {"0.5 M": 1 << 19, "5.2 M": 640 * 8192}
"""Tokens of a step: what small runs take, and the recipe."""
COMPOSED_WITHIN = 0.02
"""How far, relatively, a whole step may be from the one composed of its parts."""


@dataclass(frozen=True)
class OneGpu:
    """The whole model in one precision.

    Attributes:
        status, reason: why there are no figures.
        recomputed: how many of the layers are; None for all.
        host: what ``optimizer.host`` said.
        parameters: trained ones.
        host_bytes, state_bytes: of the optimizer's states on the host, and of all.
        weight_bytes, gradient_bytes: on the GPU.
        begin_s: until the first step could begin; most of it is the registering of host memory.
        losses: of the real steps in order, mean of a token.
        norms: of their gradients.
        few: micro-batches of each.
        tokens, flops: of a micro-batch.
        micro_batch_ms: what one more micro-batch adds to a step.
        per_step_ms: what a step takes besides.
        update_ms: of that, the update alone.
        whole: micro-batches of the step that was timed as a whole.
        whole_ms: its duration.
        peak, predicted_peak: bytes of the GPU in a step.
        predicted_micro_batch_ms: by the plan, without the update.
    """

    case: str
    precision: str
    layers: int
    status: Literal["measured", "failed", "not run"]
    reason: str = ""
    recomputed: int | None = None
    host: str = "auto"
    parameters: int = 0
    host_bytes: int = 0
    state_bytes: int = 0
    weight_bytes: int = 0
    gradient_bytes: int = 0
    begin_s: float = 0.0
    losses: Sequence[float] = ()
    norms: Sequence[float] = ()
    few: int = 0
    tokens: int = 0
    flops: float = 0.0
    micro_batch_ms: float = 0.0
    per_step_ms: float = 0.0
    update_ms: float = 0.0
    whole: int = 0
    whole_ms: float = 0.0
    peak: int = 0
    predicted_peak: float = 0.0
    predicted_micro_batch_ms: float = 0.0

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        known = {entry.name for entry in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})

    @property
    def title(self) -> str:
        layers = f"{self.layers} layers, {self.recomputed or 'all'} recomputed"
        return f"{self.case}, {self.precision}, {layers}, host {self.host}"

    def step_ms(self, micro_batches: int) -> float:
        """Composed."""
        return micro_batches * self.micro_batch_ms + self.per_step_ms

    def tokens_per_second(self, step_tokens: int) -> float:
        count = max(step_tokens // self.tokens, 1)
        return 1e3 * count * self.tokens / self.step_ms(count)

    def tflops(self, step_tokens: int) -> float:
        return self.tokens_per_second(step_tokens) * self.flops / self.tokens / 1e12

    @property
    def link(self) -> float:
        """GB/s in each direction while states come and go."""
        return self.host_bytes / self.update_ms / 1e6 if self.update_ms else 0.0

    @property
    def off(self) -> float:
        """By how much the whole step is longer than composed, relatively."""
        return self.whole_ms / self.step_ms(self.whole) - 1 if self.whole else 0.0

    @property
    def bytes_a_parameter(self) -> tuple[float, float]:
        """Of weights, gradients and states: in all, and on the GPU."""
        everything = self.weight_bytes + self.gradient_bytes + self.state_bytes
        return everything / self.parameters, (everything - self.host_bytes) / self.parameters


SPEED_HEADINGS = (
    "case", "precision", "recomputed", "ms a micro-batch", "ms a step besides", "ms update alone", "GB/s each way",
    *(f"tokens/s, {words} a step" for words in STEP_TOKENS), *(f"TFLOP/s, {words} a step" for words in STEP_TOKENS),
    "of the slices' figure", "whole step against composed",
)  # fmt: skip
MEMORY_HEADINGS = (
    "case", "precision", "states on the host, GiB", "share", "s to begin", "bytes a parameter", "of them on the GPU",
    "peak, GiB", "predicted, GiB", "losses of the first steps",
)  # fmt: skip


def slice_tflops(slices: Sequence[Measurement], one: OneGpu) -> float | None:
    """Today's figure of the 48-layer model, computed from slices that hold all states on the GPU."""
    same = [each for each in slices if (each.case, each.subject) == (one.case, f"ours-{one.precision}")]
    found = figure(same)
    return found.tflops if found else None


def speed_rows(measured: Sequence[OneGpu], slices: Sequence[Measurement]) -> list[list[str]]:
    """In the columns of :data:`SPEED_HEADINGS`."""
    rows = []
    for one in measured:
        if one.status != "measured":
            continue
        of_slices = slice_tflops(slices, one)
        ratio = f"{one.tflops(STEP_TOKENS['0.5 M']) / of_slices:.2f} of {of_slices:.0f}" if of_slices else "-"
        rows.append([
            one.case, one.precision, f"{one.recomputed or one.layers} of {one.layers}", f"{one.micro_batch_ms:.0f}",
            f"{one.per_step_ms:.0f}", f"{one.update_ms:.0f}", f"{one.link:.1f}",
            *(f"{one.tokens_per_second(count):,.0f}" for count in STEP_TOKENS.values()),
            *(f"{one.tflops(count):.0f}" for count in STEP_TOKENS.values()), ratio, f"{one.off:+.1%} at {one.whole}",
        ])  # fmt: skip
    return rows


def memory_rows(measured: Sequence[OneGpu]) -> list[list[str]]:
    """In the columns of :data:`MEMORY_HEADINGS`."""
    return [
        [
            one.case, one.precision, f"{one.host_bytes / GIB:.1f}", f"{one.host_bytes / one.state_bytes:.0%}",
            f"{one.begin_s:.0f}", *(f"{number:.1f}" for number in one.bytes_a_parameter),
            f"{one.peak / GIB:.1f}", f"{one.predicted_peak / GIB:.1f}",
            ", ".join(f"{loss:.3f}" for loss in one.losses),
        ]
        for one in measured
        if one.status == "measured"
    ]  # fmt: skip


def remarks(measured: Sequence[OneGpu]) -> list[str]:
    """What failed, and what does not hold."""
    lines = [f"{one.title}: {one.status}: {one.reason}" for one in measured if one.status != "measured"]
    for one in measured:
        if one.status == "measured" and abs(one.off) > COMPOSED_WITHIN:
            lines.append(f"{one.title}: the whole step is {one.off:+.1%} off the composed one")
    return lines


def page(record: Record) -> Page:
    """What the benchmark says of a record."""
    measured = [OneGpu.from_json(values) for values in record["measurements"]]
    slices = [Measurement.from_json(values) for values in record["slices"]]
    tables = [
        markdown(SPEED_HEADINGS, speed_rows(measured, slices)), markdown(MEMORY_HEADINGS, memory_rows(measured))
    ]  # fmt: skip
    return Page(
        title="The whole model on one GPU",
        question="How fast does all of the model train on one GPU, with exact states, and what does it hold where?",
        configuration=f"{', '.join(sorted({f'{one.layers} layers' for one in measured}))}, 8-bit copies of weights"
        f" remade in every micro-batch, {record['steps']} real steps first",
        measured=[one.title for one in measured if one.status == "measured"],
        body="\n\n".join(tables) + "\n" + listed(remarks(measured)),
    )
