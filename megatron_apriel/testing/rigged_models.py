"""Small models that answer in the trained format, because they learned a few conversations by heart.

Random weights write nothing that could be divided into reasoning, response and calls. Some hundred steps over a handful
of conversations give a model that repeats them, in seconds, for tests of whatever asks and reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from megatron_apriel.data.corpus.answer_format import exported_chat_format
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.hf_directory import set_chat_format
from megatron_apriel.testing.checkpoints import write_hf_checkpoint


def red_image() -> Image.Image:
    """The image of the conversations."""
    return Image.new("RGB", (48, 32), (230, 30, 30))


VOCABULARY = 1300
"""Tekken's special tokens, its bytes and a few merges: nearly a token a letter."""


TOOLS: tuple[dict[str, Any], ...] = ({"type": "function", "function": {"name": "weather", "parameters": {}}},)
CONVERSATIONS: tuple[list[dict[str, Any]], ...] = (
    [
        {"role": "user", "content": "Two and two?"},
        {"role": "assistant", "content": "It is 4.", "reasoning_content": "I add them."},
    ],
    [
        {"role": "user", "content": "Two and two?"},
        {"role": "assistant", "content": "It is 4."},
        {"role": "user", "content": "And one?"},
        {"role": "assistant", "content": "Then 5.", "reasoning_content": "One more."},
    ],
    [
        {"role": "user", "content": [{"type": "image", "image": red_image()}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A red image.", "reasoning_content": "I look."},
    ],
    [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "I ask.",
            "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Oslo"}}}],
        },
    ],
    [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Oslo"}}}],
        },
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "It rains.", "reasoning_content": "I read it."},
    ],
)
"""What :func:`write_rigged_model` teaches where nothing else is given: an answer, one more turn, an image, a tool."""


def rigged_architecture(*, tower: bool = True) -> Architecture:
    """Of a model that a test can train."""
    tiny = Architecture.from_preset("tiny")
    decoder = replace(tiny.decoder, vocab_size=VOCABULARY)
    return replace(tiny, decoder=decoder) if tower else Architecture(decoder)


def write_rigged_model(
    directory: Path,
    conversations: Sequence[Sequence[dict[str, Any]]] = CONVERSATIONS,
    tools: Sequence[dict[str, Any]] = TOOLS,
    *,
    tower: bool = True,
    steps: int = 600,
) -> Path:
    """Write a model that gives the last turn of each conversation when it is asked what stands before it.

    Args:
        directory: made if absent.
        conversations: messages as for ``apply_chat_template``; contents are texts, or parts with PIL images.
        tools: offered in conversations with calls.
        tower: whether it reads images.
        steps: of Adam; it ends early when every token is certain.

    Raises:
        RuntimeError: it did not learn them.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, MistralForCausalLM

    write_hf_checkpoint(directory, rigged_architecture(tower=tower), processor=True)
    set_chat_format(directory, exported_chat_format())
    processor = (AutoProcessor if tower else AutoTokenizer).from_pretrained(directory)
    kind = AutoModelForImageTextToText if tower else MistralForCausalLM
    model = kind.from_pretrained(directory, dtype=torch.float32)
    examples = [
        _example(processor, messages, tools if calls_tools(messages) else (), tower) for messages in conversations
    ]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        worst = 0.0
        for inputs, labels in examples:
            loss = model(**inputs, labels=labels).loss
            loss.backward()
            worst = max(worst, loss.item())
        if worst < 0.005:
            break
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    else:
        raise RuntimeError(f"the rigged model did not learn its conversations: loss {worst:.3f} after {steps} steps")
    model.save_pretrained(directory)
    return directory


def calls_tools(messages: Sequence[dict[str, Any]]) -> bool:
    """Whether tools are called in a conversation."""
    return any(message.get("tool_calls") for message in messages)


def _example(
    processor: Any, messages: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]], tower: bool
) -> tuple[dict[str, Any], Any]:
    """Inputs, and labels on the last turn."""
    options: dict[str, Any] = {"tools": list(tools) or None, "tokenize": True, "return_dict": True}
    options["return_tensors"] = "pt"
    shown = [_in_parts(message) for message in messages] if tower else list(messages)
    inputs = processor.apply_chat_template(shown, **options)
    prompt = processor.apply_chat_template(shown[:-1], add_generation_prompt=True, **options)["input_ids"]
    labels = inputs["input_ids"].clone()
    labels[:, : prompt.shape[1]] = -100
    return dict(inputs), labels


def _in_parts(message: dict[str, Any]) -> dict[str, Any]:
    content = message["content"]
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message
