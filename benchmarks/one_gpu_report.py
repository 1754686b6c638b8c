"""What was measured of the whole model on one GPU: figures composed of their parts, and their page. No torch.

A step of half a million tokens takes over a minute. So its parts are timed apart, what a micro-batch adds and what a
step takes once, and figures are composed of them; one step of more micro-batches is then timed as a whole to see that
the composition holds. Beside them stand slices of the model that fit with all states on the GPU, what the plan says,
and peers that hold the whole model too. FLOPs by the one rule of ``megatron_apriel/formats/flops.py``: recomputation is
never counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from benchmarks.report import GIB, Page, Record, listed, markdown
from benchmarks.step_report import Measurement, figure
from megatron_apriel.planning.hardware import KINDS

H200 = KINDS["h200"]
STEP_TOKENS = {"0.5 M": 1 << 19, "5.2 M": 640 * 8192}
"""Tokens of a step: what small runs take, and the recipe."""
COMPOSED_WITHIN = 0.02
"""How far, relatively, a whole step may be from the one composed of its parts."""
MEMORY_WITHIN, TIME_WITHIN = 0.03, 0.05
"""How far, relatively, the plan may be off."""
SPECIFIED = ("case", "precision", "layers", "recomputed", "host", "settings", "few", "whole")
"""What a measurement says of itself before it runs."""


@dataclass(frozen=True)
class OneGpu:
    """The whole model in one precision.

    Attributes:
        status, reason: why there are no figures.
        recomputed: how many of the layers are; None for all.
        host: what ``optimizer.host`` said.
        settings: further ones of the stage, as words of a command line.
        parameters: trained ones.
        host_bytes, state_bytes: of the optimizer's states on the host, and of all.
        input_bytes: of the host, for layers' inputs.
        weight_bytes, gradient_bytes: on the GPU.
        begin_s: until the first step could begin; most of it is the registering of host memory.
        losses: of the real steps in order, mean of a token.
        norms: of their gradients.
        few: micro-batches of each.
        real_ms: their durations.
        tokens, flops: of a micro-batch.
        document_tokens, image_tokens: what the plan took a micro-batch to hold.
        micro_batch_ms: what one more micro-batch adds to a step.
        per_step_ms: what a step takes besides.
        update_ms: of that, the update alone.
        whole: micro-batches of the step that was timed as a whole; 0 where none was.
        whole_ms: its duration.
        peak, predicted_peak: bytes of the GPU in a step.
        predicted_micro_batch_ms, predicted_per_step_ms: by the plan.
    """

    case: str
    precision: str
    layers: int
    status: Literal["measured", "failed", "not run"]
    reason: str = ""
    recomputed: int | None = None
    host: str = "auto"
    settings: Sequence[str] = ()
    parameters: int = 0
    host_bytes: int = 0
    input_bytes: int = 0
    state_bytes: int = 0
    weight_bytes: int = 0
    gradient_bytes: int = 0
    begin_s: float = 0.0
    losses: Sequence[float] = ()
    norms: Sequence[float] = ()
    few: int = 0
    real_ms: Sequence[float] = ()
    tokens: int = 0
    document_tokens: int = 0
    image_tokens: int = 0
    flops: float = 0.0
    micro_batch_ms: float = 0.0
    per_step_ms: float = 0.0
    update_ms: float = 0.0
    whole: int = 0
    whole_ms: float = 0.0
    peak: int = 0
    predicted_peak: float = 0.0
    predicted_micro_batch_ms: float = 0.0
    predicted_per_step_ms: float = 0.0

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        known = {entry.name for entry in fields(cls)}
        return cls(**{key: value for key, value in values.items() if key in known})

    @property
    def title(self) -> str:
        recomputed = {self.layers: "all", 0: "none"}.get(self.recomputed_layers, self.recomputed_layers)
        layers = f"{self.layers} layers, {recomputed} recomputed"
        return ", ".join([self.case, self.precision, layers, f"host {self.host}", *self.settings])

    @property
    def recomputed_layers(self) -> int:
        return self.layers if self.recomputed is None else self.recomputed

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

    def against_plan(self) -> dict[str, tuple[float, float, float]]:
        """Name -> measured, predicted, and how far the prediction may be off, relatively."""
        rows = {
            "ms a micro-batch": (self.micro_batch_ms, self.predicted_micro_batch_ms, TIME_WITHIN),
            "ms a step besides": (self.per_step_ms, self.predicted_per_step_ms, TIME_WITHIN),
            "peak, GiB": (self.peak / GIB, self.predicted_peak / GIB, MEMORY_WITHIN),
        }
        return {name: row for name, row in rows.items() if row[0] and row[1]}

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
    "inputs there, GiB", "peak, GiB", "losses of the first steps", "ms of the first steps",
)  # fmt: skip
PLAN_HEADINGS = ("case", "precision", "what", "measured", "predicted", "off")
PEER_HEADINGS = (
    "case", "peer", "ms a micro-batch", "ms a step besides", "tokens/s, 0.5 M a step", "TFLOP/s, 0.5 M a step",
    "peak, GiB", "ours as fast",
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
            one.case, one.precision, f"{one.recomputed_layers} of {one.layers}", f"{one.micro_batch_ms:.0f}",
            f"{one.per_step_ms:.0f}", f"{one.update_ms:.0f}", f"{one.link:.1f}",
            *(f"{one.tokens_per_second(count):,.0f}" for count in STEP_TOKENS.values()),
            *(f"{one.tflops(count):.0f}" for count in STEP_TOKENS.values()), ratio,
            f"{one.off:+.1%} at {one.whole}" if one.whole else "-",
        ])  # fmt: skip
    return rows


def memory_rows(measured: Sequence[OneGpu]) -> list[list[str]]:
    """In the columns of :data:`MEMORY_HEADINGS`."""
    return [
        [
            one.case, one.precision, f"{one.host_bytes / GIB:.1f}", f"{one.host_bytes / one.state_bytes:.0%}",
            f"{one.begin_s:.0f}", *(f"{number:.1f}" for number in one.bytes_a_parameter),
            f"{one.input_bytes / GIB:.1f}", f"{one.peak / GIB:.1f}",
            ", ".join(f"{loss:.3f}" for loss in one.losses), ", ".join(f"{each:.0f}" for each in one.real_ms),
        ]
        for one in measured
        if one.status == "measured"
    ]  # fmt: skip


def plan_rows(measured: Sequence[OneGpu]) -> list[list[str]]:
    """In the columns of :data:`PLAN_HEADINGS`."""
    return [
        [one.case, one.precision, what, f"{found:,.1f}", f"{said:,.1f}", f"{said / found - 1:+.1%}"]
        for one in measured
        if one.status == "measured"
        for what, (found, said, _) in one.against_plan().items()
    ]


def peer_rows(peers: Sequence[Measurement], measured: Sequence[OneGpu]) -> list[list[str]]:
    """In the columns of :data:`PEER_HEADINGS`; composed of a peer's parts as ours are."""
    rows = []
    for peer in peers:
        if peer.status != "measured":
            continue
        count = max(STEP_TOKENS["0.5 M"] // peer.tokens, 1)
        speed = 1e3 * count * peer.tokens / (count * peer.pass_ms + peer.per_step_ms)
        ours = [one.tokens_per_second(STEP_TOKENS["0.5 M"]) for one in measured
                if (one.status, one.case) == ("measured", peer.case)]  # fmt: skip
        rows.append([
            peer.case, peer.subject, f"{peer.pass_ms:.0f}", f"{peer.per_step_ms:.0f}", f"{speed:,.0f}",
            f"{speed * peer.full_depth_flops / peer.tokens / 1e12:.0f}", f"{peer.memory.get('peak', 0) / GIB:.1f}",
            f"{max(ours) / speed:.2f} times" if ours else "-",
        ])  # fmt: skip
    return rows


def update_traffic(slices: Sequence[Measurement]) -> list[str]:
    """What an update with all states on the GPU moved, in the plan's unit: a check of ``optimizer_bytes``."""
    return [
        f"update of {one.layers} layers with all states on the GPU ({one.case}, {one.subject}): {one.update_ms:.1f} ms,"
        f" {H200.copy_bandwidth * one.update_ms * 1e6 / one.parameters:.1f} bytes a parameter; the plan says"
        f" {H200.optimizer_bytes:g}"
        for one in slices
        if one.update_ms
    ]


def remarks(measured: Sequence[OneGpu], others: Sequence[Measurement] = ()) -> list[str]:
    """What failed, and what does not hold."""
    lines = [f"{one.title}: {one.status}: {one.reason}" for one in measured if one.status != "measured"]
    for one in measured:
        if one.status == "measured" and abs(one.off) > COMPOSED_WITHIN:
            lines.append(f"{one.title}: the whole step is {one.off:+.1%} off the composed one")
        for what, (found, said, within) in one.against_plan().items() if one.status == "measured" else ():
            if abs(said / found - 1) > within:
                lines.append(f"{one.title}: the plan is {said / found - 1:+.1%} off in {what}")
    return lines + [
        f"{one.case}, {one.subject}, {one.layers} layers: {one.status}: {one.reason}"
        for one in others
        if one.status != "measured"
    ]


def tables_of(
    measured: Sequence[OneGpu], slices: Sequence[Measurement], peers: Sequence[Measurement]
) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """Title, headings and rows of each table."""
    return [
        ("speed", SPEED_HEADINGS, speed_rows(measured, slices)),
        ("memory", MEMORY_HEADINGS, memory_rows(measured)),
        ("against the plan", PLAN_HEADINGS, plan_rows(measured)),
        ("peers", PEER_HEADINGS, peer_rows(peers, measured)),
    ]


def page(record: Record) -> Page:
    """What the benchmark says of a record."""
    measured = [OneGpu.from_json(values) for values in record["measurements"]]
    slices = [Measurement.from_json(values) for values in record["slices"]]
    peers = [Measurement.from_json(values) for values in record.get("peers", [])]
    tables = [
        markdown(headings, rows) for _, headings, rows in tables_of(measured, slices, peers) if rows
    ]  # fmt: skip
    return Page(
        title="The whole model on one GPU",
        question="How fast does all of the model train on one GPU, and what does it hold where?",
        configuration=f"{', '.join(sorted({f'{one.layers} layers' for one in measured}))}, 8-bit copies of weights"
        f" remade in every micro-batch, {record['steps']} real steps first",
        measured=[one.title for one in measured if one.status == "measured"],
        body="\n\n".join(tables) + "\n" + listed([*update_traffic(slices), *remarks(measured, [*slices, *peers])]),
    )
