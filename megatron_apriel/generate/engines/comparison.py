"""Whether an engine answers as transformers does: greedy answers of both, token by token, and where they part.

Two programs that compute the same add up in other orders. Where the two best tokens are nearly as likely, rounding
decides between them, and from there on the answers go their own ways. So what counts is by how much the reference finds
its own token more likely than the engine's, at the first place where they differ: by no more than rounding, or by more.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from PIL import Image

from megatron_apriel.errors import brief
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.generate.conversation import Picture, Question, Sampling, ToolCall, Turn
from megatron_apriel.generate.engines.engine import Asked, GreedyReply
from megatron_apriel.generate.parsing import parse_answer
from megatron_apriel.progress import progress
from megatron_apriel.tables import Table

ROUNDING = {"float32": 0.01, "float16": 0.05, "bfloat16": 0.25}
"""Difference of log-probabilities up to which two tokens count as equally likely.

# assumption: some ten steps of the format at logits of about 16; small random models part at 0.0006 in float32.
"""
ANSWER_TOKENS = 32

TOOLS: tuple[dict[str, Any], ...] = (
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    },
)
_CALL = ToolCall("weather", '{"city": "Zürich"}')


class Reference(Protocol):
    """What is asked of the reference; a :class:`~megatron_apriel.generate.transformers_model.TransformersModel`."""

    def greedy(self, question: Question) -> tuple[list[int], list[int], Any]: ...
    def text_of(self, ids: Sequence[int]) -> str: ...
    def prompt_text(self, question: Question) -> str: ...


@dataclass(frozen=True)
class Case:
    """A question and the reference's answer to it.

    Attributes:
        asked: the question.
        ids: tokens of the answer.
        scores: log-probabilities [answer's tokens, vocabulary].
        text: of the answer.
    """

    asked: Asked
    ids: tuple[int, ...]
    scores: np.ndarray = field(repr=False)
    text: str


@dataclass(frozen=True)
class Verdict:
    """How an engine's answer compares.

    Attributes:
        name: of the question.
        prompt_tokens, tokens: of the reference.
        alike: whether both are the same, but for rounding.
        parts_at: number of the first token (or letter of the text) that differs; None if none does.
        gap: by how much the reference finds its best token there more likely than its second best, in log-probability.
        behind: and more likely than the engine's.
        said: what differs, for a person.
    """

    name: str
    prompt_tokens: int
    tokens: int
    alike: bool
    parts_at: int | None = None
    gap: float | None = None
    behind: float | None = None
    said: str = "equal"


def questions(architecture: Architecture) -> Iterator[tuple[str, Question]]:
    """What is asked: texts, tools, turns and, of a model with a tower, images of awkward sizes."""
    for name, turns, tools in _conversations(architecture):
        yield name, Question(turns, tools, Sampling(greedy=True, max_tokens=ANSWER_TOKENS))


def _conversations(architecture: Architecture) -> Iterator[tuple[str, list[Turn], Sequence[dict[str, Any]]]]:
    ask = Turn("user", ("How many days has a leap year?",))
    yield "text", [ask], ()
    yield (
        "system turn",
        [Turn("system", ("Répondez en français. 你好。",)), Turn("user", ("Où est Zürich? 北京呢。",))],
        (),
    )
    yield "several turns", [ask, Turn("assistant", ("It has 366.",)), Turn("user", ("And another one?",))], ()
    weather = Turn("user", ("What is the weather in Zürich?",))
    yield "tools", [weather], TOOLS
    yield "tool result", [weather, Turn("assistant", (), (_CALL,)), Turn("tool", ("rain, 8 degrees",))], TOOLS
    if architecture.tower is None:
        return
    patch, largest = architecture.tower.patch_size, architecture.tower.image_size
    for name, width, height in (
        ("image of whole patches", 8 * patch, 5 * patch),
        ("image of broken patches", 8 * patch + 5, 5 * patch - 3),
        ("image beyond the limit", largest + 3 * patch, largest // 2),
    ):
        yield name, [Turn("user", (_picture(width, height), "What is in the image?"))], ()
    pair = (_picture(3 * patch, 2 * patch), "or", _picture(2 * patch, 3 * patch), "Which one is wider?")
    yield "two images", [Turn("user", pair)], ()


def _picture(width: int, height: int) -> Picture:
    """An image with content everywhere."""
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([255 * columns // width, 255 * rows // height, (columns // 7 + rows // 5) % 2 * 255], axis=-1)
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return Picture.from_bytes(file.getvalue())


def reference_cases(reference: Reference, architecture: Architecture) -> list[Case]:
    """The reference's answers."""
    cases, asked_for = [], list(questions(architecture))
    with progress("asking transformers", len(asked_for), "question") as step:
        for name, question in asked_for:
            prompt, ids, scores = reference.greedy(question)
            asked = Asked(name, question, tuple(prompt), reference.prompt_text(question))
            cases.append(Case(asked, tuple(ids), scores, reference.text_of(ids)))
            step()
    return cases


def compare(case: Case, reply: GreedyReply, rounding: float) -> Verdict:
    """An engine's answer beside the reference's."""
    asked, lengths = case.asked, (len(case.asked.prompt_ids), len(case.ids))
    if reply.prompt_ids is not None and (place := _parting(asked.prompt_ids, reply.prompt_ids)) is not None:
        said = f"the prompts part at token {place} of {len(asked.prompt_ids)} and {len(reply.prompt_ids)}"
        return Verdict(asked.name, *lengths, alike=False, parts_at=place, said=said)
    if reply.ids is None:
        return _compare_texts(case, reply.text)
    place = _parting(case.ids, reply.ids)
    if place is None:
        return Verdict(asked.name, *lengths, alike=True)
    if place == min(len(case.ids), len(reply.ids)):
        said = f"one ends: {len(case.ids)} and {len(reply.ids)} tokens"
        return Verdict(asked.name, *lengths, alike=False, parts_at=place, said=said)
    scores = case.scores[place]
    second, best = np.sort(scores)[-2:]
    behind = float(best - scores[reply.ids[place]])
    alike = behind <= rounding
    said = "rounding" if alike else f"token {reply.ids[place]} and not {case.ids[place]}"
    return Verdict(asked.name, *lengths, alike, place, float(best - second), behind, said)


def _compare_texts(case: Case, text: str) -> Verdict:
    """Of an engine that returns no tokens: the parts of the answer, without the markers between them."""
    lengths = (len(case.asked.prompt_ids), len(case.ids))
    expected, found = parse_answer(case.text.removesuffix("</s>")).text, text
    place = _parting(expected, found)
    if place is None:
        return Verdict(case.asked.name, *lengths, alike=True, said="equal text")
    said = f"{brief(found[place:], 30)} and not {brief(expected[place:], 30)}"
    return Verdict(case.asked.name, *lengths, alike=False, parts_at=place, said=said)


def _parting(first: Sequence[Any], second: Sequence[Any]) -> int | None:
    """The first place where two sequences differ; their common length where one goes on."""
    for place, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return place
    return None if len(first) == len(second) else min(len(first), len(second))


def verdict_table(verdicts: Sequence[Verdict], title: str) -> Table:
    """For a person."""
    table = Table(title=title)
    for heading in ("question", "answers", "prompt tokens", "answer tokens", "part at", "gap", "behind"):
        table.add_column(heading, justify="left" if heading in ("question", "answers") else "right")
    for one in verdicts:
        figures = ["" if value is None else f"{value:.4f}" for value in (one.gap, one.behind)]
        place = "" if one.parts_at is None else str(one.parts_at)
        table.add_row(one.name, one.said, str(one.prompt_tokens), str(one.tokens), place, *figures)
    return table
