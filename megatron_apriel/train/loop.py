"""The training loop: steps, held-out loss, checkpoints, and what happens when something goes wrong or ends.

The loop knows nothing of devices or layouts; :mod:`megatron_apriel.train.run` puts its parts together. Its whole
position is the number of finished steps: data, schedule and checkpoints follow from it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import statistics
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer

from megatron_apriel.architecture import Architecture
from megatron_apriel.batch import Batch
from megatron_apriel.checkpoint.training import CheckpointStore, Saved
from megatron_apriel.checkpoint.writing import WriteState
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.data.loader import TrainingLoader, ValidationLoader
from megatron_apriel.errors import DataError, ExitCode
from megatron_apriel.flops import image_flops, step_flops
from megatron_apriel.model.apriel import AprielModel
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.terminal import say
from megatron_apriel.train.metrics import Metrics
from megatron_apriel.train.optimizer import set_learning_rate
from megatron_apriel.train.report import StepReport
from megatron_apriel.train.schedule import learning_rate
from megatron_apriel.train.signals import StopRequest
from megatron_apriel.train.step import evaluate, train_step

NON_FINITE_HELP = (
    "Look at the samples named there (damaged text or images?), at a peak learning rate that is too high, and at FP8:"
    " run the same steps with precision.fp8=none."
)


@dataclass
class Stage:
    """Everything that the loop works with, on this rank."""

    config: StageConfig
    architecture: Architecture
    layout: Layout
    device: torch.device
    chunks: list[AprielModel]
    wrapped: list[DistributedDataParallel]
    optimizer: MegatronOptimizer
    loader: TrainingLoader
    validation: ValidationLoader | None
    store: CheckpointStore
    metrics: Metrics
    sidecars: Path
    finished_steps: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    recent_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=20))
    """Of the last steps, for the time left."""


@dataclass
class _Work:
    """What a step's batches amounted to on this rank, for rates."""

    tokens: int = 0
    flops: float = 0.0
    image_flops: float = 0.0
    """Of ``flops``, those of tower and projector."""
    started: float = field(default_factory=time.perf_counter)
    waited: float = 0.0


def train(stage: Stage, stop: StopRequest) -> ExitCode:
    """Run the stage from where it stands to its end, or to where it is asked to stop; returns the exit code.

    Raises DataError when too many steps in a row had to be skipped.
    """
    config, steps = stage.config, stage.config.steps
    if _asked_before_the_first_step(stop):
        stage.metrics.write("end", stage.finished_steps, reason=stop.reason, complete=False)
        if dist.get_rank() == 0:
            say(f"stopped before step {stage.finished_steps + 1}: {stop.reason}; run the same command to go on")
        return stop.exit_code
    if stage.finished_steps == 0:
        _validate(stage)
    while stage.finished_steps < steps:
        report, work = _step(stage, ExitCode.OK if not stop.poll() else stop.exit_code)
        stage.finished_steps += 1
        _record(stage, report, work)
        if report.write_state != WriteState.UNDER_WAY:
            _finish_save(stage)
        done = stage.finished_steps == steps
        if config.validation and (done or stage.finished_steps % config.validation.every == 0):
            _validate(stage)
        if done or report.stop_code or stage.finished_steps % config.checkpoint.every == 0:
            _save(stage, background=config.checkpoint.background and not (done or report.stop_code))
        if report.stop_code and not done:
            stop.adopt(report.stop_code)
            stage.metrics.write("end", stage.finished_steps, reason=stop.reason, complete=False)
            if dist.get_rank() == 0:
                say(f"stopped after step {stage.finished_steps}: {stop.reason}; run the same command to go on")
            return stop.exit_code
    stage.metrics.write("end", stage.finished_steps, reason="all steps are done", complete=True)
    return ExitCode.OK


def _asked_before_the_first_step(stop: StopRequest) -> bool:
    """Whether any rank was asked to stop while weights and data were made ready; collective."""
    codes = [0] * dist.get_world_size()
    dist.all_gather_object(codes, int(stop.exit_code) if stop.poll() else 0)
    if any(codes):
        stop.adopt(max(codes))
    return any(codes)


def _step(stage: Stage, stop_code: int) -> tuple[StepReport, _Work]:
    config = stage.config
    micro_batches = config.sequences_per_step // stage.layout.data
    rate = learning_rate(stage.finished_steps, config.steps, config.optimizer)
    set_learning_rate(stage.optimizer, rate, config.optimizer)
    work = _Work(waited=-stage.loader.wait_seconds)
    report = train_step(
        stage.wrapped,
        stage.optimizer,
        _counted(stage, itertools.islice(stage.loader, micro_batches), work),
        micro_batches=micro_batches,
        sequence_length=config.sequence_length,
        sources=len(config.mixture),
        clip=config.optimizer.clip,
        totals=lambda: [work.tokens, work.flops, work.image_flops],
        stop_code=stop_code,
        write_state=stage.store.write_state(),
    )
    work.waited += stage.loader.wait_seconds
    return report, work


def _counted(stage: Stage, batches: Iterator[Batch], work: _Work) -> Iterator[Batch]:
    """The batches on this rank's device, with their work added up while they are still on the host."""
    for batch in batches:
        work.tokens += stage.config.sequence_length
        work.flops += step_flops(stage.architecture, stage.config.train, batch)
        work.image_flops += image_flops(stage.architecture, stage.config.train, batch)
        yield batch.to(stage.device)


def _record(stage: Stage, report: StepReport, work: _Work) -> None:
    """Log the step; count a skipped one, and end the run if there were too many."""
    config, steps = stage.config, stage.config.steps
    seconds = time.perf_counter() - work.started
    stage.recent_seconds.append(seconds)
    if not report.applied:
        _record_skipped(stage, report)
        return
    stage.skipped_in_a_row = 0
    if stage.finished_steps % config.logging.every and stage.finished_steps != steps:
        return
    tokens, flops, of_images = report.totals
    stage.metrics.write(
        "step",
        stage.finished_steps,
        steps=steps,
        loss=report.loss,
        loss_by_source=_by_source([source.label for source in config.mixture], report),
        lr=learning_rate(stage.finished_steps - 1, steps, config.optimizer),
        gradient_norm=report.gradient_norm,
        tokens=stage.finished_steps * config.batch_tokens,
        loss_tokens=sum(report.source_tokens),
        tokens_per_second=tokens / seconds,
        tflops_per_gpu=flops / seconds / stage.layout.world_size / 1e12,
        image_share=of_images / flops,
        data_wait=min(work.waited / seconds, 1.0),
        seconds=seconds,
        seconds_left=statistics.fmean(stage.recent_seconds) * (steps - stage.finished_steps),
        skipped=stage.skipped,
        memory_gib=torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0,
    )


def _by_source(labels: list[str], report: StepReport) -> dict[str, float]:
    sums_and_counts = zip(labels, report.source_sums, report.source_tokens, strict=True)
    return {label: loss / count for label, loss, count in sums_and_counts if count}


def _record_skipped(stage: Stage, report: StepReport) -> None:
    stage.skipped += 1
    stage.skipped_in_a_row += 1
    config, details = stage.config, stage.config.output / "skipped_steps.jsonl"
    if dist.get_rank() == 0:
        first = (stage.finished_steps - 1) * config.sequences_per_step
        # Where only the gradient is not finite, no single sequence can be blamed: all of the step are named.
        suspects = report.bad_sequences or range(first, first + config.sequences_per_step)
        named = [stage.loader.describe(sequence) for sequence in suspects]
        line = {
            "step": stage.finished_steps,
            "loss": str(report.loss),
            "gradient_norm": str(report.gradient_norm),
            "sequences": named,
        }
        with details.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    stage.metrics.write(
        "skipped",
        stage.finished_steps,
        steps=config.steps,
        loss=str(report.loss),
        gradient_norm=str(report.gradient_norm),
        in_a_row=stage.skipped_in_a_row,
        skipped=stage.skipped,
        details=str(details),
    )
    if stage.skipped_in_a_row >= config.faults.max_skipped_in_a_row:
        # The last checkpoint, of which the message speaks, may still be being written.
        _finish_save(stage)
        newest = stage.store.latest()
        raise DataError(
            f"{stage.skipped_in_a_row} steps in a row, the last of them step {stage.finished_steps}, had a loss or"
            " gradient that is not finite.",
            f"Their sequences and samples are listed in {details}; none of them changed the weights, and the newest"
            f" checkpoint is {newest.name if newest is not None else 'none'}.",
            NON_FINITE_HELP,
        )


def _validate(stage: Stage) -> None:
    """Loss on the held-out corpora, the same sequences every time."""
    if stage.validation is None or stage.config.validation is None:
        return
    labels = [source.label for source in stage.config.validation.corpora]
    batches = (batch.to(stage.device) for batch in stage.validation)
    report = evaluate(
        stage.wrapped,
        batches,
        micro_batches=stage.validation.micro_batches,
        sequence_length=stage.config.sequence_length,
        sources=len(labels),
    )
    stage.metrics.write(
        "validation",
        stage.finished_steps,
        steps=stage.config.steps,
        loss=report.loss,
        loss_by_source=_by_source(labels, report),
    )


def _save(stage: Stage, background: bool) -> None:
    """Save the stage as it stands. A save that is still pending is waited for first."""
    _finish_save(stage)
    extra: dict[str, Any] = {
        "sequences": stage.finished_steps * stage.config.sequences_per_step,
        "skipped": stage.skipped,
        "skipped_in_a_row": stage.skipped_in_a_row,
        "config": stage.config.model_dump(mode="json"),
        "corpora": [source.corpus.fingerprint for source in stage.loader.sources],
    }
    with gathered_parameters(stage):
        saved = stage.store.save(
            stage.finished_steps, stage.chunks, stage.optimizer, extra, stage.sidecars, background=background
        )
    if saved is not None:
        _record_saved(stage, saved)


def _finish_save(stage: Stage) -> None:
    """Let the checkpoint of a pending save come to be, if there is one; waits where it is not written yet."""
    if stage.store.pending:
        _record_saved(stage, stage.store.finish())


def _record_saved(stage: Stage, saved: Saved) -> None:
    stage.metrics.write(
        "checkpoint",
        saved.step,
        steps=stage.config.steps,
        path=str(saved.path),
        seconds=saved.seconds,
        blocked_seconds=saved.blocked_seconds,
        waited_seconds=saved.waited_seconds,
    )


@contextlib.contextmanager
def gathered_parameters(stage: Stage) -> Iterator[None]:
    """Within it, every rank's model holds the newest parameters: their gathering may still be under way otherwise."""
    overlap = stage.config.parallel.overlap
    if overlap:
        for chunk in stage.wrapped:
            chunk.disable_forward_pre_hook(param_sync=True)
    yield
    if overlap:
        for chunk in stage.wrapped:
            chunk.enable_forward_pre_hook()
