"""The chat in docs/serving.md is one that a real server had."""

from __future__ import annotations

from pathlib import Path

import pytest
from served_conversations import TOOLS, picture

from megatron_apriel.generate.conversation import Question, Sampling, Turn
from megatron_apriel.generate.engines.engine import Service
from megatron_apriel.generate.server import ServerModel

pytestmark = pytest.mark.serving

PAGE = Path(__file__).resolve().parents[2] / "docs" / "serving.md"


def transcript(model: ServerModel) -> str:
    """A question that needs a tool, the tool's result, and an image in the same conversation."""
    lines = ["tools      weather(city)"]
    turns: list[Turn] = []
    results = {"weather": "rain"}
    for content in (("Weather?",), (picture(), "What is it?")):
        turns.append(Turn("user", content))
        shown = ["[an image of 48 x 32 pixels]"] * len(turns[-1].pictures) + [turns[-1].text]
        lines.append(f"user       {' '.join(shown)}")
        while True:
            answer = model.answer(Question(turns, TOOLS, Sampling(greedy=True, max_tokens=250)))
            turns.append(answer.turn)
            lines.append(f"reasoning  {answer.reasoning}")
            lines += [f"content    {answer.content}"] * bool(answer.content)
            lines += [f"calls      {call}" for call in answer.calls]
            lines.append(f"           ({answer.finish}; {answer.prompt_tokens} tokens in, {answer.tokens} out)")
            if not answer.calls:
                break
            for call in answer.calls:
                turns.append(Turn("tool", (results[call.name],), result_of=call.id))
                lines.append(f"tool       {results[call.name]}")
    return "\n".join(lines)


def test_the_page_shows_what_was_said(service: Service) -> None:
    said = transcript(ServerModel(service.address))
    assert f"```text\n{said}\n```" in PAGE.read_text(encoding="utf-8"), said
