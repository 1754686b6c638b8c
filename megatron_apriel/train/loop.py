"""The training loop: steps, held-out loss, checkpoints, and what happens when something goes wrong or ends.

The loop knows nothing of devices or layouts; :mod:`megatron_apriel.train.assembly` puts its parts together. Its whole
position is the number of finished steps: data, schedule and checkpoints follow from it.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from megatron_apriel.batch import Batch
from megatron_apriel.checkpoint.background_save import WriteState
from megatron_apriel.checkpoint.store import CheckpointStore, Saved
from megatron_apriel.config.schedule import learning_rate
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.data.loading.loader import TrainingLoader, ValidationLoader
from megatron_apriel.errors import DataError, ExitCode, printable
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.flops import image_flops, step_flops
from megatron_apriel.formats.run_record import ChangeRecord
from megatron_apriel.formats.sidecar_contents import KeptSidecars
from megatron_apriel.parallel.agreement import alike
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.parallel.watch import raised_alone
from megatron_apriel.terminal import say
from megatron_apriel.train.averages import SinceLastRecord
from megatron_apriel.train.metrics import Metrics, reported
from megatron_apriel.train.output_place import OutputPlace
from megatron_apriel.train.samples import Sampler
from megatron_apriel.train.signals import StopRequest
from megatron_apriel.train.step_result import Shared, StepResult
from megatron_apriel.train.trainer import Trainer

NON_FINITE_HELP = (
    "Look at the samples named there (damaged text or images?), at a peak learning rate that is too high, and at FP8:"
    " run the same steps with precision.fp8=none."
)


@dataclass
class Stage:
    """Everything that the loop works with, on this rank."""

    config: StageConfig
    trainer: Trainer
    device: torch.device
    loader: TrainingLoader
    validation: ValidationLoader | None
    store: CheckpointStore
    metrics: Metrics
    sidecars: KeptSidecars
    sampler: Sampler | None = None
    place: OutputPlace | None = None
    """Of the output directory, on the rank that looks at it."""
    finished_steps: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    empty: int = 0
    changes: list[ChangeRecord] = field(default_factory=list)
    """Of the run's settings, in order."""
    validation_due: bool = True
    """Before the next step: at the very beginning, and where a request to stop came first."""
    recent_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=20))
    """Of the last steps, for the time left."""

    def __post_init__(self) -> None:
        labels = [source.label for source in self.config.mixture]
        self.since_last_record = SinceLastRecord(labels, self.layout.world_size)

    @property
    def architecture(self) -> Architecture:
        return self.trainer.architecture

    @property
    def layout(self) -> Layout:
        return self.trainer.layout


class _Work(Shared):
    """What a step's batches amounted to on this rank, for rates; and what else all ranks are to know after it.

    Attributes:
        tokens, flops, image_flops: so far; the last are those of tower and projector among ``flops``.
        started: clock at the step's beginning.
        waited: seconds for data.
    """

    def __init__(self, store: CheckpointStore, place: OutputPlace | None) -> None:
        self._store, self._place = store, place
        self.tokens, self.flops, self.image_flops = 0, 0.0, 0.0
        self.started, self.waited = time.perf_counter(), 0.0

    def sums(self) -> list[float]:
        return [self.tokens, self.flops, self.image_flops]

    def maxima(self) -> list[int]:
        """How far this rank is with writing a checkpoint, and whether the output directory is lost."""
        return [self._store.write_state(), self._place is not None and self._place.lost()]


def train(stage: Stage, stop: StopRequest) -> ExitCode:
    """Run the stage from where it stands to its end, or to where it is asked to stop; returns the exit code.

    A request that comes during a step ends the run behind it, one that comes at any other time before the next step.
    Raises DataError when too many steps in a row had to be skipped, and OutputError when the output directory is lost.
    """
    config, steps = stage.config, stage.config.steps
    saved = stage.finished_steps  # by whoever trained so far; of step 0 there is nothing to save
    if stage.validation_due and not stop.agreed():
        _validate(stage)
    if saved == steps and stage.changes and stage.changes[-1].step == steps:
        _save(stage, background=False)  # made shorter: no step is left that a checkpoint with the change would follow
    while stage.finished_steps < steps:
        if stop.agreed():
            return _stop(stage, stop, save=saved != stage.finished_steps)
        stop.when = "after this step"
        work = _Work(stage.store, stage.place)
        result = _step(stage, work)
        write_state, lost = result.maxima
        stage.finished_steps += 1
        if lost:
            raise OutputPlace(config.output).error(stage.finished_steps)
        done = stage.finished_steps == steps
        stopping = stop.agreed() and not done
        _record(stage, result, work, last=done or stopping)
        if write_state != WriteState.UNDER_WAY:
            _finish_save(stage)
        if config.validation and (done or stage.finished_steps % config.validation.every == 0):
            stage.validation_due = stopping  # then before the next step, whoever makes it
            if not stopping:
                _validate(stage)
        if config.samples and not stopping and (done or stage.finished_steps % config.samples.every == 0):
            _sample(stage, stop)
        if done or stopping or stage.finished_steps % config.checkpoint.every == 0:
            _save(stage, background=config.checkpoint.background and not (done or stopping))
            saved = stage.finished_steps
    _record_end(stage, "all steps are done", complete=True)
    return ExitCode.OK


def _stop(stage: Stage, stop: StopRequest, save: bool) -> ExitCode:
    """End the run before its next step, with all of it saved."""
    if save:
        _save(stage, background=False)
    _finish_save(stage)
    _record_end(stage, stop.reason, complete=False)
    if dist.get_rank() == 0:
        where = f"after step {stage.finished_steps}" if stage.finished_steps else "before the first step"
        say(f"stopped {where}: {stop.reason}; run the same command to resume")
    return stop.exit_code


def _record_end(stage: Stage, reason: str, complete: bool) -> None:
    counts = {"skipped": stage.skipped, "empty": stage.empty}
    stage.metrics.write(
        "end", stage.finished_steps, steps=stage.config.steps, reason=reason, complete=complete, **counts
    )


def _step(stage: Stage, work: _Work) -> StepResult:
    config, trainer = stage.config, stage.trainer
    rate = learning_rate(stage.finished_steps, config.steps, config.optimizer)
    waited = stage.loader.wait_seconds
    trainer.shared = work
    batches = _counted(stage, itertools.islice(stage.loader, trainer.micro_batches), work)
    result = trainer.step(_on_device(stage, batches), rate)
    work.waited = stage.loader.wait_seconds - waited
    return result


def _counted(stage: Stage, batches: Iterator[Batch], work: _Work) -> Iterator[Batch]:
    """The batches, with their work added up while they are still on the host."""
    for batch in batches:
        work.tokens += stage.config.sequence_length
        work.flops += step_flops(stage.architecture, stage.config.train, batch)
        work.image_flops += image_flops(stage.architecture, stage.config.train, batch)
        yield batch


def _on_device(stage: Stage, batches: Iterator[Batch]) -> Iterator[Batch]:
    """The batches on this rank's device. Others read others: what is damaged in one is an error of this rank alone."""
    with raised_alone():
        for batch in batches:
            yield batch.to(stage.device)


def _record(stage: Stage, result: StepResult, work: _Work, last: bool) -> None:
    """Log the step where it is time, as with the last one.

    Counts one without an update, and ends the run if too many were not finite.
    """
    config, steps = stage.config, stage.config.steps
    seconds = time.perf_counter() - work.started
    stage.recent_seconds.append(seconds)
    stage.since_last_record.add(result, seconds, work.waited)
    if not result.finite:
        _record_skipped(stage, result)
        return
    if result.empty:
        _record_empty(stage)
        return
    stage.skipped_in_a_row = 0
    if stage.finished_steps % config.logging.every and not last:
        return
    tokens, flops, of_images = result.sums
    stage.metrics.write(
        "step",
        stage.finished_steps,
        steps=steps,
        loss=result.loss,
        loss_by_source=_by_source([source.label for source in config.mixture], result),
        **result.figures,
        lr=learning_rate(stage.finished_steps - 1, steps, config.optimizer),
        gradient_norm=result.gradient_norm,
        tokens=stage.finished_steps * config.batch_tokens,
        loss_tokens=sum(result.source_counts),
        tokens_per_second=tokens / seconds,
        tflops_per_gpu=flops / seconds / stage.layout.world_size / 1e12,
        image_share=of_images / flops,
        data_wait=min(work.waited / seconds, 1.0),
        seconds=seconds,
        seconds_left=statistics.fmean(stage.recent_seconds) * (steps - stage.finished_steps),
        skipped=stage.skipped,
        empty=stage.empty,
        since_last=stage.since_last_record.take(),
        memory_gib=torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0,
    )


def _by_source(labels: list[str], result: StepResult) -> dict[str, float]:
    sums_and_counts = zip(labels, result.source_sums, result.source_counts, strict=True)
    return {label: loss / count for label, loss, count in sums_and_counts if count}


def _record_empty(stage: Stage) -> None:
    """Count a step without a target, and name its sequences' sources."""
    stage.empty += 1
    config, loader = stage.config, stage.loader
    stop = stage.finished_steps * config.sequences_per_step
    sequences = range(stop - config.sequences_per_step, stop)
    sources = sorted({loader.mixture.place(sequence)[0] for sequence in sequences})
    stage.metrics.write(
        "empty",
        stage.finished_steps,
        steps=config.steps,
        sequences=len(sequences),
        sources=[printable(config.mixture[source].label) for source in sources],
        empty=stage.empty,
    )


def _record_skipped(stage: Stage, result: StepResult) -> None:
    stage.skipped += 1
    stage.skipped_in_a_row += 1
    config, details = stage.config, stage.config.output / "skipped_steps.jsonl"
    if dist.get_rank() == 0:
        first = (stage.finished_steps - 1) * config.sequences_per_step
        # Where only the gradient is not finite, no single sequence can be blamed: all of the step are named.
        suspects = result.bad_sequences or range(first, first + config.sequences_per_step)
        named = [stage.loader.describe(sequence) for sequence in suspects]
        line = {
            "step": stage.finished_steps,
            "loss": str(result.loss),
            "gradient_norm": str(result.gradient_norm),
            "sequences": named,
        }
        with reported(f"{details} cannot be written"), details.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    stage.metrics.write(
        "skipped",
        stage.finished_steps,
        steps=config.steps,
        loss=str(result.loss),
        gradient_norm=str(result.gradient_norm),
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
    stage.validation_due = False
    if stage.validation is None or stage.config.validation is None:
        return
    labels = [source.label for source in stage.config.validation.corpora]
    batches = _on_device(stage, iter(stage.validation))
    result = stage.trainer.evaluate(batches, stage.validation.micro_batches, sources=len(labels))
    stage.metrics.write(
        "validation",
        stage.finished_steps,
        steps=stage.config.steps,
        loss=result.loss,
        loss_by_source=_by_source(labels, result),
        **result.figures,
    )


def _sample(stage: Stage, stop: StopRequest) -> None:
    """Continue the fixed prompts; nothing is recorded where the run is asked to stop meanwhile."""
    assert stage.sampler is not None, "made where the configuration has samples"
    record = stage.sampler.record(stage.trainer, stage.device, stop)
    if record is not None:
        stage.metrics.write("samples", stage.finished_steps, steps=stage.config.steps, **record)


def _save(stage: Stage, background: bool) -> None:
    """Save the stage as it stands. A save that is still pending is waited for first."""
    _finish_save(stage)
    sequences = stage.finished_steps * stage.config.sequences_per_step
    extra: dict[str, Any] = {
        "sequences": sequences,
        "skipped": stage.skipped,
        "skipped_in_a_row": stage.skipped_in_a_row,
        "empty": stage.empty,
        "validation_due": stage.validation_due,
        "config": stage.config.model_dump(mode="json"),
        "corpora": [source.corpus.fingerprint for source in stage.loader.sources],
        "packs": list(stage.loader.mixture.packs_before(sequences)),
        "changes": [change.model_dump(mode="json") for change in stage.changes],
    }
    trainer, sidecars = stage.trainer, alike(stage.sidecars.checked)
    with trainer.gathered_parameters():
        saved = stage.store.save(
            stage.finished_steps, trainer.chunks, trainer.optimizer, extra, sidecars, background=background
        )
    if saved is not None:
        _record_saved(stage, saved)


def _finish_save(stage: Stage) -> None:
    """Put the checkpoint of a pending save in place, if there is one; waits where it is not written yet."""
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
