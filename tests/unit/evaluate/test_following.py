"""A run that is followed: which of its checkpoints are evaluated, in which order, and what happens when that fails."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_apriel.config.load import to_yaml
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.errors import ConfigError, DataError, ExitCode
from megatron_apriel.evaluate.follow_commands import Commands
from megatron_apriel.evaluate.following import Follower, follow
from megatron_apriel.formats.run_directory import RunDirectory, checkpoint_path
from megatron_apriel.formats.run_evaluations import RunEvaluations
from megatron_apriel.locks import lock_directory, take_lock
from megatron_apriel.testing.stages import small_stage
from tests.unit.evaluate.conftest import started, wait_until
from tools import evaluate

EXPORTING = """
import pathlib, sys
source, destination = map(pathlib.Path, sys.argv[1:3])
if (source / "damaged").exists():
    sys.exit(1)
destination.mkdir()
(destination / "from").write_text(str(source))
"""
EVALUATING = """
import json, os, pathlib, sys, time
out, root = pathlib.Path(sys.argv[1]), pathlib.Path(__file__).parent
name = sys.argv[sys.argv.index("--name") + 1]
with (root / "asked").open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + chr(10))
while (root / "wait").exists():
    time.sleep(0.02)
if (root / "broken once").exists():
    (root / "broken once").unlink()
    sys.exit(1)
if (root / "broken").exists():
    sys.exit(1)
out.mkdir(exist_ok=True)
score = {"value": float(name.split()[-1]) / 10, "low": 0.0, "high": 100.0}
row = {"name": "ifbench", "score": score, "none": 0, "truncated": 1, "failed": 0}
(out / "report.json").write_text(json.dumps({"rows": [row]}))
"""


class Taken:
    """Figures that keep what they take over."""

    def __init__(self, config: StageConfig) -> None:
        self.evaluations, self.scores = RunEvaluations.of(config), []  # type: ignore[var-annotated]
        made.append(self)

    def take_scores(self) -> None:
        assert self.evaluations is not None
        self.scores += [(record.step, record.tokens, record.scores["ifbench"])
                        for record in self.evaluations.new_scores()]  # fmt: skip

    def close(self) -> None:
        pass


made: list[Taken] = []


class Followed:
    """A run that has begun: forty steps, saved every ten, no model in it."""

    def __init__(self, root: Path, **section: Any) -> None:
        self.root, self.run = root, RunDirectory(root / "run")
        (root / "export.py").write_text(EXPORTING)
        (root / "evaluate.py").write_text(EVALUATING)
        (root / "model").mkdir()
        (root / "model" / "config.json").write_text("{}")
        given = {"benchmarks": ["ifbench"], "limit": 8, "max_tokens": 64, **section}
        self.config = small_stage(
            128, 4, tokens=40 * 512, output=str(self.run.path), init_from=str(root / "model"), checkpoint={"every": 10},
            evaluate=given,
        )  # fmt: skip
        self.run.checkpoints.mkdir(parents=True)
        self.run.resolved_config.write_text(to_yaml(self.config))
        self.commands = Commands(root / "export.py", root / "evaluate.py", ["--engine", "vllm"], Taken)
        made.clear()

    def save(self, *steps: int) -> None:
        for step in steps:
            checkpoint_path(self.run.checkpoints, step).mkdir()

    def follow(self, once: bool = True) -> ExitCode:
        return follow([self.run.path], self.commands, once=once, seconds=0.05)

    @property
    def asked(self) -> list[list[str]]:
        file = self.root / "asked"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def steps(self) -> list[int]:
        """That were evaluated, in order; attempts that failed included."""
        return [int(words[words.index("--name") + 1].split()[-1]) for words in self.asked]

    @property
    def scores(self) -> list[tuple[int, int, float]]:
        return [score for one in made for score in one.scores]


@pytest.fixture
def followed(tmp_path: Path) -> Callable[..., Followed]:
    return lambda **section: Followed(tmp_path, **section)


def test_the_newest_comes_first_and_every_score_has_its_step(followed: Callable[..., Followed]) -> None:
    one = followed()
    one.save(10, 20, 30, 33)
    assert one.follow() == ExitCode.OK
    assert one.steps == [30, 20, 10, 0]
    assert sorted(one.scores) == [(step, step * one.config.batch_tokens, step / 10) for step in (0, 10, 20, 30)]
    assert not list((one.run.evaluations / "weights").iterdir())
    first = one.asked[0]
    assert first[:3] == [str(one.run.evaluations / "step_00000030"), "--model",
                         str(one.run.evaluations / "weights" / "step_00000030")]  # fmt: skip
    assert first[-2:] == ["--engine", "vllm"]
    assert " ".join(first).count("--benchmarks ifbench") == " ".join(first).count("--limit 8") == 1
    assert "--items-from" not in first  # the others have the same questions
    assert one.asked[1][one.asked[1].index("--items-from") + 1] == str(one.run.evaluations / "step_00000030")
    assert one.asked[-1][2] == str(one.root / "model")  # in Hugging Face's form already
    assert one.follow() == ExitCode.OK and len(one.asked) == 4  # nothing is evaluated twice


@pytest.mark.parametrize("outdated", [False, True])
def test_the_result_is_taken_as_it_is(followed: Callable[..., Followed], outdated: bool) -> None:
    one = followed(start=False)
    one.save(40)
    one.run.final.mkdir()
    if outdated:  # of an earlier training
        one.run.outdated.touch()
    assert one.follow(once=False) == ExitCode.OK  # the run is complete
    taken = one.run.evaluations / "weights" / "step_00000040" if outdated else one.run.final
    assert one.steps == [40] and one.asked[0][2] == str(taken)


def test_a_run_that_goes_on_is_waited_for(followed: Callable[..., Followed]) -> None:
    one = followed()
    config = one.run.resolved_config.read_text()
    one.run.resolved_config.unlink()

    def train() -> None:
        time.sleep(0.2)
        one.run.resolved_config.write_text(config)
        for step in (10, 20, 30, 40):
            one.save(step)
            while step not in one.steps:
                time.sleep(0.01)

    trainer = threading.Thread(target=train)
    trainer.start()
    assert one.follow(once=False) == ExitCode.OK
    trainer.join()
    assert set(one.steps) == {0, 10, 20, 30, 40}
    assert [score[0] for score in one.scores][-1] in (0, 40)


def test_what_fails_is_tried_again_after_the_next_that_works(
    followed: Callable[..., Followed], capsys: pytest.CaptureFixture[str]
) -> None:
    one = followed(start=False)
    one.save(10)
    (one.root / "broken").touch()
    assert one.follow() == ExitCode.FAILED
    assert one.steps == [10] and one.scores == []
    assert "step 10 was not evaluated (exit code 1): it is tried again" in capsys.readouterr().err
    assert (one.run.evaluations / "weights" / "step_00000010").is_dir()  # exported once
    (one.root / "broken").unlink()
    one.save(20)
    checkpoint_path(one.run.checkpoints, 10).rmdir()  # which the run may do now
    assert one.follow() == ExitCode.OK
    assert one.steps == [10, 20, 10] and {score[0] for score in one.scores} == {10, 20}


def test_what_failed_waits_until_another_works(followed: Callable[..., Followed]) -> None:
    one = followed(start=False)
    one.save(10, 20)
    (one.root / "broken once").touch()
    assert one.follow() == ExitCode.OK
    assert one.steps == [20, 10, 20]


def test_a_server_that_never_works_is_given_up(followed: Callable[..., Followed],
                                               capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    one = followed(start=False)
    (one.root / "broken").touch()
    one.save(40)
    assert one.follow(once=False) == ExitCode.FAILED
    assert one.steps == [40] * 3
    assert "it failed 3 times; the same command tries it again" in capsys.readouterr().err


def test_a_damaged_checkpoint_ends_nothing(followed: Callable[..., Followed]) -> None:
    one = followed()
    one.save(10, 20)
    (checkpoint_path(one.run.checkpoints, 20) / "damaged").touch()
    assert one.follow() == ExitCode.FAILED
    assert one.steps == [10, 0]


def test_weights_of_failures_do_not_fill_the_disk(followed: Callable[..., Followed]) -> None:
    one = followed(start=False, waiting=1)
    (one.root / "broken").touch()
    for step in (10, 20, 30):
        one.save(step)
        assert one.follow() == ExitCode.FAILED
        assert len(list((one.run.evaluations / "weights").iterdir())) <= 2


def test_what_was_missed_is_named(followed: Callable[..., Followed], capsys: pytest.CaptureFixture[str]) -> None:
    one = followed()
    one.save(20, 30)
    assert one.follow() == ExitCode.OK
    assert capsys.readouterr().err.count("step 10 of ") == 1


def test_scores_wait_for_the_run_that_writes_its_figures(followed: Callable[..., Followed]) -> None:
    one = followed(start=False)
    one.save(10)
    with take_lock(one.run.lock):
        assert one.follow() == ExitCode.OK
    assert one.steps == [10] and one.scores == []
    assert one.follow() == ExitCode.OK
    assert one.steps == [10] and [score[0] for score in one.scores] == [10]


def test_damaged_scores_are_added_again(followed: Callable[..., Followed], capsys: pytest.CaptureFixture[str]) -> None:
    one = followed(start=False)
    one.save(10, 20)
    assert one.follow() == ExitCode.OK
    file = one.run.evaluations / "scores.jsonl"
    first, second = file.read_text().splitlines(keepends=True)
    file.write_text(first.replace("[0.0,100.0]", "[0.0]") + second[:-30])  # step 20 damaged, step 10 cut off
    assert one.follow() == ExitCode.OK
    assert one.steps == [20, 10] and {score[0] for score in one.scores} == {10, 20}
    assert RunEvaluations.of(one.config).scored() == {10, 20}  # type: ignore[union-attr]
    assert capsys.readouterr().err.count("1 of 1 line of") == 1  # at all its looks together
    file.unlink()
    file.mkdir()
    with pytest.raises(DataError, match=r"scores\.jsonl cannot be read"):
        one.follow()


def test_two_do_not_evaluate_one_run(followed: Callable[..., Followed]) -> None:
    one = followed()
    one.save(10)
    one.run.evaluations.mkdir()
    with lock_directory(one.run.evaluations), pytest.raises(ConfigError, match="is followed by another process"):
        one.follow()
    assert not one.asked


def test_runs_are_evaluated_in_turn(tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        runs.append(Followed(tmp_path / name, start=False))
        runs[-1].save(10, 20)
    both = [one.run.path for one in runs]
    assert follow(both, runs[0].commands, once=True, seconds=1.0) == ExitCode.OK
    assert [words[0].split("/")[-4] for words in runs[0].asked] == ["a", "b", "a", "b"]


def test_refused(followed: Callable[..., Followed], tmp_path: Path) -> None:
    one = followed()
    with pytest.raises(ConfigError, match=r"is no run: it has no config\.resolved\.yaml"):
        follow([tmp_path / "absent"], one.commands, once=True, seconds=1.0)
    one.run.resolved_config.write_text(to_yaml(one.config.model_copy(update={"evaluate": None})))
    with pytest.raises(ConfigError, match="its stage has no section evaluate"):
        one.follow()
    for names, said in (
        (["no_such"], "there is no benchmark 'no_such'"),
        (["aa_lcr", "charxiv_d"], "aa_lcr, charxiv_d are judged by a model"),
        (["tau2_telecom"], "tau2_telecom is held with a model that plays the user"),
    ):
        section = one.config.evaluate.model_copy(update={"benchmarks": names}) if one.config.evaluate else None
        one.run.resolved_config.write_text(to_yaml(one.config.model_copy(update={"evaluate": section})))
        with pytest.raises(ConfigError, match=said):
            one.follow()


def test_a_configuration_that_cannot_be_read_is_said_at_once(followed: Callable[..., Followed]) -> None:
    one = followed(start=False)
    one.run.resolved_config.write_text("stage: [")
    with Follower(one.run, one.commands, once=False) as follower, pytest.raises(ConfigError, match="resolved"):
        follower.turn()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["OUT", "--follow", "run"], "OUT cannot be given with --follow"),
        (["--follow", "run", "--benchmarks", "x", "--limit", "3"], "--benchmarks, --limit cannot be given"),
        (["out", "--benchmarks", "ifbench"], "OUT, --model and --benchmarks are needed; or --follow RUN"),
    ],
)
def test_a_command_line_that_cannot_be(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        evaluate.main(words)
    assert ended.value.code == ExitCode.USAGE and said in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [("TERM", 143), ("INT", 130), ("USR1", 75)])
def test_a_signal_ends_what_it_started(followed: Callable[..., Followed], number: str, code: int) -> None:
    one = followed(start=False)
    one.save(10)
    (one.root / "wait").touch()
    program = (
        "import sys; from pathlib import Path; from tools import evaluate as tool;"
        "from megatron_apriel.errors import run_command; from megatron_apriel.evaluate import follow_commands as made;"
        f"root = Path({str(one.root)!r});"
        "whole = made.Commands; made.Commands = lambda a, b, options, figures:"
        " whole(root / 'export.py', root / 'evaluate.py', options, figures);"
        f"sys.exit(run_command(lambda: tool.main(['--follow', {str(one.run.path)!r}])))"
    )
    with started(["-c", program], start_new_session=True, stderr=subprocess.PIPE) as process:
        wait_until(lambda: one.asked)
        process.send_signal(getattr(signal, f"SIG{number}"))
        said = process.communicate(timeout=60)[1]
    assert process.returncode == code, said
    assert "Traceback" not in said and "the same command goes on" in said
    assert not list(one.run.evaluations.glob("step_*/report.json"))
    (one.root / "wait").unlink()
    assert one.follow() == ExitCode.OK and one.steps == [10, 10]
