"""What an evaluation would take: questions, tokens and hours at a stated speed, without asking anything."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_apriel.evaluate.benchmarks import Benchmark
from megatron_apriel.evaluate.running import Evaluation

TOKENS_PER_SECOND = 2000
"""Of answers, all servers together. # assumption: one H200 (4.8 TB/s) reads 30 GB of weights and, of 32 answers at a
time of some 4,000 tokens each, 25 GB of keys and values for every step, which allows about 2,800 at most."""
ANSWER_TOKENS = 8192
"""Of an answer with its reasoning, where no limit is set. # assumption"""
REPLIES = 20
"""Of the model in a conversation with a simulated user. # assumption"""
_LETTERS_A_TOKEN = 4  # of English text


@dataclass(frozen=True)
class Planned:
    """What is left to ask of a benchmark, or of all of them.

    Attributes:
        title: of it.
        chosen, items: how many are asked of how many.
        runs: how often.
        answered: of items times runs, already.
        questions: to be asked.
        question_tokens, pictures: in them.
        answer_tokens: of the answers.
    """

    title: str
    chosen: int
    items: int
    runs: int
    answered: int
    questions: int
    question_tokens: int
    pictures: int
    answer_tokens: int

    def spelled(self, tokens_per_second: float) -> str:
        """A line for people."""
        known = f" ({self.answered:,} are answered)" if self.answered else ""
        often = f", {self.runs} times" if self.runs else ""
        return (
            f"{self.title}: {self.chosen:,} of {self.items:,} items{often}; {self.questions:,} questions{known}, about "
            f"{self.question_tokens:,} tokens and {self.pictures:,} pictures; {self.answer_tokens:,} tokens of answers,"
            f" {self.answer_tokens / tokens_per_second / 3600:,.2f} hours"
        )


def plan(evaluation: Evaluation, benchmarks: Sequence[Benchmark], again: bool) -> list[Planned]:
    """What is left of each; items that are not loaded yet are loaded into a folder that is gone afterwards.

    Raises:
        DataError: data are not to be had.
    """
    with tempfile.TemporaryDirectory() as folder:
        elsewhere = replace(evaluation, folder=Path(folder))
        return [_planned(evaluation, elsewhere, benchmark, again) for benchmark in benchmarks]


def in_sum(planned: Sequence[Planned]) -> Planned:
    """All of them together."""
    names = ("chosen", "items", "answered", "questions", "question_tokens", "pictures", "answer_tokens")
    return Planned("in all", runs=0, **{name: sum(getattr(one, name) for one in planned) for name in names})


def _planned(evaluation: Evaluation, elsewhere: Evaluation, benchmark: Benchmark, again: bool) -> Planned:
    if not evaluation.is_loaded(benchmark):
        elsewhere.load(benchmark)
    items, source = (evaluation if evaluation.is_loaded(benchmark) else elsewhere).items(benchmark)
    runs = evaluation.runs_of(benchmark)
    left = [item for run in range(1, runs + 1) for item in evaluation.unanswered(benchmark, run, items, again)]
    return Planned(
        benchmark.title, len(items), source.items, runs, len(items) * runs - len(left), len(left),
        sum(len(item.text) for item in left) // _LETTERS_A_TOKEN, sum(len(item.pictures) for item in left),
        len(left) * (evaluation.settings.max_tokens or ANSWER_TOKENS) * (REPLIES if benchmark.conversed else 1),
    )  # fmt: skip
