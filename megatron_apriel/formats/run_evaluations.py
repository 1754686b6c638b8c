"""Which checkpoints of a run are evaluated, what there is of each, and the scores that its figures get. No torch.

::

    OUTPUT/evaluations/
      step_00000500/                an evaluation, as tools/evaluate.py makes it; with ``report.json`` it is whole
      weights/step_00000500/        the checkpoint as a Hugging Face directory, while it is evaluated
      scores.jsonl                  a line for each evaluation that is whole, in the order in which they ended
      recorded                      how many of these lines the run's figures have

Two commands share this folder and nothing else. The evaluating one makes all of it, but for ``recorded``. The run only
looks: what is to be evaluated and was not exported yet keeps its checkpoint, and new scores go into its figures, which
one process at a time writes, the one that holds the run's lock.

A damaged line of ``scores.jsonl`` costs that score alone, until the following adds it again; it is named and counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from megatron_apriel.config.output_sections import EvaluateSection
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.errors import DataError, OutputError, brief, printable
from megatron_apriel.formats.growing_files import cut_torn_line, in_ranges, whole_lines
from megatron_apriel.formats.run_directory import RunDirectory, checkpoint_path, checkpoints_in
from megatron_apriel.inputs import read_input
from megatron_apriel.output_files import replace_file
from megatron_apriel.quantities import counted
from megatron_apriel.terminal import note

REPORT = "report.json"
"""Of an evaluation that is whole."""
_ANEW = "Remove it: python tools/evaluate.py --follow RUN writes it anew from the evaluations that are whole."
_SHOWN = 1000
"""Letters of a list of damaged lines."""
_Percent = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
_MOST = 2**53
"""Of a count: what every program that reads JSON keeps exactly."""
_Name = Annotated[str, Field(max_length=200)]


class ScoreRecord(BaseModel):
    """What an evaluation gave: a record ``evaluation`` of the run's figures.

    Attributes:
        step, tokens: of the checkpoint.
        scores: percent right of all that was asked, by benchmark.
        intervals: of them, 95%.
        without_answer: of the items asked, those that failed, were cut off, or gave no verdict.
        path: the evaluation's directory.
        seconds: that it took.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    step: Annotated[int, Field(ge=0, le=_MOST)]
    tokens: Annotated[int, Field(ge=0, le=_MOST)]
    scores: dict[_Name, _Percent]
    intervals: dict[_Name, tuple[_Percent, _Percent]]
    without_answer: dict[_Name, Annotated[int, Field(ge=0, le=_MOST)]]
    path: str
    seconds: Annotated[float, Field(ge=0, le=_MOST, allow_inf_nan=False)]

    @model_validator(mode="after")
    def _is_of_one_evaluation(self) -> ScoreRecord:
        if not self.scores.keys() == self.intervals.keys() == self.without_answer.keys():
            raise ValueError("scores, intervals and without_answer are of different benchmarks")
        if any(low > high for low, high in self.intervals.values()):
            raise ValueError("an interval ends before it begins")
        return self


@dataclass(frozen=True)
class RunEvaluations:
    """Of a run whose length is known.

    Args:
        directory: of the run.
        section: what is evaluated.
        every: steps between two checkpoints.
        steps: of the whole run.
    """

    directory: RunDirectory
    section: EvaluateSection
    every: int
    steps: int

    @classmethod
    def of(cls, config: StageConfig) -> RunEvaluations | None:
        """Of a stage; None where nothing is to be evaluated."""
        if config.evaluate is None:
            return None
        every = config.evaluate.every or config.checkpoint.every
        return cls(RunDirectory(config.output), config.evaluate, every, config.steps)

    def is_due(self, step: int) -> bool:
        """Whether the model after ``step`` is to be evaluated."""
        if step == 0:
            return self.section.start
        return step == self.steps or (0 < step < self.steps and step % self.every == 0)

    def evaluation(self, step: int) -> Path:
        """Where that of ``step`` lies."""
        return checkpoint_path(self.directory.evaluations, step)

    def weights(self, step: int) -> Path:
        """Where its weights lie meanwhile."""
        return checkpoint_path(self.directory.evaluations / "weights", step)

    def is_whole(self, step: int) -> bool:
        """Whether that of ``step`` is."""
        return _is_there(self.evaluation(step) / REPORT)

    def exported(self) -> list[int]:
        """Steps whose weights are there and not evaluated, oldest first."""
        return [step for step in checkpoints_in(self.directory.evaluations / "weights") if not self.is_whole(step)]

    def waiting(self, steps: Collection[int]) -> list[int]:
        """Those of ``steps`` that are to be evaluated, and neither are nor were exported for it, oldest first."""
        return [
            step
            for step in sorted(steps)
            if self.is_due(step) and not self.is_whole(step) and not _is_there(self.weights(step))
        ]

    def kept(self, steps: Collection[int]) -> set[int]:
        """Of checkpoints that would go those that stay for this: the newest that wait, as many as may."""
        waiting = self.waiting(steps)
        return set(waiting[max(len(waiting) - self.section.waiting, 0) :])

    @property
    def _recorded(self) -> Path:
        return self.directory.evaluations / "recorded"

    def add(self, record: ScoreRecord) -> None:
        """Add what an evaluation gave; by the evaluating command alone. Raises OutputError."""
        path = _scores(self.directory)
        try:
            cut_torn_line(path)
            with path.open("a", encoding="utf-8") as file:
                file.write(record.model_dump_json() + "\n")
        except OSError as error:
            raise OutputError(f"{printable(path)} cannot be written: {error}.", fix=_ANEW) from None

    def scored(self, remark: Callable[[str], None] = note) -> set[int]:
        """Steps whose scores were added; damaged lines are remarked upon. Raises DataError."""
        return set(scores_of(self.directory, remark))

    def has_new(self) -> bool:
        """Whether there are scores that the run's figures do not have yet. Raises DataError."""
        lines = _read(self.directory)
        return len(lines) != self._count(lines)

    def new_scores(self) -> Iterator[ScoreRecord]:
        """Scores that the run's figures do not have yet; they have each once it is taken.

        By whoever holds the run's lock. Never raises: a run does not end for a score. Lines that cannot be read are
        named, counted and passed over.
        """
        path = printable(_scores(self.directory))
        try:
            lines = whole_lines(_scores(self.directory))
            before = self._count(lines)
            if len(lines) == before:
                return
            replace_file(self._recorded, f"{before}\n")  # where that cannot be written, each would be taken for ever
            records = {number: _record(line) for number, line in enumerate(lines[before:], before + 1)}
            _name_damaged(path, records, len(lines), note)
            for number, record in records.items():
                if record is not None:
                    yield record
                    replace_file(self._recorded, f"{number}\n")
            replace_file(self._recorded, f"{len(lines)}\n")
        except OSError as error:
            note(f"warning: scores in {path} cannot be taken over: {error}")

    def _count(self, lines: Sequence[bytes]) -> int:
        """How many lines were taken; none of a file that became shorter, since nobody knows which of it are new."""
        with suppress(OSError, ValueError):
            taken = int(read_input(self._recorded))
            return taken if 0 <= taken <= len(lines) else 0
        return 0


def _scores(run: RunDirectory) -> Path:
    return run.evaluations / "scores.jsonl"


def _read(run: RunDirectory) -> list[bytes]:
    """All whole lines of a run's scores. Raises DataError."""
    try:
        return whole_lines(_scores(run))
    except OSError as error:
        raise DataError(f"{printable(_scores(run))} cannot be read: {error}.", fix=_ANEW) from None


def scores_of(run: RunDirectory, remark: Callable[[str], None] = note) -> dict[int, ScoreRecord]:
    """A run's scores by step, the last of each; damaged lines are remarked upon. Raises DataError."""
    records = {number: _record(line) for number, line in enumerate(_read(run), 1)}
    _name_damaged(printable(_scores(run)), records, len(records), remark)
    return {record.step: record for record in records.values() if record is not None}


def _name_damaged(
    path: str, records: Mapping[int, ScoreRecord | None], lines: int, remark: Callable[[str], None]
) -> None:
    if damaged := [number for number, record in records.items() if record is None]:
        what = "is no score" if len(damaged) == 1 else "are no scores"
        remark(
            f"{len(damaged):,} of {counted(lines, 'line')} of {path} {what}, and passed over: "
            f"{brief(in_ranges(damaged), _SHOWN)}"
        )


def _is_there(path: Path) -> bool:
    """Whether it is; False too where the file system fails."""
    with suppress(OSError):
        return path.exists()
    return False


def _record(line: bytes) -> ScoreRecord | None:
    """The score in a line; None where it is none."""
    try:
        return ScoreRecord.model_validate_json(line)
    except ValidationError:
        return None


def score_record(step: int, tokens: int, folder: Path, seconds: float) -> ScoreRecord:
    """What the evaluation in ``folder`` gave. Raises ValueError if its report is not one."""
    try:
        rows = {row["name"]: row for row in json.loads(read_input(folder / REPORT))["rows"]}
        return ScoreRecord(
            step=step,
            tokens=tokens,
            scores={name: row["score"]["value"] for name, row in rows.items()},
            intervals={name: (row["score"]["low"], row["score"]["high"]) for name, row in rows.items()},
            without_answer={name: row["none"] + row["truncated"] + row["failed"] for name, row in rows.items()},
            path=str(folder),
            seconds=round(seconds, 1),
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / REPORT} lacks {error}") from None
