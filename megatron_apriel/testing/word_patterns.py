"""Small tokenizers with a faulty word pattern, as conversions of Mistral's models have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The default of transformers' ``MistralConverter`` until 5.0 and of its ``TikTokenConverter``."""


def split(pattern: str) -> dict[str, Any]:
    """A pre-tokenizer that cuts text into the matches of a pattern, in the words of ``tokenizer.json``."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def byte_level(use_regex: bool) -> dict[str, Any]:
    """A pre-tokenizer that writes bytes as characters; with ``use_regex`` it cuts out GPT-2's words before."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    """One pre-tokenizer after another."""
    return {"type": "Sequence", "pretokenizers": list(steps)}


def set_words(directory: Path, pre_tokenizer: dict[str, Any]) -> None:
    """Give the ``tokenizer.json`` of a model another pre-tokenizer."""
    file = directory / "tokenizer.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**state, "pre_tokenizer": pre_tokenizer}, ensure_ascii=False), encoding="utf-8")
