"""From measured slices of a training step to the figures of the whole model, and their page. No torch, no device.

Two depths of the same slice show what a decoder layer costs, since everything else is the same in both. With t(L) the
time of a micro-batch at L layers, its share of the optimizer step included, and l < h the two depths::

    layer = (t(h) - t(l)) / (h - l)        rest = t(l) - l * layer        t(48) = rest + 48 * layer

The same is done with what every micro-batch costs, forward and backward. What every optimizer step costs once (gradient
norm, clipping, update, copies) is shown as measured: it is a small difference of long times, and the line through two
depths would show its noise ten times as large at 48 layers. FLOPs by the one rule of
``megatron_apriel/formats/flops.py``: forward and backward, causal attention counted half, documents by the sum of their
squared lengths, recomputation never.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Self

from benchmarks.report import GIB, Page, Record, listed, markdown

FULL_DEPTH = 48
"""Decoder layers of the model that slices are taken from."""
LOSS_ALLOWANCE = 0.01
"""How far, relatively, losses after the same steps may lie apart between this project and megatron-core."""
MEMORY_PARTS = ("weights", "main gradients", "optimizer state", "activations and rest", "peak")


@dataclass(frozen=True)
class Measurement:
    """One subject on one case at one depth.

    Attributes:
        status: ``measured``; ``not possible`` for this subject; ``failed``; ``not run``, as time was over.
        reason: why there are no figures.
        micro_batches: of a timed optimizer step.
        tokens: of a micro-batch.
        flops, full_depth_flops: of a micro-batch, of this slice and of the whole model.
        parameters: of the slice.
        step_ms: of an optimizer step with its micro-batches, median.
        per_step_ms: of that, what does not depend on the number of micro-batches.
        loss: of the last timed step.
        update_ms: of the update alone, gradients set to zero and their norm included; 0 where it was not timed or
            some of the slice is frozen.
        memory: bytes by part, see :data:`MEMORY_PARTS`.
    """

    subject: str
    case: str
    layers: int
    status: Literal["measured", "not possible", "failed", "not run"]
    reason: str = ""
    micro_batches: int = 1
    tokens: int = 0
    flops: float = 0.0
    full_depth_flops: float = 0.0
    parameters: int = 0
    step_ms: float = 0.0
    per_step_ms: float = 0.0
    loss: float = 0.0
    update_ms: float = 0.0
    memory: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        known = {entry.name for entry in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})

    @property
    def micro_batch_ms(self) -> float:
        """A micro-batch with its share of the optimizer step."""
        return self.step_ms / self.micro_batches

    @property
    def pass_ms(self) -> float:
        """Forward and backward of a micro-batch alone."""
        return (self.step_ms - self.per_step_ms) / self.micro_batches

    @property
    def tflops(self) -> float:
        """Of the slice, optimizer included."""
        return self.flops / self.micro_batch_ms / 1e9


@dataclass(frozen=True)
class Line:
    """A quantity that grows by the same amount with every layer."""

    per_layer: float
    rest: float

    @classmethod
    def through(cls, low: tuple[int, float], high: tuple[int, float]) -> Self:
        """The line through two points (layers, value)."""
        per_layer = (high[1] - low[1]) / (high[0] - low[0])
        return cls(per_layer, low[1] - low[0] * per_layer)

    def at(self, layers: int) -> float:
        return self.rest + layers * self.per_layer


@dataclass(frozen=True)
class Figure:
    """What two depths of one subject on one case say about the whole model.

    Attributes:
        low, high: the two slices.
        whole: a micro-batch with its share of the optimizer step, ms.
        passes: forward and backward of a micro-batch, ms: per decoder layer, and of embedding, head and loss (with the
            tower and projector where there are images).
    """

    low: Measurement
    high: Measurement
    whole: Line
    passes: Line

    @property
    def tokens_per_second(self) -> float:
        return 1e3 * self.high.tokens / self.whole.at(FULL_DEPTH)

    @property
    def tflops(self) -> float:
        return self.high.full_depth_flops / self.whole.at(FULL_DEPTH) / 1e9


def figure(measurements: Iterable[Measurement]) -> Figure | None:
    """From all depths of one subject on one case: the two deepest that were measured; None if there are not two."""
    sound = sorted((one for one in measurements if one.status == "measured"), key=lambda one: one.layers)
    if len(sound) < 2:
        return None
    low, high = sound[-2:]

    def line(quantity: str) -> Line:
        return Line.through((low.layers, getattr(low, quantity)), (high.layers, getattr(high, quantity)))

    return Figure(low, high, line("micro_batch_ms"), line("pass_ms"))


def grouped(measurements: Iterable[Measurement]) -> dict[tuple[str, str], list[Measurement]]:
    """By case and subject, in the order of their first appearance."""
    groups: dict[tuple[str, str], list[Measurement]] = {}
    for one in measurements:
        groups.setdefault((one.case, one.subject), []).append(one)
    return groups


SPEED_HEADINGS = (
    "case", "subject", "micro-batches", "ms a layer", "ms embedding, head, loss", "ms an optimizer step",
    "tokens/s, 48 layers", "TFLOP/s, 48 layers", "TFLOP/s of the slice", "loss",
)  # fmt: skip
MEMORY_HEADINGS = ("case", "subject", "layers", *(f"{part}, GiB" for part in MEMORY_PARTS))


def newest(directory: Path) -> list[Measurement]:
    """What ``step.py`` measured last of each subject, case and depth, from the result files in ``directory``."""
    found: dict[tuple[str, str, int], Measurement] = {}
    for path in sorted(directory.glob("step-*.json")):
        for values in json.loads(path.read_text(encoding="utf-8"))["measurements"]:
            one = Measurement.from_json(values)
            if one.status == "measured":
                found[one.case, one.subject, one.layers] = one
    return list(found.values())


def speed_rows(measurements: Sequence[Measurement]) -> list[list[str]]:
    """One row a subject and case, in the columns of :data:`SPEED_HEADINGS`.

    The whole model's figures follow from two depths, or are those of the whole model where it alone was measured.
    """
    rows = []
    for (case, subject), group in grouped(measurements).items():
        found = figure(group)
        sound = [one for one in group if one.status == "measured"]
        deepest = max(sound, key=lambda one: one.layers, default=None)
        slices = f"{deepest.tflops:.0f} at {deepest.layers}" if deepest else "-"
        loss = f"{deepest.loss:.3f}" if deepest else "-"
        count = str(group[0].micro_batches if deepest is None else deepest.micro_batches) if deepest else "-"
        if found:
            rows.append([
                case, subject, count, f"{found.passes.per_layer:.2f}", f"{found.passes.rest:.1f}",
                f"{found.high.per_step_ms:.0f} at {found.high.layers}", f"{found.tokens_per_second:,.0f}",
                f"{found.tflops:.0f}", slices, loss,
            ])  # fmt: skip
        else:
            whole = ["-", "-"]
            if deepest and deepest.layers == FULL_DEPTH:
                whole = [f"{1e3 * deepest.tokens / deepest.micro_batch_ms:,.0f}", f"{deepest.tflops:.0f}"]
            rows.append([case, subject, count, "-", "-", "-", *whole, slices, loss])
    return rows


def memory_rows(measurements: Sequence[Measurement]) -> list[list[str]]:
    """One row for every measurement with memory figures, in the columns of :data:`MEMORY_HEADINGS`."""
    return [
        [one.case, one.subject, str(one.layers), *(f"{one.memory[part] / GIB:.1f}" for part in MEMORY_PARTS)]
        for one in measurements
        if one.memory
    ]


def remarks(measurements: Sequence[Measurement]) -> list[str]:
    """Why figures are missing, where a figure comes from other depths than its neighbours', and losses that differ."""
    said = [
        f"{one.case}, {one.subject}, {one.layers} layers: {one.status}: {one.reason}"
        for one in measurements
        if one.status != "measured"
    ]
    depths = {key: (found.low.layers, found.high.layers) for key, group in grouped(measurements).items()
              if (found := figure(group))}  # fmt: skip
    usual = max(depths.values(), default=None)
    said += [
        f"{case}, {subject}: from {low} and {high} layers"
        for (case, subject), (low, high) in depths.items()
        if (low, high) != usual
    ]
    return said + _disagreements(measurements)


def _disagreements(measurements: Sequence[Measurement]) -> list[str]:
    """Where this project and megatron-core, which do the same arithmetic on the same tokens, came to different losses.

    One of the two then computes something else, and its time says nothing.
    """
    sound = {(one.case, one.subject, one.layers): one for one in measurements if one.status == "measured"}
    said = []
    for (case, subject, layers), one in sound.items():
        family, _, precision = subject.partition("-")
        other = sound.get((case, f"megatron-{precision}", layers))
        # Unequal work: images, which megatron-core's model has no tower for.
        if family != "ours" or other is None or one.flops != other.flops:
            continue
        if abs(one.loss - other.loss) > LOSS_ALLOWANCE * abs(other.loss):
            said.append(
                f"{case}, {layers} layers: loss {one.loss:.3f} of {subject}, {other.loss:.3f} of {other.subject}"
            )
    return said


def page(record: Record) -> Page:
    """What ``step.py`` says of a record."""
    measurements = [Measurement.from_json(values) for values in record["measurements"]]
    cases, subjects, depths = (
        list(dict.fromkeys(getattr(one, name) for one in measurements)) for name in ("case", "subject", "layers")
    )
    return Page(
        title="Training step",
        question="What does a training step cost on one GPU, here and with its peers?",
        configuration=f"cases {', '.join(cases)}; subjects {', '.join(subjects)}; "
        f"{' and '.join(str(depth) for depth in sorted(depths))} layers; median of {record['steps']} steps after two; "
        f"{FULL_DEPTH} layers from slices by the rule in benchmarks/README.md; FLOPs by the rule of "
        "megatron_apriel/formats/flops.py",
        measured=[
            f"{one.case}, {one.subject}, {one.layers} layers" for one in measurements if one.status == "measured"
        ],
        body="\n".join([
            markdown(SPEED_HEADINGS, speed_rows(measurements)),
            "",
            "Peak memory of a step:",
            "",
            markdown(MEMORY_HEADINGS, memory_rows(measurements)),
            listed(remarks(measurements)),
        ]),
    )  # fmt: skip
