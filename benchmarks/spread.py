"""Measurements of a training step on several GPUs: what is planned, how it is run, what was found.

A measurement is one process a GPU (``measure_spread.py``). Those that differ in precision or in who gets which tokens
share their processes: much of a short measurement's time goes to starting and compiling. The next processes start while
those before measure, and wait with their imports and tokens done.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from benchmarks.cases import CASES, Case, small
from benchmarks.phases import in_words
from benchmarks.processes import Processes
from benchmarks.stages import stage_config
from megatron_apriel.config.choices import Compute, Fp8Weights, Inputs
from megatron_apriel.config.machine_sections import ParallelSection, RecomputeSection
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning.hardware import Hardware
from megatron_apriel.planning.memory import rank_memory
from megatron_apriel.planning.step_time import step_time
from megatron_apriel.planning.workload import Workload


@dataclass(frozen=True)
class Spread:
    """One way of running a case on several GPUs.

    Attributes:
        case: name in :data:`benchmarks.cases.CASES`.
        precision: ``bf16`` or a recipe of FP8.
        layers: decoder layers of the model.
        gpus: ranks.
        sequences: of an optimizer step, over all ranks.
        parallel: the layout, as ``parallel`` of a stage's file.
        recompute: mode of recomputation.
        recompute_layers: with ``full``, of how many layers of each chunk; None for all.
        inputs: with ``full``, where the layers' inputs wait.
        host: part of the optimizer's states in host memory, or ``auto``.
        fp8_weights: whether 8-bit copies of weights are kept over micro-batches.
        different_steps: steps that are measured, each of other sequences; figures are their means.
        tokens: of a sequence, in place of the case's; None for those. With few, a step takes as long as the host needs
            to start its kernels.
        tiny: tiny shapes, to try it on a CPU.
    """

    case: str
    precision: str
    layers: int
    gpus: int
    sequences: int
    parallel: Mapping[str, Any] = field(default_factory=dict)
    recompute: str = "none"
    recompute_layers: int | None = None
    inputs: Inputs = "gpu"
    host: float | Literal["auto"] = 0.0
    fp8_weights: Fp8Weights = "kept"
    different_steps: int = 1
    tokens: int | None = None
    tiny: bool = False

    def sized_case(self) -> Case:
        """The case with this step's number of sequences, and their length."""
        case = CASES[self.case]
        case = replace(small(case) if self.tiny else case, micro_batches=self.sequences)
        return case if self.tokens is None else replace(case, sequence_length=self.tokens)

    def config(self) -> StageConfig:
        """The stage that runs it."""
        parallel = ParallelSection.model_validate(dict(self.parallel))
        recompute = RecomputeSection.model_validate(
            {"mode": self.recompute, "layers": self.recompute_layers, "inputs": self.inputs}
        )
        # Planned on a machine without GPUs too, for machines that have them.
        compute: Compute | None = None if self.tiny else "bf16"
        case = self.sized_case()
        return stage_config(case, self.precision, parallel, recompute, compute, self.fp8_weights, self.host)

    def architecture(self) -> Architecture:
        """The whole model, tower included, at this depth."""
        return Architecture.from_preset("tiny" if self.tiny else "apriel-15b").with_layers(self.layers)

    def layout(self) -> Layout:
        return Layout.from_config(self.config().parallel, self.gpus)

    @property
    def label(self) -> str:
        """The layout in the field's short form, as ``TP2 SP DP4``, and what else is unusual about it."""
        layout, parallel = self.layout(), self.config().parallel
        sizes = {"TP": layout.tensor, "CP": layout.context, "PP": layout.pipeline, "VP": layout.virtual}
        sizes["DP"] = layout.data
        parts = [f"{name}{size}" for name, size in sizes.items() if size > 1]
        if layout.sequence:
            parts.insert(1, "SP overlapped" if parallel.tensor_overlap else "SP")
        extras = [f"states on the host: {self.host}"] if self.host else []
        extras += ["dealt evenly"] if parallel.dealing == "evenly" else []
        extras += [f"8-bit weights {self.fp8_weights}"] if self.fp8_weights != "kept" else []
        extras += [f"sequences of {self.tokens}"] if self.tokens is not None else []
        return ", ".join([" ".join(parts) or "DP1", *extras])

    @property
    def recomputation(self) -> str:
        """What is recomputed."""
        layers = [] if self.recompute_layers is None else [str(self.recompute_layers)]
        return ", ".join([self.recompute, *layers, *(["inputs on the host"] if self.inputs == "host" else [])])

    @property
    def title(self) -> str:
        model = f"{self.case}, {self.precision}, {self.layers} layers"
        return f"{model}, {self.gpus} GPUs, {self.label}, {self.recomputation}"


@dataclass(frozen=True)
class Found:
    """What a measurement gave.

    Attributes:
        step_ms: of an optimizer step, median.
        tokens, flops: of a step, over all ranks; FLOPs by the rule of ``megatron_apriel/formats/flops.py``.
        loss: of the last timed step.
        ranks: of each rank the bytes at its peak (``peak``) and a profiled step's :class:`Occupancy` fields.
        divisions: of each rank a profiled step's :class:`Division` fields, and of how many ``steps`` they are.
        flops_of_ranks: of each rank the FLOPs of its sequences in each of the different steps.
        seconds: of the first rank's phases, since its process was started or since the measurement before.
    """

    spread: Spread
    status: Literal["measured", "failed", "not run"]
    reason: str = ""
    step_ms: float = 0.0
    tokens: int = 0
    flops: float = 0.0
    loss: float = 0.0
    ranks: Sequence[Mapping[str, float]] = ()
    divisions: Sequence[Mapping[str, Any]] = ()
    flops_of_ranks: Sequence[Sequence[float]] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        return cls(**{**values, "spread": Spread(**values["spread"])})

    @property
    def tokens_per_second(self) -> float:
        """Of one GPU."""
        return 1e3 * self.tokens / self.step_ms / self.spread.gpus

    @property
    def tflops(self) -> float:
        """Of one GPU."""
        return self.flops / self.step_ms / self.spread.gpus / 1e9

    @property
    def peak(self) -> float:
        """Bytes on the fullest GPU."""
        return max(rank["peak"] for rank in self.ranks)

    def share(self, part: str) -> float:
        """Part of the step's time that goes to ``communicating_ms`` or ``idle_ms``, mean over ranks."""
        return sum(rank[part] / rank["span_ms"] if rank["span_ms"] else 0.0 for rank in self.ranks) / len(self.ranks)

    @property
    def imbalance(self) -> float:
        """By how much the rank that computes longest exceeds the mean."""
        computing = [rank["computing_ms"] for rank in self.ranks]
        mean = sum(computing) / len(computing)
        return max(computing) / mean - 1 if mean else 0.0

    @property
    def excess_flops(self) -> float:
        """By how much the FLOPs of the rank with the most exceed the mean of all ranks, mean over the steps."""
        by_step = list(zip(*self.flops_of_ranks, strict=True))
        return sum(max(ranks) * len(ranks) / sum(ranks) - 1 for ranks in by_step) / len(by_step)


@dataclass(frozen=True)
class Prediction:
    """What ``tools/plan.py`` says of the same step."""

    tokens_per_second: float
    tflops: float
    peak: float
    communicating: float
    """Part of the step's time, the pipeline's bubble and waiting for the host included."""


def predicted(spread: Spread, gpu: Hardware, work: Workload) -> Prediction:
    """The plan's prediction, from the sequences that are measured (``work``); of several steps the mean."""
    config, architecture, layout = spread.config(), spread.architecture(), spread.layout()
    steps = [
        step_time(config, architecture, layout, gpu, replace(work, contents=own))
        for own in itertools.batched(work.contents, spread.sequences)
    ]
    memories = [rank_memory(config, architecture, layout, rank, gpu.available).total for rank in range(layout.pipeline)]
    seconds = sum(step.total for step in steps)
    return Prediction(
        tokens_per_second=config.batch_tokens * len(steps) / seconds / spread.gpus,
        tflops=sum(step.flops for step in steps) / seconds / spread.gpus / 1e12,
        peak=max(memories),
        communicating=1 - sum(step.compute + step.optimizer for step in steps) / seconds,
    )


def measure_spreads(
    plan: Sequence[Spread], steps: int, logs: Path, budget: float | None, limit: float
) -> Iterator[tuple[Found, dict[str, Any]]]:
    """What was found of each, in order, with the environment it ran in.

    Args:
        plan: what to measure.
        steps: timed steps, of which the median counts.
        logs: directory for the processes' output.
        budget: seconds after which no processes begin to measure; None for no limit.
        limit: seconds that one measurement may take; of those that share their processes, in the mean.
    """
    shared = [list(group) for _, group in itertools.groupby(plan, _shared)]
    names = (f"spread-{number}" for number in itertools.count())

    def started(spreads: Sequence[Spread]) -> Processes:
        specification = {"spreads": list(map(asdict, spreads)), "steps": steps, "begun": time.time()}
        return Processes("benchmarks.measure_spread", next(names), specification, logs, spreads[0].gpus)

    begun, done = time.monotonic(), 0
    waiting: Processes | None = None
    try:
        for number, spreads in enumerate(shared):
            spent = time.monotonic() - begun
            if budget is not None and spent > budget:
                for spread in spreads:
                    yield Found(spread, "not run", f"the budget of {budget:.0f} s was spent"), {}
                continue
            left = f"; about {spent / done * (len(plan) - done) / 60:.0f} min left" if done else ""
            print(f"measuring {done + 1} to {done + len(spreads)} of {len(plan)}{left}", file=sys.stderr, flush=True)
            processes = waiting or started(spreads)
            waiting = started(shared[number + 1]) if number + 1 < len(shared) else None
            for found, environment in _measured(spreads, processes, started, limit):
                print(f"    {found.spread.title}: {_short(found)}", file=sys.stderr, flush=True)
                yield found, environment
            done += len(spreads)
    finally:
        if waiting:
            waiting.stop()


def _shared(spread: Spread) -> Spread:
    """What measurements have in common that share their processes: all but the precision, and who gets which tokens."""
    parallel = {name: value for name, value in spread.parallel.items() if name != "dealing"}
    return replace(spread, precision="bf16", parallel=parallel)


def _measured(
    spreads: Sequence[Spread], processes: Processes, started: Callable[[Sequence[Spread]], Processes], limit: float
) -> Iterator[tuple[Found, dict[str, Any]]]:
    """What processes find, and others in their place behind a measurement that ends them."""
    while spreads:
        result = processes.run(limit * len(spreads))
        rows, environment = (result["found"], result["environment"]) if isinstance(result, dict) else ([], {})
        yield from ((Found.from_json(row), environment) for row in rows)
        spreads = spreads[len(rows) :]
        if spreads:
            yield Found(spreads[0], "failed", processes.reason()), environment
            spreads = spreads[1:]
            if spreads:
                processes = started(spreads)


def _short(found: Found) -> str:
    if found.status != "measured":
        return f"{found.status}: {found.reason}"
    figures = f"{found.tokens_per_second:,.0f} tokens/s and {found.tflops:.0f} TFLOP/s a GPU"
    return f"{figures} ({in_words(found.seconds)})"
