"""Which checkpoints are evaluated, which stay for it, and scores that reach the run's figures once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_apriel.config.output_sections import EvaluateSection
from megatron_apriel.errors import DataError, OutputError
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


def written(tmp_path: Path, *lines: str | bytes) -> RunEvaluations:
    """A run with such lines of scores."""
    evaluations = of(tmp_path)
    evaluations.directory.evaluations.mkdir()
    texts = [line.encode() if isinstance(line, str) else line for line in lines]
    (evaluations.directory.evaluations / "scores.jsonl").write_bytes(b"".join(text + b"\n" for text in texts))
    return evaluations


def changed(**fields: object) -> str:
    return json.dumps(score(150).model_dump() | fields)


@pytest.mark.parametrize(
    "line",
    [
        "", " ", "{}", "[]", "null", "nonsense", '{"step": -1}', '{"step": 1e999}', "[" * 10_000, "\x00", b"\xff\xfe",
        changed(step=True), changed(step="150"), changed(step=1.5), changed(step=-1), changed(step=2**60),
        changed(step=10**400), changed(tokens=None), changed(scores={"ifbench": "50"}), changed(scores=[50.0]),
        changed(scores={"ifbench": 101.0}), changed(scores={"ifbench": float("nan")}), changed(scores={}),
        changed(scores={"other": 50.0}), changed(intervals={}), changed(intervals={"ifbench": [60.0, 40.0]}),
        changed(intervals={"ifbench": [40.0]}), changed(without_answer={"ifbench": -1}), changed(without_answer={}),
        changed(path=None), changed(seconds=-1), changed(seconds=float("inf")), changed(more=1),
        score(150).model_dump_json()[:-1], score(150).model_dump_json() * 2, "\ufeff" + score(150).model_dump_json(),
    ],
)  # fmt: skip
def test_a_damaged_line_is_named_and_passed_over(
    tmp_path: Path, line: str | bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluations = written(tmp_path, score(100).model_dump_json(), line)
    evaluations.add(score(200))
    assert [record.step for record in evaluations.new_scores()] == [100, 200]
    assert "1 of 3 lines of" in (said := capsys.readouterr().err) and said.endswith("passed over: 2\n")
    assert list(evaluations.new_scores()) == [] and not evaluations.has_new()
    assert evaluations.scored() == {100, 200}
    assert "passed over: 2\n" in capsys.readouterr().err


def test_every_damaged_line_is_named_in_one_remark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluations = written(tmp_path, "x", "x", score(100).model_dump_json(), "x", *["y"] * 2000)
    assert [record.step for record in evaluations.new_scores()] == [100]
    assert "2,003 of 2,004 lines of" in (said := capsys.readouterr().err)
    assert said.endswith("passed over: 1-2, 4-2004\n") and said.count("\n") == 1
    assert not evaluations.has_new()


def test_a_line_that_is_not_whole_is_none_yet(tmp_path: Path) -> None:
    evaluations = of(tmp_path)
    evaluations.directory.evaluations.mkdir()
    file = evaluations.directory.evaluations / "scores.jsonl"
    file.write_text(score(100).model_dump_json())
    assert list(evaluations.new_scores()) == [] and evaluations.scored() == set()
    file.write_text(score(100).model_dump_json() + "\n")
    assert len(list(evaluations.new_scores())) == 1


@pytest.mark.parametrize("letters", [1, 20, 10**6])
def test_what_a_killed_process_left_of_a_line_spoils_no_other(
    tmp_path: Path, letters: int, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluations = written(tmp_path, score(100).model_dump_json())
    with (evaluations.directory.evaluations / "scores.jsonl").open("a") as file:
        file.write((score(200).model_dump_json() * (letters // 100 + 1))[:letters])
    evaluations.add(score(200))
    assert [record.step for record in evaluations.new_scores()] == [100, 200]
    assert capsys.readouterr().err == ""


def test_a_file_that_became_shorter_is_taken_anew(tmp_path: Path) -> None:
    evaluations = written(tmp_path, *(score(step).model_dump_json() for step in (100, 200, 300)))
    assert len(list(evaluations.new_scores())) == 3
    (evaluations.directory.evaluations / "scores.jsonl").write_text(score(100).model_dump_json() + "\n")
    assert evaluations.has_new()
    evaluations.add(score(400))
    assert [record.step for record in evaluations.new_scores()] == [100, 400] and not evaluations.has_new()


@pytest.mark.parametrize("recorded", ["", "x", "-1", "1e3", "9" * 5000, "7", "\x00"])
def test_a_damaged_count_takes_them_anew(tmp_path: Path, recorded: str) -> None:
    evaluations = written(tmp_path, score(100).model_dump_json())
    (evaluations.directory.evaluations / "recorded").write_text(recorded)
    assert [record.step for record in evaluations.new_scores()] == [100]
    assert (evaluations.directory.evaluations / "recorded").read_text() == "1\n"


def test_a_count_that_cannot_be_kept_takes_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluations = written(tmp_path, score(100).model_dump_json())
    (evaluations.directory.evaluations / "recorded").mkdir()
    for _ in range(2):  # or each look would take the same again
        assert list(evaluations.new_scores()) == []
        assert "cannot be taken over" in capsys.readouterr().err


def test_what_stands_in_its_place_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluations = of(tmp_path)
    (evaluations.directory.evaluations / "scores.jsonl").mkdir(parents=True)
    assert list(evaluations.new_scores()) == []
    assert "cannot be taken over" in capsys.readouterr().err
    for reading in (evaluations.scored, evaluations.has_new):
        with pytest.raises(DataError, match=r"scores\.jsonl cannot be read"):
            reading()
    with pytest.raises(OutputError, match=r"scores\.jsonl cannot be written"):
        evaluations.add(score(100))


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
