"""Small tokenizers and processors for tests, cut from the real table that comes with mistral-common.

Tekken's table is a list of byte pairs in the order of their merges, so its first entries are a valid, smaller
tokenizer of the same text. The first 1000 ids are special tokens and keep their numbers: ``[IMG]`` is 10 in every cut.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_apriel.formats.architecture import Architecture

SPECIAL_TOKENS = 1000
"""Ids reserved for special tokens at the start of Tekken's vocabulary."""

MINIMUM_VOCABULARY = SPECIAL_TOKENS + 256
"""Special tokens and one entry per byte: the smallest cut that still encodes any text."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}[IMG]{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}\n<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""A plain template for checkpoints in tests; not the recipe's chat format."""


def write_small_tekken(path: str | Path, vocab_size: int = 4096) -> Path:
    """Write Tekken's first ``vocab_size`` entries, special tokens included, as a ``tekken.json``; returns the path.

    Raises:
        ValueError: if ``vocab_size`` has no room for the special tokens and the 256 bytes, or exceeds the table.
    """
    import mistral_common

    table = json.loads((Path(mistral_common.__file__).parent / "data" / "tekken_240911.json").read_bytes())
    largest = len(table["vocab"]) + SPECIAL_TOKENS
    if not MINIMUM_VOCABULARY <= vocab_size <= largest:
        raise ValueError(f"vocab_size={vocab_size} is not between {MINIMUM_VOCABULARY} and {largest}")
    merges = vocab_size - SPECIAL_TOKENS
    table["vocab"] = table["vocab"][:merges]
    table["config"].update(default_vocab_size=vocab_size, num_vocab_tokens=merges)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table), encoding="utf-8")
    return path


def small_tokenizer(vocab_size: int = 4096, directory: str | Path | None = None) -> Any:
    """A transformers tokenizer of a cut Tekken table; the table stays in ``directory`` if one is given."""
    import tempfile

    from transformers.integrations.mistral import convert_tekken_tokenizer

    with tempfile.TemporaryDirectory() as scratch:
        table = write_small_tekken(Path(directory or scratch) / "tekken.json", vocab_size)
        return convert_tekken_tokenizer(str(table), chat_template=CHAT_TEMPLATE)


def write_processor(directory: str | Path, architecture: Architecture) -> Path:
    """Write tokenizer, processor, chat template and generation config that fit ``architecture`` into ``directory``."""
    from transformers import GenerationConfig, PixtralImageProcessor, PixtralProcessor

    directory = Path(directory)
    tokenizer, tower = small_tokenizer(architecture.decoder.vocab_size), architecture.tower
    if tower is None:
        tokenizer.save_pretrained(directory)
    else:
        image_processor = PixtralImageProcessor(
            size={"longest_edge": tower.image_size},
            patch_size={"height": tower.patch_size, "width": tower.patch_size},
        )
        PixtralProcessor(
            image_processor=image_processor,
            tokenizer=tokenizer,
            patch_size=tower.patch_size,
            chat_template=tokenizer.chat_template,
        ).save_pretrained(directory)
    GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=11).save_pretrained(directory)
    return directory
