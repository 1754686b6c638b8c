"""A question in OpenAI's protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from megatron_apriel.generate.conversation import Picture, Question, Sampling, Turn


def body_of(question: Question, model: str) -> dict[str, Any]:
    """The body of a request for a streamed answer."""
    body: dict[str, Any] = {
        "model": model,
        "messages": list(_messages(question.turns)),
        "stream": True,
        "stream_options": {"include_usage": True},
        **_choice(question.sampling),
    }
    if question.tools:
        body["tools"] = list(question.tools)
    return body


def _choice(sampling: Sampling) -> dict[str, Any]:
    if sampling.greedy:
        chosen: dict[str, Any] = {"temperature": 0.0}
    else:
        chosen = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    chosen |= {"max_tokens": sampling.max_tokens, "seed": sampling.seed}
    return {name: value for name, value in chosen.items() if value is not None}


def _messages(turns: Sequence[Turn]) -> Iterator[dict[str, Any]]:
    """Calls that a model wrote as text have no ids, which the protocol wants: they are numbered."""
    waiting: list[str] = []
    made = 0
    for turn in turns:
        message: dict[str, Any] = {"role": turn.role, "content": _content(turn)}
        if turn.role == "tool":
            message["tool_call_id"] = turn.result_of or (waiting.pop(0) if waiting else "")
        elif turn.calls:
            waiting = []
            for call in turn.calls:
                made += 1
                waiting.append(call.id or f"call_{made}")
            message["tool_calls"] = [
                {"id": id_, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for id_, call in zip(waiting, turn.calls, strict=True)
            ]
        yield message


def _content(turn: Turn) -> str | list[dict[str, Any]]:
    if not turn.pictures:
        return turn.text
    return [
        {"type": "image_url", "image_url": {"url": part.url}}
        if isinstance(part, Picture)
        else {"type": "text", "text": part}
        for part in turn.content
    ]
