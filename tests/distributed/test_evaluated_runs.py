"""A run whose checkpoints are evaluated beside it: what stays on disk for that, and where the scores appear."""

from __future__ import annotations

import json
import os
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_apriel.config.load import load_stage
from megatron_apriel.errors import ExitCode
from megatron_apriel.formats.run_directory import RunDirectory, checkpoints_in
from megatron_apriel.formats.run_evaluations import RunEvaluations, ScoreRecord
from megatron_apriel.locks import HeldError, take_lock
from megatron_apriel.train.metrics import Metrics, WeightsAndBiases
from tests.distributed.stage_runs import before_step, losses, records, run, stage_file, write_inputs
from tools import evaluate

KEEP = "checkpoint={every: 1, keep: last 1, export: false}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("evaluated"), sidecars=True)


def section(**settings: Any) -> str:
    return f"evaluate={json.dumps({'benchmarks': ['mmlu_pro'], **settings})}"


def score(step: int, value: float = 25.0) -> ScoreRecord:
    return ScoreRecord(step=step, tokens=512 * step, scores={"mmlu_pro": value}, intervals={"mmlu_pro": (0.0, 50.0)},
                       without_answer={"mmlu_pro": 2}, path="somewhere", seconds=3.0)  # fmt: skip


def evaluations(root: Path, name: str, *overrides: str) -> RunEvaluations:
    found = RunEvaluations.of(load_stage(stage_file(root, name), overrides))
    assert found is not None
    return found


def test_checkpoints_stay_until_they_are_exported(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = (KEEP, section(every=2))
    assert run(root, "waited", *own) == [ExitCode.OK]
    folder = RunDirectory(root / "waited").checkpoints
    assert set(checkpoints_in(folder)) == {2, 4, 6}
    assert run(root, "bounded", KEEP, section(every=2, waiting=1)) == [ExitCode.OK]
    assert set(checkpoints_in(RunDirectory(root / "bounded").checkpoints)) == {4, 6}
    there = evaluations(root, "exported", *own)
    before_step(monkeypatch, 4, lambda rank: there.weights(2).mkdir(parents=True))
    assert run(root, "exported", *own) == [ExitCode.OK]
    assert set(checkpoints_in(RunDirectory(root / "exported").checkpoints)) == {4, 6}
    assert losses(root, "exported") == losses(root, "waited")


def test_scores_come_into_the_figures_of_a_run_that_runs(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    own = (section(), "logging={tensorboard: true}", "tokens=2048")
    there = evaluations(root, "running", *own)

    def add(rank: int) -> None:
        there.directory.evaluations.mkdir()
        there.add(score(1))
        (there.directory.evaluations / "scores.jsonl").open("a").write("nonsense\n")
        with pytest.raises(HeldError):  # nobody else writes figures now
            take_lock(there.directory.lock)

    before_step(monkeypatch, 2, add)
    assert run(root, "running", *own) == [ExitCode.OK]
    (record,) = records(root, "running", "evaluation")
    assert (record["step"], record["steps"], record["tokens"], record["scores"]) == (1, 4, 512, {"mmlu_pro": 25.0})
    written = (root / "running" / "metrics.jsonl").read_text().splitlines()
    kinds = [(line["kind"], line["step"]) for line in map(json.loads, written)]
    assert kinds[kinds.index(("evaluation", 1)) - 1] == ("step", 3)
    said = capfd.readouterr()
    assert "step 1/4 | evaluated after 512 tokens: mmlu_pro 25.00 (0.00 to 50.00)" in said.out
    assert f"evaluated by python tools/evaluate.py --follow {root / 'running'}" in said.out
    assert "1 of 2 lines of" in said.err and "is no score, and passed over: 2" in said.err
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = events.EventAccumulator(str(root / "running" / "tensorboard"))
    accumulator.Reload()
    (scalar,) = accumulator.Scalars("evaluation/score/mmlu_pro")
    assert (scalar.step, scalar.value) == (1, 25.0)
    assert run(root, "running", *own) == [ExitCode.OK]  # complete already
    assert len(records(root, "running", "evaluation")) == 1


def test_a_late_score_belongs_to_its_step_at_wandb_too(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[tuple[dict[str, float], int]] = []
    axes: list[tuple[str, str]] = []
    fake = SimpleNamespace(log=lambda scalars, step: logged.append((scalars, step)), step=7,
                           define_metric=lambda name, step_metric: axes.append((name, step_metric)))  # fmt: skip
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **settings: fake))
    sink = WeightsAndBiases(load_stage(stage_file(root, "late"), [section(), "logging.wandb=offline"]))
    sink.write({"kind": "evaluation", "steps": 9, **score(2).model_dump()})
    assert axes == [("evaluation/*", "evaluation/step")]
    ((scalars, step),) = logged
    assert step == 7 and scalars["evaluation/step"] == 2 and scalars["evaluation/score/mmlu_pro"] == 25.0
    assert scalars["evaluation/tokens"] == 1024 and scalars["evaluation/without_answer/mmlu_pro"] == 2.0


def test_a_run_that_starts_meets_no_lock_that_is_held_for_a_moment(root: Path) -> None:
    own = (section(), "tokens=512")
    assert run(root, "moment", *own) == [ExitCode.OK]
    there = evaluations(root, "moment", *own)
    there.directory.evaluations.mkdir()
    there.add(score(1, 12.5))
    config = load_stage(stage_file(root, "moment"), own)
    with closing(Metrics(config, 0)) as metrics, take_lock(there.directory.lock):
        metrics.take_scores()
    assert [record["scores"]["mmlu_pro"] for record in records(root, "moment", "evaluation")] == [12.5]


def test_a_run_is_evaluated_by_the_command(
    root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Training, exporting, asking by transformers, and the scores: all of it as a user has it."""
    monkeypatch.setenv("PYTHONPATH", str(Path(evaluate.__file__).parents[1]), prepend=os.pathsep)
    data = root / "data" / "mmlu_pro"
    data.mkdir(parents=True)
    rows = [
        {"question_id": number, "question": f"{number}?", "options": ["a", "b"], "answer": "A", "category": "x"}
        for number in range(3)
    ]
    (data / "test.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    own = (section(data=str(root / "data"), max_tokens=2, temperature=0.0), "tokens=512", "checkpoint={export: false}")
    assert run(root, "whole", *own) == [ExitCode.OK]
    assert evaluate.main(["--follow", str(root / "whole"), "--device", "cpu"]) == ExitCode.OK
    found = {record["step"]: record for record in records(root, "whole", "evaluation")}
    assert sorted(found) == [0, 1] and found[1]["tokens"] == 512
    assert all(record["without_answer"] == {"mmlu_pro": 3} for record in found.values())  # cut off, or no letter
    report = json.loads((root / "whole" / "evaluations" / "step_00000001" / "report.json").read_text())
    assert report["settings"]["model"] == "trial, step 1" and report["rows"][0]["asked"] == 3
    assert not list((root / "whole" / "evaluations" / "weights").iterdir())
    assert f"the scores are in {root / 'whole' / 'metrics.jsonl'}" in capfd.readouterr().out


def test_whoever_reads_the_settings_while_a_run_resumes_gets_the_former_ones_whole(root: Path) -> None:
    assert run(root, "read", "tokens=1024") == [ExitCode.OK]
    with (root / "read" / "config.resolved.yaml").open(encoding="utf-8") as former:
        assert run(root, "read", "tokens=1536", change=True) == [ExitCode.OK]
        assert "tokens: 1024" in former.read()
    assert "tokens: 1536" in (root / "read" / "config.resolved.yaml").read_text(encoding="utf-8")
