"""How an answer of the chat format is divided, for programs that do not know the format.

transformers 5 reads a ``response_template`` from ``tokenizer_config.json``: where the reasoning of an answer ends,
where a call begins, where the content is over. ``transformers serve`` and SGLang follow it, so that their clients get
reasoning, content and calls in fields, without a parser of this format in them. For vLLM there is a parser of its own
(:mod:`~megatron_apriel.generate.vllm_plugin`), which also sends the arguments of a call as they are written.

The markers come as lists where white space stands around them: a server would send that on as text. Each call is a part
of its own, since ``transformers serve`` knows no lists of calls. A call that was cut off keeps its text.
"""

from __future__ import annotations

import re
from typing import Any

from megatron_apriel.data.corpus.chat import exported_chat_template
from megatron_apriel.data.raw.turns.chat_markers import (
    ASSISTANT,
    CALLS_CLOSING,
    CALLS_OPENING,
    REASONING_OPENING,
    RESPONSE_CLOSING,
    RESPONSE_OPENING,
)
from megatron_apriel.formats.hf_directory import ChatFormat

_NAME = r'"name"\s*:\s*"{name}"\s*,\s*"arguments"\s*:\s*'
_TEXT = r'(?:[^"\\]|\\.)*'
"""Of a string in JSON."""
_END_OF_TEXT = "</s>"
"""Servers hand it to the parser too, also behind an answer that lacks its own end."""


def exported_chat_format() -> ChatFormat:
    """What a checkpoint is exported with: how prompts are written, and how answers are read."""
    return ChatFormat(exported_chat_template(), response_template())


def response_template() -> dict[str, Any]:
    """The description of an answer, as transformers 5 has it in ``tokenizer_config.json``."""
    opening, closing, end = map(_literal, (CALLS_OPENING, CALLS_CLOSING, RESPONSE_CLOSING))
    named, any_name = _NAME.format(name=f"(?P<name>{_TEXT})"), _NAME.format(name=_TEXT)
    return {
        "version": 1,
        "defaults": {"role": "assistant"},
        "start_anchor": f"{ASSISTANT}\n",
        "fields": {
            "thinking": {
                "open": f"{REASONING_OPENING}\n",
                # The bare one comes first: it is how SGLang knows where a response's own form begins.
                "close": [
                    RESPONSE_OPENING, f"{RESPONSE_OPENING}\n", f"\n{RESPONSE_OPENING}", f"\n{RESPONSE_OPENING}\n",
                    _END_OF_TEXT,
                ],
            },
            "tool_calls": {
                "open_pattern": rf"(?:\s*{opening}\s*\[|(?<=\}}\s*),)\s*\{{\s*{named}(?=\{{)",
                "close_pattern": rf"\s*\}}\s*(?:\]\s*{closing}|(?=,\s*\{{\s*{any_name}))",
                "content": "json",
                "content_args": {"allow_non_json": True},
                "repeats": True,
                "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
            },
            "content": {"close_pattern": rf"\s*(?:{end}.*|{_END_OF_TEXT})"},
        },
    }  # fmt: skip


def _literal(text: str) -> str:
    """An expression for a text; spaces need no mark there."""
    return re.escape(text).replace("\\ ", " ")
