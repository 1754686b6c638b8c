"""Results side by side: evaluations, and runs whose checkpoints were evaluated, with differences on the items of both.

A difference is taken item by item, which sees far smaller ones than two intervals that overlap. It counts only items
whose question and scoring are the same in both results; how many those are stands beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from megatron_apriel.errors import ConfigError, listed, printable
from megatron_apriel.evaluate.benchmarks import BENCHMARKS
from megatron_apriel.evaluate.items import SOURCE, read_items
from megatron_apriel.evaluate.results import Row
from megatron_apriel.evaluate.running import SETTINGS, Evaluation, earlier_evaluation
from megatron_apriel.evaluate.statistics import Interval, paired
from megatron_apriel.formats.run_directory import RunDirectory, checkpoints_in
from megatron_apriel.formats.run_evaluations import REPORT, scores_of
from megatron_apriel.inputs import what_was_meant

HEADINGS = ("benchmark", "result", "tokens", "score", "low", "high", "asked", "none", "truncated", "failed",
            "difference", "difference_low", "difference_high", "items_of_both")  # fmt: skip
"""Of the rows, as a table for programs has them."""


@dataclass(frozen=True)
class Result:
    """One evaluation.

    Attributes:
        name: for people.
        evaluation: its directory.
        run: name of the run that it is of; empty for an evaluation alone.
        step, tokens: that its model was trained for in the run, where that is known.
    """

    name: str
    evaluation: Evaluation
    run: str = ""
    step: int | None = None
    tokens: int | None = None

    @cached_property
    def rows(self) -> dict[str, Row]:
        """What there is of each benchmark. Raises DataError if its files are damaged."""
        names = [name for name in BENCHMARKS if (self.evaluation.folder / name / SOURCE).is_file()]
        return {name: self.evaluation.row(BENCHMARKS[name]) for name in names}


@dataclass(frozen=True)
class Compared:
    """A result on one benchmark.

    Attributes:
        result, row: of it.
        difference: to the base, on the items of both; None without any.
        both: how many items that are.
    """

    result: Result
    row: Row
    difference: Interval | None
    both: int

    def as_record(self) -> dict[str, Any]:
        """One line of a table for programs."""
        row, gain = self.row, self.difference
        values = (
            row.name, self.result.name, self.result.tokens, row.score.value, row.score.low, row.score.high, row.asked,
            row.none, row.truncated, row.failed, gain and gain.value, gain and gain.low, gain and gain.high, self.both,
        )  # fmt: skip
        return dict(zip(HEADINGS, values, strict=True))


def results_in(folder: Path) -> list[Result]:
    """The results in a directory: one of an evaluation, and of a run one for each evaluated checkpoint, in order.

    Raises:
        ConfigError: it is neither.
    """
    if not folder.is_dir():
        what = "is no directory" if folder.exists() else "does not exist"
        raise ConfigError(
            f"{printable(folder)} {what}.",
            what_was_meant(folder),
            "Results are directories that tools/evaluate.py made, and runs.",
        )
    if (folder / SETTINGS).is_file():
        return [Result(str(folder), earlier_evaluation(folder))]
    run = RunDirectory(folder)
    whole = {step: path for step, path in checkpoints_in(run.evaluations).items() if (path / REPORT).is_file()}
    if not whole:
        what = "no evaluation in it is whole" if run.evaluations.is_dir() else "it holds no evaluation"
        raise ConfigError(
            f"{printable(folder)} cannot be compared: {what}.",
            "Results are directories that tools/evaluate.py made, and runs that it followed.",
            f"Evaluate the run's checkpoints: python tools/evaluate.py --follow {printable(folder)}",
        )
    tokens = {step: record.tokens for step, record in scores_of(run).items()}
    return [
        Result(f"{folder}, step {step}", earlier_evaluation(path), str(folder), step, tokens.get(step))
        for step, path in whole.items()
    ]


def compare(results: Sequence[Result], base: Result) -> list[Compared]:
    """Every result on every benchmark that it has, benchmark by benchmark."""
    names = [name for name in BENCHMARKS if any(name in result.rows for result in results)]
    return [_compared(result, base, name) for name in names for result in results if name in result.rows]


def _compared(result: Result, base: Result, name: str) -> Compared:
    row = result.rows[name]
    if result is base or name not in base.rows:
        return Compared(result, row, None, 0)
    return Compared(result, row, *difference(row, result.evaluation, base.rows[name], base.evaluation))


def difference(row: Row, evaluation: Evaluation, base: Row, base_evaluation: Evaluation) -> tuple[Interval | None, int]:
    """The mean difference of a row to another's, over the items that are the same in both, and how many those are."""
    marks = _marks(base_evaluation, base.name)
    same = {key for key, mark in _marks(evaluation, row.name).items() if marks.get(key) == mark}
    ours = {key: share for key, share in row.shares.items() if key in same and key in base.shares}
    return paired(ours, base.shares, row.clusters), len(ours)


def _marks(evaluation: Evaluation, benchmark: str) -> dict[str, tuple[str, str]]:
    """Of each item what changes where its question or its scoring does."""
    items, _ = read_items(evaluation.folder / benchmark)
    return {item.key: (item.question_mark, item.grading_mark) for item in items}


def remarks(results: Sequence[Result], base: Result) -> list[str]:
    """What makes results another thing than the base's: settings, data, scorers, and what was not asked."""
    said = []
    for result in results:
        if not result.rows:
            said.append(f"{result.name} holds no benchmark: nothing was loaded there yet.")
        for row in result.rows.values():
            if row.missing:
                said.append(f"{result.name}: {row.missing:,} of {row.title} are not asked and scored yet; they count as"
                            " wrong.")  # fmt: skip
            said += [f"{result.name}, {row.title}: {remark}" for remark in (*row.source.left_out, *row.damage)]
        if result is base:
            continue
        ours, theirs = (_comparable(one.evaluation) for one in (result, base))
        if differs := [f"{key} {ours[key]}, not {theirs[key]}" for key in ours if ours[key] != theirs[key]]:
            said.append(f"{result.name} was asked with other settings than {base.name}: {'; '.join(differs)}.")
        for name in result.rows.keys() & base.rows.keys():
            own, other = result.rows[name], base.rows[name]
            if own.source.checksum != other.source.checksum or own.source.loader != other.source.loader:
                said.append(f"{result.name} and {base.name} have other data of {own.title}.")
            if set(own.scorers) != set(other.scorers):
                said.append(f"{result.name} was scored by other scorers than {base.name} on {own.title}: "
                            f"{listed(own.scorers)}, not {listed(other.scorers)}.")  # fmt: skip
    return list(dict.fromkeys(said))


def _comparable(evaluation: Evaluation) -> Mapping[str, Any]:
    settings = evaluation.settings
    return {"temperature": settings.temperature, "max-tokens": settings.max_tokens, "seed": settings.seed}
