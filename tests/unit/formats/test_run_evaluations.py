"""Which checkpoints are evaluated, which stay for it, and scores that reach the run's figures once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_apriel.config.output_sections import EvaluateSection
from megatron_apriel.formats.run_directory import RunDirectory
from megatron_apriel.formats.run_evaluations import REPORT, RunEvaluations, ScoreRecord, score_record


def of(run: Path, *, every: int = 100, steps: int = 1050, **section: object) -> RunEvaluations:
    given = EvaluateSection.model_validate({"benchmarks": ["ifbench"], **section})
    return RunEvaluations(RunDirectory(run), given, every, steps)


def score(step: int) -> ScoreRecord:
    return ScoreRecord(step=step, tokens=step * 2048, scores={"ifbench": 50.0}, intervals={"ifbench": (40.0, 60.0)},
                       without_answer={"ifbench": 1}, path="somewhere", seconds=2.5)  # fmt: skip


def test_every_so_many_steps_the_last_one_and_the_beginning(tmp_path: Path) -> None:
    due = [step for step in range(1200) if of(tmp_path, every=400).is_due(step)]
    assert due == [0, 400, 800, 1050]
    assert not of(tmp_path, start=False).is_due(0)


def test_what_waits_stays_and_no_more_than_may(tmp_path: Path) -> None:
    evaluations = of(tmp_path)
    steps = {50, 100, 200, 300, 400, 450}
    assert evaluations.waiting(steps) == [100, 200, 300, 400]
    assert evaluations.kept(steps) == {300, 400}
    assert of(tmp_path, waiting=0).kept(steps) == set()
    evaluations.weights(400).mkdir(parents=True)
    evaluations.evaluation(300).mkdir()
    assert evaluations.kept(steps) == {200, 300}  # an evaluation that was begun is not whole
    (evaluations.evaluation(300) / REPORT).touch()
    assert evaluations.kept(steps) == {100, 200}
    assert evaluations.exported() == [400]
    (evaluations.weights(400) / "config.json").touch()
    evaluations.evaluation(400).mkdir()
    (evaluations.evaluation(400) / REPORT).touch()
    assert evaluations.exported() == []


def test_scores_are_taken_once(tmp_path: Path) -> None:
    evaluations = of(tmp_path)
    assert list(evaluations.new_scores()) == [] and not evaluations.has_new()
    evaluations.directory.evaluations.mkdir()
    for step in (200, 100):
        evaluations.add(score(step))
    assert evaluations.has_new() and evaluations.scored() == {100, 200}
    taken = evaluations.new_scores()
    assert next(taken).step == 200
    taken.close()  # whoever took it was stopped before it was written anywhere: it comes again
    assert [record.step for record in of(tmp_path).new_scores()] == [200, 100]
    assert not evaluations.has_new()
    evaluations.add(score(300))
    assert list(evaluations.new_scores()) == [score(300)]


@pytest.mark.parametrize("line", ["{}", "nonsense", '{"step": -1}', '{"step": 1e999}', "[" * 10_000, "\x00"])
def test_a_damaged_line_is_named_and_passed_over(tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    evaluations = of(tmp_path)
    evaluations.directory.evaluations.mkdir()
    evaluations.add(score(100))
    with (evaluations.directory.evaluations / "scores.jsonl").open("a") as file:
        file.write(line + "\n")
    evaluations.add(score(200))
    assert [record.step for record in evaluations.new_scores()] == [100, 200]
    assert "line 2 of" in capsys.readouterr().err
    assert list(evaluations.new_scores()) == []


def test_a_line_that_is_not_whole_is_none_yet(tmp_path: Path) -> None:
    evaluations = of(tmp_path)
    evaluations.directory.evaluations.mkdir()
    file = evaluations.directory.evaluations / "scores.jsonl"
    file.write_text(score(100).model_dump_json())
    assert list(evaluations.new_scores()) == []
    file.write_text(score(100).model_dump_json() + "\n")
    assert len(list(evaluations.new_scores())) == 1


def test_what_stands_in_its_place_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluations = of(tmp_path)
    (evaluations.directory.evaluations / "scores.jsonl").mkdir(parents=True)
    assert list(evaluations.new_scores()) == []
    assert "cannot be taken over" in capsys.readouterr().err


def test_the_score_of_a_report(tmp_path: Path) -> None:
    row = {
        "name": "ifbench",
        "score": {"value": 50.0, "low": 40.0, "high": 60.0},
        "none": 1,
        "truncated": 2,
        "failed": 3,
    }
    (tmp_path / REPORT).write_text(json.dumps({"rows": [row]}))
    record = score_record(100, 204_800, tmp_path, 2.51)
    assert (record.scores, record.intervals) == ({"ifbench": 50.0}, {"ifbench": (40.0, 60.0)})
    assert record.without_answer == {"ifbench": 6} and record.seconds == 2.5
    for text in ("{}", "[]", '{"rows": [{}]}', "nothing", json.dumps({"rows": [{**row, "none": "x"}]})):
        (tmp_path / REPORT).write_text(text)
        with pytest.raises(ValueError):
            score_record(100, 0, tmp_path, 0.0)
