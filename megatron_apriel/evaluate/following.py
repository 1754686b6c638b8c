"""Follows a run: evaluates its checkpoints as they come, one at a time, and hands the scores to the run's figures.

A process of its own, on another GPU, another node, or later. It only reads what the run writes, so that nothing here
can stop or slow it. For each checkpoint it runs two commands that a person could run: one that makes a Hugging Face
directory of it, and one that evaluates that. Both resume where they were stopped, and so does the following.

The newest checkpoint comes first: if evaluating takes longer than training, the oldest go unevaluated, which are those
that the run removes first. What fails is named and tried again after the next that works.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path

from megatron_apriel.config.load import load_stage
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.errors import ConfigError, ExitCode, OutputError, printable
from megatron_apriel.evaluate.benchmarks import check_other_models, chosen_benchmarks
from megatron_apriel.evaluate.follow_commands import Commands
from megatron_apriel.formats.kinds import Kind, recognise
from megatron_apriel.formats.run_directory import RunDirectory, checkpoint_path, checkpoints_in
from megatron_apriel.formats.run_evaluations import REPORT, RunEvaluations, score_record
from megatron_apriel.locks import HeldError, lock_directory, take_lock
from megatron_apriel.terminal import note, say

ATTEMPTS = 3
"""At one checkpoint, by one process."""


def follow(runs: Sequence[Path], commands: Commands, *, once: bool, seconds: float) -> ExitCode:
    """Evaluate the checkpoints of runs until all runs are complete; of several, one after another in turn.

    Args:
        runs: their output directories.
        commands: what is done.
        once: end when nothing is left to do, instead of waiting for more.
        seconds: between two looks.

    Raises:
        ConfigError: one of them is no run, evaluates nothing, or is followed already.
    """
    with ExitStack() as stack:
        followers = [stack.enter_context(Follower(RunDirectory(run), commands, once)) for run in dict.fromkeys(runs)]
        while True:
            worked = [follower.turn() for follower in followers]
            if not any(worked):
                if once or all(follower.is_done for follower in followers):
                    return ExitCode.FAILED if any(follower.failed for follower in followers) else ExitCode.OK
                time.sleep(seconds)


class Follower(AbstractContextManager["Follower"]):
    """One run that is followed.

    Attributes:
        failed: steps whose evaluation failed, with the number of times.
        is_done: whether the run is complete, and nothing is left to try.
    """

    def __init__(self, run: RunDirectory, commands: Commands, once: bool) -> None:
        self.run, self.commands, self.once = run, commands, once
        self.failed: dict[int, int] = {}
        self.is_done = False
        self._rest: set[int] = set()
        """Of those that failed, the ones that wait until another works."""
        self._said: set[str] = set()
        self._lock, self._held = ExitStack(), False

    def __exit__(self, *exception: object) -> None:
        self._lock.close()

    def turn(self) -> bool:
        """Evaluate one checkpoint; False if there is none to evaluate now."""
        config = self._config()
        if config is None:
            return False
        evaluations = RunEvaluations.of(config)
        if evaluations is None:  # taken out of the stage meanwhile
            self.is_done = True
            return False
        self._hold(evaluations)
        self._add_scores(evaluations, config)
        checkpoints = checkpoints_in(self.run.checkpoints)
        complete = config.steps in checkpoints or self._final() is not None
        waiting = self._waiting(evaluations, checkpoints)
        self._name_missed(evaluations, checkpoints, waiting)
        if complete and not self.once and not waiting - self._rest:
            self._rest.clear()
        open_steps = {step for step in waiting - self._rest if self.failed.get(step, 0) < ATTEMPTS}
        if not open_steps:
            self._hand_over(evaluations, config)
            self.is_done = complete
            return False
        step = max(open_steps)
        if self._evaluate(step, evaluations, config):
            self.failed.pop(step, None)
            self._rest.clear()
        else:
            self.failed[step] = self.failed.get(step, 0) + 1
            self._rest.add(step)
        self._hand_over(evaluations, config)
        return True

    def _config(self) -> StageConfig | None:
        """The run's configuration, as it is now; None before it has begun."""
        if self.run.resolved_config.is_file():
            # It may have been moved since it began.
            config = load_stage(self.run.resolved_config).model_copy(update={"output": self.run.path})
            if not self._held:
                self._check(config)
            return config
        if self.once:
            raise ConfigError(
                f"{printable(self.run.path)} is no run: it has no {self.run.resolved_config.name}.",
                fix="Give the output directory of a run that has begun.",
            )
        self._say_once(f"{self.run.path} has not begun; waiting for it")
        return None

    def _check(self, config: StageConfig) -> None:
        """Raise ConfigError if no evaluation of this run could ever work."""
        if config.evaluate is None:
            raise ConfigError(
                f"{printable(self.run.path)} evaluates nothing: its stage has no section evaluate.",
                fix="Add one to the stage's file; or evaluate a checkpoint alone: tools/evaluate.py OUT --model DIR.",
            )
        missing = {option: "" for option in ("--judge", "--user-model") if option not in self.commands.options}
        check_other_models(chosen_benchmarks(",".join(config.evaluate.benchmarks)), missing)

    def _hold(self, evaluations: RunEvaluations) -> None:
        """Be the only one that evaluates this run. Raises ConfigError if another process does."""
        if self._held:
            return
        folder = evaluations.directory.evaluations
        try:
            folder.mkdir(exist_ok=True)
            self._lock.enter_context(lock_directory(folder))
        except HeldError as error:
            raise ConfigError(f"{self.run.path} is followed by another process: {error}.") from None
        except OSError as error:
            raise OutputError(f"{folder} cannot be used: {error}.") from None
        self._held = True

    def _waiting(self, evaluations: RunEvaluations, checkpoints: Collection[int]) -> set[int]:
        """Steps that can be evaluated now, and were not."""
        found = {*evaluations.waiting(checkpoints), *evaluations.exported()}
        found |= {evaluations.steps} if self._final() is not None else set()
        return {step for step in found | {0} if evaluations.is_due(step) and not evaluations.is_whole(step)}

    def _final(self) -> Path | None:
        """The run's result, where it is there and of its last training."""
        return self.run.final if self.run.final.is_dir() and not self.run.outdated.exists() else None

    def _name_missed(self, evaluations: RunEvaluations, checkpoints: Collection[int], waiting: set[int]) -> None:
        for step in range(evaluations.every, max(checkpoints, default=0), evaluations.every):
            if step not in checkpoints and step not in waiting and not evaluations.is_whole(step):
                self._say_once(f"step {step} of {self.run.path} was not evaluated, and its checkpoint is gone")

    def _evaluate(self, step: int, evaluations: RunEvaluations, config: StageConfig) -> bool:
        """Evaluate the model after a step; whether that worked."""
        name, begun = f"{config.stage}, step {step}", time.monotonic()
        out = evaluations.evaluation(step)
        model = self._model(step, evaluations, config)
        code: int = ExitCode.FAILED
        if model is not None:
            whole = [path for path in checkpoints_in(out.parent).values() if (path / REPORT).exists()]
            code = self.commands.evaluate(config, model, name, out, whole[-1] if whole else None)
        if not evaluations.is_whole(step):
            when = "it is tried again after the next that works" if self.failed.get(step, 0) + 1 < ATTEMPTS else (
                f"it failed {ATTEMPTS} times; the same command tries it again"
            )  # fmt: skip
            note(f"{name} was not evaluated (exit code {code}): {when}")
            return False
        self._add(step, evaluations, config, time.monotonic() - begun)
        return True

    def _model(self, step: int, evaluations: RunEvaluations, config: StageConfig) -> Path | None:
        """A Hugging Face directory of the model after a step; None if there is none and none could be made."""
        weights = evaluations.weights(step)
        if weights.is_dir():
            return weights
        given = config.init_from if step == 0 else checkpoint_path(self.run.checkpoints, step)
        if step == evaluations.steps and (final := self._final()) is not None:
            return final
        if step == 0 and given.is_dir() and recognise(given) is Kind.HF:
            return given
        for old in evaluations.exported()[: -max(evaluations.section.waiting, 1)]:
            note(f"{evaluations.weights(old)} is removed, to make room; its evaluation failed")
            shutil.rmtree(evaluations.weights(old), ignore_errors=True)
        weights.parent.mkdir(exist_ok=True)
        code = self.commands.export(given, weights)
        return weights if code == ExitCode.OK and weights.is_dir() else None

    def _add_scores(self, evaluations: RunEvaluations, config: StageConfig) -> None:
        """Add the scores of evaluations that are whole, and whose process was stopped before it did."""
        known = evaluations.scored(self._say_once)
        for step in checkpoints_in(evaluations.directory.evaluations):
            if step not in known and evaluations.is_whole(step):
                self._add(step, evaluations, config, 0.0)

    def _add(self, step: int, evaluations: RunEvaluations, config: StageConfig, seconds: float) -> None:
        try:
            record = score_record(step, step * config.batch_tokens, evaluations.evaluation(step), seconds)
        except (OSError, ValueError) as error:
            self._say_once(f"the report of step {step} cannot be read: {error}")
            return
        evaluations.add(record)
        shutil.rmtree(evaluations.weights(step), ignore_errors=True)

    def _hand_over(self, evaluations: RunEvaluations, config: StageConfig) -> None:
        """Put new scores into the run's figures, where no run is there to do it itself."""
        if not evaluations.has_new() or self._is_running():
            return
        figures = self.commands.figures(config)  # opening takes seconds, for which the lock is not held
        try:
            if not self._is_running(figures.take_scores):
                say(f"the scores are in {self.run.metrics}")
        finally:
            figures.close()

    def _is_running(self, otherwise: Callable[[], None] = lambda: None) -> bool:
        """Whether the run is; if not, something is done while it cannot begin."""
        try:
            with take_lock(self.run.lock) as lock:
                if lock.problem is not None and not self._has_ended():
                    return True
                otherwise()
        except HeldError:
            return True
        except OSError as error:
            self._say_once(f"{self.run.lock} cannot be locked, so scores stay in {self.run.evaluations}: {error}")
            return True
        return False

    def _has_ended(self) -> bool:
        """Whether the last of the run's records is that of its end; for file systems without locks."""
        with suppress(OSError, ValueError), self.run.metrics.open("rb") as file:
            file.seek(max(self.run.metrics.stat().st_size - 65536, 0))
            *_, last = file.read().splitlines()
            return json.loads(last).get("kind") in ("end", "evaluation")
        return False

    def _say_once(self, words: str) -> None:
        if words not in self._said:
            self._said.add(words)
            note(words)
