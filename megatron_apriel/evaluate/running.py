"""The steps of an evaluation on one directory: load, ask, score, add up; each does what is not done yet."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_apriel.errors import ConfigError, DataError, OutputError, printable
from megatron_apriel.evaluate.benchmarks import TEMPERATURE, Benchmark
from megatron_apriel.evaluate.chains import filled
from megatron_apriel.evaluate.conversing import hold_conversations
from megatron_apriel.evaluate.items import SOURCE, Item, Source, chosen_items, read_items, take_items, write_items
from megatron_apriel.evaluate.loaders import Given
from megatron_apriel.evaluate.records import Record, RecordFile, failure_of, read_answers, read_verdicts, record_of
from megatron_apriel.evaluate.results import Row, Scored, row_of, run_files, scored_items
from megatron_apriel.evaluate.scoring import Scorers, score
from megatron_apriel.generate.answer import Model
from megatron_apriel.generate.asking import Asked, ask_models
from megatron_apriel.generate.conversation import Question, Sampling
from megatron_apriel.inputs import read_input
from megatron_apriel.locks import HeldError, lock_directory
from megatron_apriel.output_files import PARTIAL, replace_file
from megatron_apriel.outputs import check_growing
from megatron_apriel.progress import progress
from megatron_apriel.terminal import note

SETTINGS = "settings.json"
_SHOWN = 3
"""Failures that are named."""


@dataclass(frozen=True)
class Settings:
    """What must stay the same while a directory is filled.

    Attributes:
        model: name of the model that is asked.
        temperature, max_tokens: of its answers; no number of tokens: as many as it allows.
        limit: items of each benchmark; None for all.
        seed: of the first run; the next have the numbers behind it.
        samples: of the visual tasks.
        pictures: folder that they are made of.
    """

    model: str
    temperature: float = TEMPERATURE
    max_tokens: int | None = None
    limit: int | None = None
    seed: int = 1
    samples: int = 1000
    pictures: str = ""

    def sampling(self, run: int) -> Sampling:
        """How the answers of a run are chosen."""
        if self.temperature == 0:
            return Sampling(greedy=True, max_tokens=self.max_tokens)
        return Sampling(temperature=self.temperature, max_tokens=self.max_tokens, seed=self.seed + run - 1)


@dataclass(frozen=True)
class Evaluation:
    """A directory of results.

    Args:
        folder: of it.
        settings: of everything in it.
        runs: of each benchmark; None for as many as each has by itself.
        data: folder with a folder for each benchmark; None for a directory that is only read.
    """

    folder: Path
    settings: Settings
    data: Path | None
    runs: int | None = None

    def check(self) -> None:
        """Raise ConfigError for other settings or somebody else's directory, OutputError for one that cannot be."""
        check_growing(self.folder)
        own = vars(self.settings)
        if (self.folder / SETTINGS).exists():
            if self._is_bare():
                return
            if earlier := {name: value for name, value in read_settings(self.folder).items() if own.get(name) != value}:
                differs = "; ".join(f"{name} was {value!r} and is {own.get(name)!r}" for name, value in earlier.items())
                raise ConfigError(
                    f"{printable(self.folder)} was begun with other settings: {differs}.",
                    "Answers made in two ways would stand in one table.",
                    "Give the same settings, or another directory.",
                )
        elif self.folder.exists() and any(not path.name.startswith(PARTIAL) for path in self.folder.iterdir()):
            raise ConfigError(
                f"{printable(self.folder)} holds something else than an evaluation.", fix="Give another directory."
            )

    @contextmanager
    def filled_alone(self) -> Iterator[None]:
        """Keep the settings, and have the directory for this process alone for the time of the block.

        Raises:
            ConfigError: as :meth:`check`, and where another process fills it.
            OutputError: it cannot be written.
        """
        self.check()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = lock_directory(self.folder)
        except HeldError as error:
            raise ConfigError(f"{printable(self.folder)} is being filled by another process: {error}.") from None
        except OSError as error:
            raise _unwritable(self.folder, error) from None
        with lock:
            if lock.problem is not None:
                note(f"warning: {self.folder} cannot be locked ({lock.problem}): see that no other process fills it")
            self.check()  # another process may have begun it meanwhile
            path = self.folder / SETTINGS
            if not path.exists() or self._is_bare():
                try:
                    replace_file(path, json.dumps(vars(self.settings), indent=1) + "\n")
                except OSError as error:
                    raise _unwritable(self.folder, error) from None
            yield

    def _is_bare(self) -> bool:
        """Whether nothing was loaded under its settings: a first try whose data were not there keeps nobody out."""
        return not any(self.folder.glob(f"*/{SOURCE}"))

    def runs_of(self, benchmark: Benchmark) -> int:
        """How often each item of a benchmark is asked."""
        return self.runs or benchmark.runs

    def items(self, benchmark: Benchmark) -> tuple[list[Item], Source]:
        """The items that are asked, of those that were loaded. Raises DataError if none were."""
        if not self.is_loaded(benchmark):
            raise DataError(
                f"{printable(self.folder)} has no items of {benchmark.title} yet.", fix="Load them: --steps load."
            )
        items, source = read_items(self.folder / benchmark.name)
        return chosen_items(items, self.settings.limit), source

    def is_loaded(self, benchmark: Benchmark) -> bool:
        """Whether its items are there."""
        return (self.folder / benchmark.name / SOURCE).exists()

    def load(self, benchmark: Benchmark) -> None:
        """Load items that are not there yet. Raises DataError if their data are not to be had."""
        folder = self.folder / benchmark.name
        if self.is_loaded(benchmark):
            return
        if self.data is None:
            raise DataError(f"{printable(self.folder)} has no items of {benchmark.title}.")
        pictures = Path(self.settings.pictures) if self.settings.pictures else None
        items, source = benchmark.load(Given(self.data, folder, pictures, self.settings.samples))
        if not items:
            raise DataError(f"{benchmark.title} has no items.")
        write_items(folder, items, source)
        for left_out in source.left_out:
            note(f"{benchmark.title}: {left_out}")

    def take_items(self, benchmark: Benchmark, other: Path) -> None:
        """Take the items that another evaluation has loaded, where it was to load the same; says where it was not."""
        earlier = {"samples": None, "pictures": None} | read_settings(other)
        for name in ("samples", "pictures"):
            if earlier[name] != getattr(self.settings, name):
                note(f"{other} has other items: --{name} was {earlier[name]!r}, not {getattr(self.settings, name)!r};"
                     f" those of {benchmark.title} are not taken, but loaded again")  # fmt: skip
                return
        take_items(self.folder / benchmark.name, other / benchmark.name)

    def unanswered(self, benchmark: Benchmark, run: int, items: Sequence[Item], again: bool = False) -> list[Item]:
        """Those of ``items`` that a run has no answer to; with ``again`` also those that failed."""
        known = read_answers(run_files(self.folder / benchmark.name, run)[0]).records
        return [item for item in filled(items, known) if _is_open(item, known.get(item.key), again)]

    def is_answered(self, benchmark: Benchmark, again: bool = False) -> bool:
        """Whether nothing is left that can be asked."""
        items, _ = self.items(benchmark)
        runs = range(1, self.runs_of(benchmark) + 1)
        return not any(item.is_ready for run in runs for item in self.unanswered(benchmark, run, items, again))

    def ask(
        self, benchmark: Benchmark, models: list[Model], *, at_once: int, again: bool = False, user: Model | None = None
    ) -> None:
        """Ask what is not answered yet.

        Args:
            benchmark: its items.
            models: that share the work.
            at_once: questions at a time for each server.
            again: ask what failed, too.
            user: the simulated user of a benchmark that is conversations.

        Raises:
            ConfigError: another model was the user of those that were held before.
        """
        items, _ = self.items(benchmark)
        for run in range(1, self.runs_of(benchmark) + 1):
            failures: list[tuple[str, str]] = []
            asked: set[str] = set()
            while waiting := [
                item
                for item in self.unanswered(benchmark, run, items, again)
                if item.is_ready and item.key not in asked
            ]:  # what builds on these answers is ready behind them
                failures += self._ask_run(benchmark, run, waiting, models, user, at_once)
                asked |= {item.key for item in waiting}
            for key, problem in failures[:_SHOWN]:
                note(f"{benchmark.title}, item {key}, failed: {problem}")
            if failures:
                note(f"{benchmark.title}: {len(failures):,} of {len(asked):,} failed; --only-failed asks them again")

    def _ask_run(
        self, benchmark: Benchmark, run: int, waiting: Sequence[Item], models: list[Model], user: Model | None,
        at_once: int,
    ) -> list[tuple[str, str]]:  # fmt: skip
        """Ask items, and keep what becomes of each at once; returns what failed, and why."""
        folder, sampling = self.folder / benchmark.name, self.settings.sampling(run)
        path = run_files(folder, run)[0]
        if user is not None:
            _check_user(path, user)
        by_key = {item.key: item for item in waiting}
        failures: list[tuple[str, str]] = []
        with (
            RecordFile(path) as file,
            progress(f"asking {benchmark.title}, run {run}", len(waiting), "item") as step,
        ):

            def keep(item: Item, rest: Record) -> None:
                file.add({"key": item.key, "question": item.question_mark, **rest})
                if problem := failure_of(rest):
                    failures.append((item.key, problem))
                step()

            def done(asked: Asked) -> None:
                keep(by_key[asked.key], record_of(asked))

            if user is not None:
                hold_conversations(waiting, models, user, sampling, keep, at_once=at_once)
            else:
                ask_models(models, _jobs(waiting, folder, sampling), done, at_once=at_once)
        return failures

    def score(self, benchmark: Benchmark, scorers: Scorers) -> None:
        """Score what has no verdict of this version yet."""
        items, _ = self.items(benchmark)
        for run in range(1, self.runs_of(benchmark) + 1):
            score(items, *run_files(self.folder / benchmark.name, run), scorers)

    def scored(self, benchmark: Benchmark) -> list[Scored]:
        """Everything that is known of a benchmark's items; of as many runs as there are, where no number is set."""
        return self._known(benchmark)[0]

    def damage(self, benchmark: Benchmark) -> list[str]:
        """Which lines of its files are passed over, because they hold no answer or verdict."""
        files = [run_files(self.folder / benchmark.name, run) for run in range(1, self._runs_there(benchmark) + 1)]
        known = [lines for answers, verdicts in files for lines in (read_answers(answers), read_verdicts(verdicts))]
        return [lines.damage for lines in known if lines.damage]

    def _known(self, benchmark: Benchmark) -> tuple[list[Scored], list[str]]:
        items, _ = self.items(benchmark)
        return scored_items(self.folder / benchmark.name, items, self._runs_there(benchmark))

    def row(self, benchmark: Benchmark) -> Row:
        """What there is of a benchmark, added up."""
        _, source = self.items(benchmark)
        runs = self._runs_there(benchmark)
        return row_of(benchmark.name, benchmark.title, benchmark.paper, source, runs, *self._known(benchmark))

    def _runs_there(self, benchmark: Benchmark) -> int:
        there = len(list((self.folder / benchmark.name).glob("answers-*.jsonl")))
        return self.runs_of(benchmark) if self.data is not None else max(there, 1)


def _unwritable(folder: Path, error: OSError) -> OutputError:
    return OutputError(f"{printable(folder)} cannot be written: {error}.", fix="Give another directory.")


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of a directory. Raises ConfigError if there are none."""
    try:
        found = json.loads(read_input(folder / SETTINGS))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{printable(folder)} is no evaluation: {SETTINGS}: {error}.",
            fix="Where that file was damaged, report.json beside it may still have its settings."
            if (folder / SETTINGS).is_file()
            else "",
        ) from None
    if not isinstance(found, dict):
        raise ConfigError(f"{printable(folder)} is no evaluation: {SETTINGS} holds no object.")
    return found


def item_settings(samples: int | None, pictures: str | None, other: Path | None) -> tuple[int, str]:
    """``samples`` and ``pictures`` of the settings: as given, else those of ``other``, whose items are to be taken.

    Raises ConfigError if ``other`` is no evaluation.
    """
    taken = Settings("") if other is None else earlier_evaluation(other).settings
    return taken.samples if samples is None else samples, taken.pictures if pictures is None else pictures


def earlier_evaluation(folder: Path) -> Evaluation:
    """A directory as it is, to compare with. Raises ConfigError if it is none."""
    found = read_settings(folder)
    known = {name: value for name, value in found.items() if name in Settings.__dataclass_fields__}
    return Evaluation(folder, replace(Settings(""), **known), None)


def _check_user(answers: Path, user: Model) -> None:
    """Raise ConfigError if conversations were held with another user."""
    known = {record["user"] for record in read_answers(answers).records.values() if "user" in record}
    if others := known - {user.name}:
        raise ConfigError(
            f"the simulated user of {printable(answers)} was {', '.join(sorted(others))}, and {user.name} is given.",
            "Conversations with two users would stand in one table.",
            "Give the same --user-model, or another directory.",
        )


def _is_open(item: Item, record: Record | None, again: bool) -> bool:
    return record is None or record["question"] != item.question_mark or (again and bool(failure_of(record)))


def _jobs(items: Sequence[Item], folder: Path, sampling: Sampling) -> Iterator[tuple[str, Callable[[], Question]]]:
    for item in items:
        yield item.key, lambda item=item: item.question(folder, sampling)  # type: ignore[misc]
