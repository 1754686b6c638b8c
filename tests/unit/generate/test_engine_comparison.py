"""Answers compared: where they part, and whether rounding explains it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.generate.conversation import Question, Turn
from megatron_apriel.generate.engines.comparison import ANSWER_TOKENS, Case, compare, questions, verdict_table
from megatron_apriel.generate.engines.engine import Asked, GreedyReply
from megatron_apriel.tables import lines_of

PROMPT, IDS = (1, 7, 7), (4, 5, 2)


def case() -> Case:
    """Three steps over six tokens; at the second one, token 3 is nearly as likely as the one that was taken."""
    scores = np.full((3, 6), math.log(0.02), np.float32)
    for step, (best, likely) in enumerate(((4, 0.9), (5, 0.46), (2, 0.9))):
        scores[step, best] = math.log(likely)
    scores[1, 3] = math.log(0.459)
    return Case(Asked("it", Question([Turn("user", ("Why?",))]), PROMPT, "Why?"), IDS, scores, "So.</s>")


@pytest.mark.parametrize(
    ("reply", "alike", "parts_at", "said"),
    [
        (GreedyReply(PROMPT, IDS), True, None, "equal"),
        (GreedyReply(None, IDS), True, None, "equal"),
        (GreedyReply(PROMPT, (4, 3, 0, 0)), True, 1, "rounding"),
        (GreedyReply(PROMPT, (4, 0, 2)), False, 1, "token 0 and not 5"),
        (GreedyReply(PROMPT, (4, 5)), False, 2, "one ends: 3 and 2 tokens"),
        (GreedyReply(PROMPT, (4, 5, 2, 2)), False, 3, "one ends: 3 and 4 tokens"),
        (GreedyReply(PROMPT, ()), False, 0, "one ends: 3 and 0 tokens"),
        (GreedyReply((1, 7), IDS), False, 2, "the prompts part at token 2 of 3 and 2"),
        (GreedyReply((1, 8, 7), IDS), False, 1, "the prompts part at token 1 of 3 and 3"),
        (GreedyReply(text="So."), True, None, "equal text"),
        (GreedyReply(text="Som"), False, 2, "m and not ."),
    ],
)
def test_verdicts(reply: GreedyReply, alike: bool, parts_at: int | None, said: str) -> None:
    verdict = compare(case(), reply, 0.01)
    assert (verdict.alike, verdict.parts_at, verdict.said) == (alike, parts_at, said)
    assert (verdict.prompt_tokens, verdict.tokens) == (3, 3)


def test_gaps_are_of_the_reference() -> None:
    verdict = compare(case(), GreedyReply(PROMPT, (4, 0, 2)), 0.01)
    assert verdict.gap == pytest.approx(math.log(0.46 / 0.459), abs=1e-5)
    assert verdict.behind == pytest.approx(math.log(0.46 / 0.02), abs=1e-5)
    assert not compare(case(), GreedyReply(PROMPT, (4, 3)), 0.001).alike
    lines = lines_of(verdict_table([verdict, compare(case(), GreedyReply(PROMPT, IDS), 0.01)], "answers"), 110)
    assert any("token 0 and not 5" in line and "0.0022" in line and "3.1355" in line for line in lines)


def test_images_are_asked_of_models_with_a_tower() -> None:
    tiny = Architecture.from_preset("tiny")
    asked = dict(questions(tiny))
    assert all(
        question.sampling.greedy and question.sampling.max_tokens == ANSWER_TOKENS for question in asked.values()
    )
    assert tiny.tower
    sizes = [(p.width, p.height) for q in asked.values() for turn in q.turns for p in turn.pictures]
    patch = tiny.tower.patch_size
    assert any(width % patch == height % patch == 0 for width, height in sizes)
    assert any(width % patch and height % patch for width, height in sizes)
    assert any(width > tiny.tower.image_size for width, _ in sizes)
    texts = [name for name, question in asked.items() if not any(turn.pictures for turn in question.turns)]
    assert list(dict(questions(replace(tiny, tower=None, projector=None)))) == texts and len(texts) == 5
