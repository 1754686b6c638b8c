"""Where a run's figures go: console, ``metrics.jsonl``, TensorBoard, Weights & Biases. Written by rank 0 only.

``metrics.jsonl`` is always written and is what other programs should read: one JSON object a line, with ``kind``
(``source``, ``resumed``, ``changed``, ``step``, ``validation``, ``samples``, ``evaluation``, ``skipped``, ``empty``,
``checkpoint``, ``end``) and ``step``. A resumed run appends; where it repeats steps that a killed attempt had already
logged, the later line counts. A checkpoint that was written in the background has the step that it holds, and its line
comes when it is whole: after later steps'. So do the scores of a checkpoint, which a command beside the run evaluates.
Whichever process holds the run's lock takes them over, so that one at a time writes figures.

A step's record has the figures of that step, and under ``since_last`` those of all steps since the last record
(``averages.py``), which are what console and plots show.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from megatron_apriel.config.schema import StageConfig
from megatron_apriel.errors import ConfigError, brief, printable
from megatron_apriel.formats.run_directory import RunDirectory
from megatron_apriel.formats.run_evaluations import RunEvaluations
from megatron_apriel.formats.run_record import change_in_words
from megatron_apriel.quantities import counted, short
from megatron_apriel.terminal import note, say
from megatron_apriel.train.wandb_run import begin_wandb, wandb_table


class Sink(Protocol):
    """Takes the records of a run."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Take one; raises OSError where it cannot be kept."""

    def close(self) -> None:
        """Nothing more will come."""


def clock(seconds: float) -> str:
    """``3723`` -> ``1:02:03``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}"


class Console:
    """One line a record, for a person who watches the log."""

    def write(self, record: Mapping[str, Any]) -> None:
        formatter = getattr(self, f"_{record['kind']}", None)
        if formatter is not None and (line := formatter(record)):
            say(*line) if isinstance(line, list) else say(line)

    def _step(self, record: Mapping[str, Any]) -> str:
        record = in_curves(record)
        sources = record["loss_by_source"].items()
        by_source = ", ".join(f"{name} {'-' if loss is None else f'{loss:.3f}'}" for name, loss in sources)
        without = "".join(f" | {record[name]} {name}" for name in ("skipped", "empty") if record[name])
        flops = f" | {record['tflops_per_gpu']:.3g} TFLOP/s each" if record["tflops_per_gpu"] >= 0.1 else ""
        images = f" | images {record['image_share']:.0%} of the work" if record["image_share"] else ""
        return (
            f"step {record['step']}/{record['steps']} | loss {record['loss']:.4f} ({by_source}) | lr {record['lr']:.2e}"
            f" | grad norm {record['gradient_norm']:.3f} | {short(record['tokens_per_second'])} tok/s{flops}"
            f"{images} | data wait {record['data_wait']:.0%}{without} | left {clock(record['seconds_left'])}"
        )

    def _validation(self, record: Mapping[str, Any]) -> str:
        losses = ", ".join(f"{name} {loss:.4f}" for name, loss in record["loss_by_source"].items())
        return f"step {record['step']}/{record['steps']} | held-out loss {losses}"

    def _samples(self, record: Mapping[str, Any]) -> list[str]:
        lines = []
        for sample in record["samples"]:
            lines.append(f"step {record['step']}/{record['steps']} | sample: {prompt_in_words(sample)}")
            lines += [f"    {line}" for line in sample["text"].split("\n")]
            if not sample["ended"]:
                lines[-1] += " ..."
        return lines

    def _evaluation(self, record: Mapping[str, Any]) -> str:
        scores = ", ".join(
            f"{name} {score:.2f} ({' to '.join(f'{end:.2f}' for end in record['intervals'][name])})"
            for name, score in record["scores"].items()
        )
        return f"step {record['step']}/{record['steps']} | evaluated after {short(record['tokens'])} tokens: {scores}"

    def _skipped(self, record: Mapping[str, Any]) -> str:
        return (
            f"step {record['step']}/{record['steps']} | SKIPPED: loss {record['loss']}, gradient norm"
            f" {record['gradient_norm']}; {record['in_a_row']} in a row, {record['skipped']} in all; the sequences and"
            f" samples are in {record['details']}"
        )

    def _empty(self, record: Mapping[str, Any]) -> str:
        return (
            f"step {record['step']}/{record['steps']} | EMPTY, no update: none of its "
            f"{counted(record['sequences'], 'sequence')} ({', '.join(record['sources'])})"
            f" has a token to learn; {counted(record['empty'], 'such step')} in all"
        )

    def _end(self, record: Mapping[str, Any]) -> str:
        skipped, empty = record["skipped"], record["empty"]
        summary = f"step {record['step']}/{record['steps']} | without an update: {skipped} skipped, {empty} empty"
        return summary if skipped or empty else ""

    def _resumed(self, record: Mapping[str, Any]) -> str:
        return f"resumed from {record['path']} in {record['seconds']:.1f} s"

    def _changed(self, record: Mapping[str, Any]) -> str:
        settings = "; ".join(change_in_words(name, *values) for name, values in record["settings"].items())
        given = ", ".join(f"{name} after {packs} of its sequences" for name, packs in record["given"].items())
        data = f" | data continue with {given}" if given else ""
        return f"step {record['step']}/{record['steps']} | CHANGED: {settings} | next lr {record['lr']:.2e}{data}"

    def _checkpoint(self, record: Mapping[str, Any]) -> str:
        blocked, waited = record["blocked_seconds"], record["waited_seconds"]
        still = f"; training stood still for {blocked:.1f} s" if blocked < record["seconds"] else ""
        waiting = f", {waited:.1f} s of it waiting for the disk" if waited >= 0.05 else ""
        return (
            f"step {record['step']}/{record['steps']} | saved {record['path']} in {record['seconds']:.1f} s"
            f"{still}{waiting}"
        )

    def close(self) -> None:
        sys.stdout.flush()


class JsonLines:
    """Every record, as one line of ``metrics.jsonl``; flushed at once so that a killed run loses nothing.

    A figure that is not finite, as a held-out loss may be, is ``null``: JSON has no other word for it.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps({"time": round(time.time(), 3), **_finite(record)}, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _finite(figure: Any) -> Any:
    """The same, with None for numbers that are not finite."""
    if isinstance(figure, Mapping):
        return {name: _finite(value) for name, value in figure.items()}
    if isinstance(figure, list | tuple):
        return [_finite(value) for value in figure]
    return None if isinstance(figure, float) and not math.isfinite(figure) else figure


def prompt_in_words(sample: Mapping[str, Any]) -> str:
    """What the model was asked, on one line."""
    return brief(f"[{sample['image']}] {sample['prompt']}" if sample["image"] else sample["prompt"], 200)


def in_curves(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record as a person sees it: of a step, with the figures of all steps since the last record for its own."""
    return {**record, **record.get("since_last", {})}


def _scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record under the names that plots use; losses by source get a name each."""
    if record["kind"] in ("skipped", "empty"):
        return {}  # the next step's record counts it
    group = {"step": "train", "source": f"source/{record.get('source')}"}.get(record["kind"], record["kind"])
    scalars = {}
    for key, value in in_curves(record).items():
        if key == "loss_by_source":
            scalars.update({f"{group}/loss/{name}": loss for name, loss in value.items() if loss is not None})
        elif key in ("scores", "without_answer"):
            scalars |= {f"{group}/{key.removesuffix('s')}/{name}": float(number) for name, number in value.items()}
        elif isinstance(value, int | float) and key not in ("step", "steps", "count"):
            scalars[f"{group}/{key}"] = float(value)
    return scalars


class TensorBoard:
    """The same figures as TensorBoard scalars."""

    def __init__(self, directory: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                f"logging.tensorboard is on, and TensorBoard cannot be imported: {error}.",
                fix="pip install tensorboard, or set logging.tensorboard=false.",
            ) from None
        self._writer = SummaryWriter(str(directory))

    def write(self, record: Mapping[str, Any]) -> None:
        for name, number in _scalars(record).items():
            self._writer.add_scalar(name, number, record["step"])
        for place, sample in enumerate(record.get("samples", ()), start=1):
            # Indented: shown letter by letter, not as markup.
            text = "\n".join(f"    {line}" for line in sample["text"].split("\n"))
            self._writer.add_text(f"samples/{place}: {prompt_in_words(sample)}", text, record["step"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """The same figures to Weights & Biases; ``offline`` writes below the output directory and needs no network."""

    def __init__(self, config: StageConfig) -> None:
        self._run = begin_wandb(config)
        if config.evaluate is not None:
            self._run.define_metric("evaluation/*", step_metric="evaluation/step")
        self._newest = 0

    def write(self, record: Mapping[str, Any]) -> None:
        scalars: dict[str, Any] = dict(_scalars(record))
        if samples := record.get("samples"):
            rows = [[record["step"], prompt_in_words(sample), sample["text"]] for sample in samples]
            scalars["samples/texts"] = wandb_table(["step", "prompt", "text"], rows)
        if record["kind"] == "evaluation":
            # Of an earlier step, it stands at the step where it comes in; its own is the axis of its plots.
            scalars["evaluation/step"] = record["step"]
            self._newest = max(self._newest, int(self._run.step or 0))
        if scalars:
            # Figures of an earlier step, a checkpoint's that was written in the background, would be dropped.
            self._newest = max(self._newest, record["step"])
            with _as_os_errors():
                self._run.log(scalars, step=self._newest)

    def close(self) -> None:
        with _as_os_errors():
            self._run.finish()


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    """For a service: where it is gone, its library raises errors of many kinds, which have no base of their own."""
    try:
        yield
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


class Metrics:
    """All sinks of a run; on every rank but 0 it has none and does nothing.

    Once it is open, a figure that cannot be written (a full disk) is reported on standard error and the run continues:
    it would otherwise end on rank 0 alone, and the others would wait for it.
    """

    def __init__(self, config: StageConfig, rank: int) -> None:
        self._sinks: list[Sink] = []
        self._steps, self._evaluations = config.steps, RunEvaluations.of(config) if not rank else None
        if rank:
            return
        config.output.mkdir(parents=True, exist_ok=True)
        self._sinks += [Console(), JsonLines(RunDirectory(config.output).metrics)]
        if config.logging.tensorboard:
            self._sinks.append(TensorBoard(config.output / "tensorboard"))
        if config.logging.wandb != "off":
            self._sinks.append(WeightsAndBiases(config))

    def write(self, kind: str, step: int, **figures: Any) -> None:
        """Give a record to every sink. ``step`` counts finished steps."""
        self._give({"kind": kind, "step": step} | {name: _shown(value) for name, value in figures.items()})
        self.take_scores()

    def take_scores(self) -> None:
        """Take over the scores of checkpoints that a command beside the run has left, if there are any."""
        if self._evaluations is not None:
            for score in self._evaluations.new_scores():
                figures = _shown(score.model_dump(mode="json"))
                self._give({"kind": "evaluation", "step": score.step, "steps": self._steps, **figures})

    def _give(self, record: Mapping[str, Any]) -> None:
        for sink in self._sinks:
            with _kept(sink):
                sink.write(record)

    def close(self) -> None:
        for sink in self._sinks:
            with _kept(sink):
                sink.close()


def _shown(figure: Any) -> Any:
    """A figure as people and other programs are given it: names and paths in it are printable."""
    if isinstance(figure, Mapping):
        return {printable(name): _shown(value) for name, value in figure.items()}
    return printable(figure) if isinstance(figure, str) else figure


def _kept(sink: Sink) -> contextlib.AbstractContextManager[None]:
    return reported(f"{type(sink).__name__} cannot write figures")


@contextlib.contextmanager
def reported(failure: str) -> Iterator[None]:
    """Within it, a file of rank 0's that cannot be written is a warning: ``failure``, and what the system says."""
    try:
        yield
    except OSError as error:
        with contextlib.suppress(OSError):
            note(f"warning: {failure}: {error}")
