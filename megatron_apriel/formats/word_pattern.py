"""The word pattern of a Mistral tokenizer: what it should be, whether a ``tokenizer.json`` has it, and how to set it.

Before byte pairs are merged, text is cut into words by a pattern, and no token reaches beyond a word. A vocabulary is
learned from the words of one pattern. Mistral's is Tekken's, which keeps marks with their letters (Hindi, Tamil, Arabic
with vowels), ``'`` with what follows it, and a slash with the line end before it. For a long time conversions to
``tokenizer.json`` wrote Llama 3's pattern instead, which is the converter's default: it cuts there, so 3,499 of
Tekken's tokens never appear, and a model reads text otherwise than it was trained to. transformers warns by
``model_type`` and version, not of ``llava``, and also of tokenizers that are right.

Here it is found out from the tokenizer itself. That the vocabulary is Tekken's shows in this: its pattern cuts not one
of the 130,072 tokens, while vocabularies of other patterns have thousands that it cuts (``12``, ``getName``). Then any
splitting that is not Tekken's is a fault, however it is written: the pattern in another spelling, or the right one with
GPT-2's words cut out of it again (``use_regex`` of ``ByteLevel``).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_apriel.errors import CheckpointError, printable, shown
from megatron_apriel.formats.json_files import parse_json, write_json
from megatron_apriel.inputs import read_input
from megatron_apriel.terminal import note

TOKENIZER_FILE = "tokenizer.json"

_REST = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _REST
)
"""``config.pattern`` of the ``tekken.json`` files that come with mistral-common."""
OLDER_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _REST
"""What converters to ``tokenizer.json`` wrote by default; Llama 3's, and right for its vocabulary."""
TEKKEN_WORDS: Mapping[str, Any] = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": TEKKEN_PATTERN}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ],
}
"""The pre-tokenizer that transformers makes of a ``tekken.json``."""

_PROBE = "it'Sx don't 'de eBay HTTPServer HELLOworld \u0939\u093f\u0928\u094d\u0926\u0940 12345 a/b ;\n//x  y\r\n\n  z "
"""A text that no two of the known patterns cut alike."""
_CONTROL_TOKENS = ({"[INST]", "[/INST]"}, {"[IMG]", "[IMG_BREAK]", "[IMG_END]"})
WAY_OUT = (
    "The model reads such text otherwise than it was trained to. --correct-word-pattern corrects it: that of"
    " tools/prepare_data.py for a corpus, that of tools/convert_checkpoint.py or tools/upscale_layers.py for the model."
)
NOTHING_TO_CORRECT = "the tokenizer's word pattern is not faulty; nothing was corrected"

_SPACE = "\u0120"
"""How a vocabulary of bytes writes the space."""
_MOST_CUT = 0.001
_MANY_TOKENS = 1000


@dataclass(frozen=True)
class WordFault:
    """How a tokenizer splits text otherwise than its vocabulary was made for.

    Attributes:
        older: by the pattern of older conversions, in whatever spelling.
        lost, tokens: of its ``tokens`` that are text, so many never appear.
        text, pieces: an example, one word for Tekken's pattern, and what it becomes; empty where no word is cut.
    """

    older: bool
    lost: int
    tokens: int
    text: str
    pieces: tuple[str, ...]

    def __str__(self) -> str:
        said = f"has the faulty word pattern of {'older conversions' if self.older else 'another vocabulary'}: "
        if not self.pieces:
            return f"{said}it makes other words of text than those its vocabulary was learned from"
        said += f"{shown(self.text)} is cut into {' and '.join(map(shown, self.pieces))}"
        return f"{said}, and {self.lost:,} of its {self.tokens:,} tokens never appear" if self.lost else said


def word_fault(state: Mapping[str, Any]) -> WordFault | None:
    """Whether a tokenizer, as ``tokenizer.json`` says it, has Tekken's vocabulary and splits text otherwise.

    None for what is right, what is of another kind, and what is no tokenizer.
    """
    steps, model = state.get("pre_tokenizer"), state.get("model")
    if not isinstance(steps, dict) or not isinstance(model, dict) or steps == TEKKEN_WORDS:
        return None
    vocabulary = model.get("vocab")
    if not isinstance(vocabulary, dict) or _SPACE not in vocabulary or state.get("normalizer"):
        return None
    try:
        own, right, older = map(_splitter, (steps, TEKKEN_WORDS, _split(OLDER_PATTERN)))
    except Exception:  # tokenizers raises a bare Exception; whoever loads the file says what is wrong with it
        return None
    if own.pre_tokenize_str(_PROBE) == right.pre_tokenize_str(_PROBE):
        return None
    added = {token["content"] for token in state.get("added_tokens") or ()}
    texts = _texts(vocabulary, added)
    whole = [text for text in texts if len(_words(right, text)) == 1]
    if len(texts) - len(whole) > _MOST_CUT * len(texts):
        return None
    lost = [text for text in whole if len(_words(own, text)) > 1]
    is_older = _ends(older, _PROBE) <= _ends(own, _PROBE)
    if not lost and len(texts) < _MANY_TOKENS and not (is_older and any(names <= added for names in _CONTROL_TOKENS)):
        return None
    # People read an example in letters of their keyboard most easily.
    typed = [text for text in lost if text.isascii() and text.isprintable()]
    text = next((one for one in (*typed, *lost, *_words(right, _PROBE)) if len(_words(own, one)) > 1), "")
    return WordFault(is_older, len(lost), len(texts), text, tuple(_words(own, text)) if text else ())


def has_tekken_words(directory: Path) -> bool:
    """Whether a model's ``tokenizer.json`` splits text by Tekken's pattern, whatever its vocabulary."""
    try:
        state = parse_json(read_input(directory / TOKENIZER_FILE))
    except (OSError, ValueError):
        return False
    return isinstance(state, dict) and state.get("pre_tokenizer") == TEKKEN_WORDS and not state.get("normalizer")


def corrected(state: Mapping[str, Any]) -> dict[str, Any]:
    """The same tokenizer with Tekken's words."""
    return {**state, "pre_tokenizer": TEKKEN_WORDS}


def correct_tokenizer(tokenizer: Any) -> None:
    """Give Tekken's words to a tokenizer of the tokenizers library."""
    tokenizer.pre_tokenizer = _splitter(TEKKEN_WORDS)


def fault_in_directory(directory: Path) -> WordFault | None:
    """Of a model's ``tokenizer.json``; None where there is none, or none that can be read."""
    try:
        return word_fault(parse_json(read_input(directory / TOKENIZER_FILE)))
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return None


def correct_directory(directory: Path) -> None:
    """Correct a model's ``tokenizer.json``, and say so; where there is nothing to correct, too.

    Raises:
        CheckpointError: it cannot be read.
    """
    file = directory / TOKENIZER_FILE
    try:
        state = parse_json(read_input(file)) if file.exists() else {}
        fault = word_fault(state)
    except (OSError, ValueError, AttributeError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{printable(file)} cannot be read: {error}.",
            "Its word pattern was to be corrected.",
            "Copy the file again.",
        ) from None
    if fault is None:
        note(f"note: {NOTHING_TO_CORRECT}")
        return
    write_json(file, corrected(state))
    note(f"note: the given tokenizer {fault}; it was corrected in the result")


@functools.cache
def name_word_fault(directory: Path) -> None:
    """Say once that the tokenizer of a model, which goes into a result, is faulty."""
    fault = fault_in_directory(directory)
    if fault is not None:
        note(f"warning: the tokenizer in {directory} {fault}. {WAY_OUT}")


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _splitter(steps: Mapping[str, Any]) -> Any:
    """The pre-tokenizer of the tokenizers library, which reads one as part of a tokenizer only."""
    from tokenizers import Tokenizer

    empty = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}}
    return Tokenizer.from_str(json.dumps({**empty, "pre_tokenizer": steps})).pre_tokenizer


def _words(splitter: Any, text: str) -> list[str]:
    return [text[start:end] for _, (start, end) in splitter.pre_tokenize_str(text)]


def _ends(splitter: Any, text: str) -> set[int]:
    return {end for _, (_, end) in splitter.pre_tokenize_str(text)}


def _texts(vocabulary: Mapping[str, int], added: set[str]) -> list[str]:
    """The tokens, in order, that are text of two characters or more; most others are parts of a character."""
    from tokenizers.decoders import ByteLevel

    decoder = ByteLevel()
    names = sorted(vocabulary.keys() - added, key=vocabulary.__getitem__)
    texts = (decoder.decode([name]) for name in names)
    return [text for text in texts if len(text) > 1 and "\ufffd" not in text]
