"""What an evaluation would take: questions, tokens and hours at stated speeds, without asking anything.

A server reads prompts much faster than it writes answers, since all tokens of a prompt are read together. Long prompts
still take most of the time of some benchmarks, so both are counted, each at its own speed, one after the other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from megatron_apriel.data.corpus.image_size import image_tokens, patch_grid
from megatron_apriel.evaluate.benchmarks import Benchmark
from megatron_apriel.evaluate.items import Item
from megatron_apriel.evaluate.running import Evaluation
from megatron_apriel.quantities import counted

TOKENS_PER_SECOND = 2000
"""Of answers, all servers together. # assumption: one H200 (4.8 TB/s) reads 30 GB of weights and, of 32 answers at a
time of some 4,000 tokens each, 25 GB of keys and values for every step, which allows about 2,800 at most."""
PROMPT_TOKENS_PER_SECOND = 12000
"""Of prompts, all servers together. # assumption: 15 billion parameters take 30 GFLOP a token, and one H200 does some
400 TFLOP/s of them in 16 bits, which allows about 13,000 at most."""
ANSWER_TOKENS = 8192
"""Of an answer with its reasoning, where no limit is set. # assumption: on its way it has half of them"""
REPLIES = 20
"""Of the model in a conversation with a simulated user. # assumption, not measured"""
_LETTERS_A_TOKEN = 4  # of English text
_LONGEST_SIDE, _PATCH = 1024, 16  # of Pixtral's pictures


@dataclass(frozen=True)
class Planned:
    """What is left to ask of a benchmark, or of all of them.

    Attributes:
        title: of it.
        chosen, items: how many are asked of how many.
        runs: how often.
        answered: of items times runs, already.
        questions: to be asked.
        question_tokens: in them, those of the pictures included.
        pictures: in them.
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

    def hours(self, tokens_per_second: float, prompt_tokens_per_second: float) -> float:
        """What it takes to read the questions and to write the answers."""
        return (self.answer_tokens / tokens_per_second + self.question_tokens / prompt_tokens_per_second) / 3600

    def spelled(self, tokens_per_second: float, prompt_tokens_per_second: float) -> str:
        """A line for people."""
        known = f" ({self.answered:,} are answered)" if self.answered else ""
        often = f", {counted(self.runs, 'time')}" if self.runs else ""
        return (
            f"{self.title}: {self.chosen:,} of {counted(self.items, 'item')}{often}; "
            f"{counted(self.questions, 'question')}{known}, about {counted(self.question_tokens, 'token')} with "
            f"{counted(self.pictures, 'picture')}; {counted(self.answer_tokens, 'token')} of "
            f"answers, {self.hours(tokens_per_second, prompt_tokens_per_second):,.2f} hours"
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
    loaded = evaluation if evaluation.is_loaded(benchmark) else elsewhere
    loaded.load(benchmark)
    items, source = loaded.items(benchmark)
    runs = evaluation.runs_of(benchmark)
    left = [item for run in range(1, runs + 1) for item in evaluation.unanswered(benchmark, run, items, again)]
    return Planned(
        benchmark.title, len(items), source.items, runs, len(items) * runs - len(left), len(left),
        sum(_tokens(item, loaded.folder / benchmark.name) for item in left), sum(len(item.pictures) for item in left),
        len(left) * (evaluation.settings.max_tokens or ANSWER_TOKENS) * (REPLIES if benchmark.conversed else 1),
    )  # fmt: skip


def _tokens(item: Item, folder: Path) -> int:
    """Of a question, about; its pictures as Pixtral reads them."""
    return len(item.text) // _LETTERS_A_TOKEN + sum(_picture_tokens(folder / name) for name in item.pictures)


def _picture_tokens(path: Path) -> int:
    try:
        with Image.open(path) as picture:
            return image_tokens(*patch_grid(picture.height, picture.width, _LONGEST_SIDE, _PATCH))
    except (OSError, ValueError, Image.DecompressionBombError):
        return 0  # asking names it
