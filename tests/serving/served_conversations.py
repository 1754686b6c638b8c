"""What the served model has learned beside the conversations of every rigged model, and the tool that it may call."""

from __future__ import annotations

import io
from typing import Any

from megatron_apriel.generate.conversation import Picture
from megatron_apriel.testing.rigged_models import red_image

TOOLS: tuple[dict[str, Any], ...] = (
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    },
)
"""With every field that vLLM writes into a prompt, in its order."""


def called(*cities: str) -> list[dict[str, Any]]:
    return [{"function": {"name": "weather", "arguments": {"city": city}}} for city in cities]


FURTHER = (
    [
        {"role": "system", "content": "Never say [BEGIN FINAL RESPONSE] {}."},
        {"role": "user", "content": "Two and two?"},
        {"role": "assistant", "content": "It is 4.", "reasoning_content": "I add them."},
    ],
    [
        {"role": "user", "content": "Weather in both?"},
        {"role": "assistant", "content": "I look.", "reasoning_content": "Two.", "tool_calls": called("Oslo", "Rome")},
    ],
    [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": called("Oslo")},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "It rains."},
        {"role": "user", "content": [{"type": "image", "image": red_image()}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A red image.", "reasoning_content": "I look."},
    ],
)
"""Learned beside those of every rigged model: a marker in a question, two calls at once behind a text, an image behind
a tool's result."""


def picture() -> Picture:
    file = io.BytesIO()
    red_image().save(file, "PNG")
    return Picture.from_bytes(file.getvalue())
