"""Figures between two records: recomputed in exact fractions, and shown under the names of every source."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from megatron_apriel.testing.stages import small_stage
from megatron_apriel.train.averages import SinceLastRecord
from megatron_apriel.train.metrics import Metrics
from megatron_apriel.train.step_result import StepResult

LABELS = ("text", "images")


def step(sums: list[float], counts: list[float], norm: float) -> StepResult:
    """One with a sum that is not finite is skipped, one that counts nothing is empty: neither has an update."""
    finite = all(map(math.isfinite, sums))
    total = sum(counts)
    figures = {"accuracy": 0.25 * norm}
    loss, applied = sum(sums) / max(total, 1), finite and total > 0
    return StepResult(loss, sums, counts, figures, norm, applied, finite, sums=[512.0, 3e12, 1e12])


STEPS = [
    (step([30.0, 2.0], [10.0, 1.0], 1.0), 2.0, 0.5),
    (step([100.0, 0.0], [50.0, 0.0], 2.0), 1.0, 0.0),
    (step([float("nan"), 8.0], [10.0, 4.0], float("nan")), 1.0, 1.0),
    (step([0.0, 0.0], [0.0, 0.0], 0.0), 0.5, 0.0),
    (step([0.0, 0.0], [0.0, 0.0], 0.0), 0.5, 0.0),
    (step([12.0, 40.0], [6.0, 20.0], 4.5), 4.0, 0.1),
]


def test_means_are_over_loss_tokens_and_times_over_all_steps() -> None:
    since = SinceLastRecord(LABELS, world_size=2)
    for result, seconds, waited in STEPS:
        since.add(result, seconds, waited)
    taken = since.take()
    sound = [result for result, *_ in STEPS if result.applied]
    sums, counts = ([Fraction(0), Fraction(0)] for _ in range(2))
    for result in sound:
        for place in range(2):
            sums[place] += Fraction(result.source_sums[place])
            counts[place] += Fraction(result.source_counts[place])
    assert taken["loss"] == pytest.approx(float(sum(sums) / sum(counts)))
    assert taken["loss"] != pytest.approx(sum(result.loss for result in sound) / 3)
    by_source = {label: float(sums[place] / counts[place]) for place, label in enumerate(LABELS)}
    assert taken["loss_by_source"] == pytest.approx(by_source)
    assert taken["gradient_norm"] == pytest.approx(2.5)
    weighted = sum(result.figures["accuracy"] * sum(result.source_counts) for result in sound)
    assert taken["accuracy"] == pytest.approx(weighted / float(sum(counts)))
    assert (taken["count"], taken["skipped"], taken["empty"]) == (6, 1, 2)
    assert taken["loss_tokens"] == float(sum(counts))
    assert taken["data_wait"] == pytest.approx(1.6 / 9)
    assert taken["tokens_per_second"] == pytest.approx(6 * 512 / 9)
    assert taken["tflops_per_gpu"] == pytest.approx(6 * 3 / 9 / 2)
    assert taken["image_share"] == pytest.approx(1 / 3)


def test_a_record_begins_where_the_last_one_ended_and_names_a_source_that_gave_nothing() -> None:
    since = SinceLastRecord(LABELS, world_size=1)
    since.add(*STEPS[0])
    since.take()
    since.add(*STEPS[1])
    taken = since.take()
    assert taken["loss_by_source"] == {"text": 2.0, "images": None}
    assert (taken["loss"], taken["gradient_norm"], taken["count"], taken["skipped"]) == (2.0, 2.0, 1, 0)


@pytest.fixture
def shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """What a step's record becomes: on the console, in ``metrics.jsonl``, as scalars of TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def write(labels: tuple[str, ...], steps: list[Any]) -> tuple[str, dict[str, Any], dict[str, float]]:
        since = SinceLastRecord(labels, world_size=1)
        for result, seconds, waited in steps:
            since.add(result, seconds, waited)
        output = tmp_path / f"{len(labels)} sources, {len(steps)} steps"
        metrics = Metrics(small_stage(output=str(output)), rank=0)
        own = {
            "loss": 9.5,
            "loss_by_source": {"text": 9.5},
            "gradient_norm": 7.5,
            "data_wait": 0.75,
            "skipped": 5,
            "empty": 9,
        }
        rates = {"lr": 1e-3, "tokens_per_second": 1.0, "tflops_per_gpu": 0.0, "image_share": 0.0, "seconds_left": 60.0}
        metrics.write("step", 4, steps=8, **own, **rates, since_last=since.take())
        metrics.write("skipped", 5, steps=8, loss="nan", gradient_norm="nan", in_a_row=1, skipped=6, details="d")
        metrics.close()
        events = EventAccumulator(str(output / "tensorboard"))
        events.Reload()
        scalars = {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}
        (record, _) = map(json.loads, (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        return capsys.readouterr().out, record, scalars

    return write


def test_console_and_plots_show_the_means_and_the_file_has_the_steps_own_too(shown: Any) -> None:
    line, record, scalars = shown(LABELS, STEPS)
    assert "step 4/8 | loss 2.1149 (text 2.152, images 2.000) | lr" in line
    assert "| grad norm 2.500 |" in line and "| data wait 18% | 1 skipped | 2 empty |" in line
    assert (record["loss"], record["gradient_norm"], record["data_wait"], record["skipped"]) == (9.5, 7.5, 0.75, 5)
    assert record["since_last"]["loss"] == pytest.approx(184 / 87)
    assert scalars["train/loss"] == pytest.approx(184 / 87)
    assert scalars["train/loss/text"] == pytest.approx(142 / 66) and scalars["train/loss/images"] == 2.0
    assert scalars["train/gradient_norm"] == 2.5
    assert scalars["train/data_wait"] == pytest.approx(1.6 / 9)
    assert (scalars["train/skipped"], scalars["train/empty"]) == (1, 2), "not the numbers in all, as the file has"
    assert not {"train/count", "train/step", "train/steps"} & scalars.keys()


def test_the_only_source_and_one_without_a_loss_are_named(shown: Any) -> None:
    alone = [(step([20.0], [10.0], 1.0), 1.0, 0.0)]
    assert "| loss 2.0000 (text 2.000) | lr" in shown(("text",), alone)[0]
    line, _, scalars = shown(LABELS, STEPS[1:2])
    assert "(text 2.000, images -)" in line and "skipped |" not in line.splitlines()[0]
    assert "train/loss/text" in scalars and "train/loss/images" not in scalars


def test_a_held_out_loss_that_is_not_finite_is_written_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = Metrics(small_stage(output=str(tmp_path), logging={"tensorboard": False}), rank=0)
    losses = {"text": math.nan, "images": math.inf, "other": 1.5}
    metrics.write("validation", 4, steps=8, loss=math.nan, loss_by_source=losses)
    metrics.close()
    written = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8")
    record = json.loads(written, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert record["loss"] is None and record["loss_by_source"] == {"text": None, "images": None, "other": 1.5}
    assert "held-out loss text nan, images inf, other 1.5000" in capsys.readouterr().out
