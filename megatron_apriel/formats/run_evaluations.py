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
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from megatron_apriel.config.output_sections import EvaluateSection
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.errors import printable
from megatron_apriel.formats.run_directory import RunDirectory, checkpoint_path, checkpoints_in
from megatron_apriel.inputs import read_input
from megatron_apriel.outputs import replace_file
from megatron_apriel.terminal import note

REPORT = "report.json"
"""Of an evaluation that is whole."""
_Percent = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
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

    model_config = ConfigDict(extra="forbid")

    step: Annotated[int, Field(ge=0)]
    tokens: Annotated[int, Field(ge=0)]
    scores: dict[_Name, _Percent]
    intervals: dict[_Name, tuple[_Percent, _Percent]]
    without_answer: dict[_Name, Annotated[int, Field(ge=0)]]
    path: str
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]


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
        """Add what an evaluation gave; by the evaluating command alone."""
        with _scores(self.directory).open("a", encoding="utf-8") as file:
            file.write(record.model_dump_json() + "\n")

    def scored(self) -> set[int]:
        """Steps whose scores were added."""
        return set(scores_of(self.directory))

    def has_new(self) -> bool:
        """Whether there are scores that the run's figures do not have yet."""
        return len(_lines(self.directory)) > self._count()

    def new_scores(self) -> Iterator[ScoreRecord]:
        """Scores that the run's figures do not have yet; they have each once it is taken.

        By whoever holds the run's lock. Never raises: a run does not end for a score. A line that cannot be read is
        named and passed over.
        """
        try:
            lines, before = _lines(self.directory), self._count()
            for number, line in enumerate(lines[before:], before + 1):
                if (record := _record(line)) is None:
                    note(f"line {number} of {printable(_scores(self.directory))} is no score, and passed over")
                else:
                    yield record
                replace_file(self._recorded, f"{number}\n")
        except OSError as error:
            note(f"warning: scores in {printable(_scores(self.directory))} cannot be taken over: {error}")

    def _count(self) -> int:
        with suppress(OSError, ValueError):
            return max(int(read_input(self._recorded)), 0)
        return 0


def _scores(run: RunDirectory) -> Path:
    return run.evaluations / "scores.jsonl"


def _lines(run: RunDirectory) -> list[bytes]:
    """All whole lines of a run's scores."""
    try:
        text = read_input(_scores(run))
    except FileNotFoundError:
        return []
    return text.split(b"\n")[:-1]


def scores_of(run: RunDirectory) -> dict[int, ScoreRecord]:
    """A run's scores by step, the last of each. Raises OSError if they cannot be read."""
    return {record.step: record for record in map(_record, _lines(run)) if record is not None}


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
