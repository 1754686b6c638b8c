"""The tokenizer of a model directory, the ids that the rest of ``data`` needs, and text turned into ids.

Two kinds of text meet in a training document. The chat template's own text may contain control tokens (``<s>``,
``[IMG]``); text of the user's data must never become one, or a web page that quotes ``</s>`` would teach the model to
stop there, and one that quotes ``[IMG]`` would ask for pixels that do not exist. So control tokens in data are encoded
as the ordinary characters they are made of. For plain documents that is a switch of the tokenizer; for a conversation
each occurrence is put between two marks before the template sees it, and the rendered text is cut at the marks and
encoded piece by piece, which is what transformers does under ``apply_chat_template(sanitize_control_tokens=True)``.
Text without control tokens, that is nearly all text, is encoded in one piece and equals ``apply_chat_template`` as is.

Nothing is loaded from a hub and no code of the directory is executed.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from megatron_apriel.data.corpus.format import ImageRecord, TokenizerRecord
from megatron_apriel.data.corpus.image_size import Rounding
from megatron_apriel.data.corpus.processor_files import longest_side
from megatron_apriel.data.corpus.special_tokens import check_ends
from megatron_apriel.errors import DataError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.word_pattern import WordFault, correct_tokenizer, corrected, word_fault
from megatron_apriel.inputs import open_input

IMAGE_TOKEN, IMAGE_BREAK_TOKEN, IMAGE_END_TOKEN = "[IMG]", "[IMG_BREAK]", "[IMG_END]"

TOKENIZER_FILES = ("tokenizer.json", "tekken.json")
"""Either is a tokenizer; the first counts where both are there."""

# Two code points that Unicode sets aside as "not characters": no text in use contains them.
_MARK_START, _MARK_END = "\ufdd0", "\ufdd1"


def load_tokenizer(directory: str | Path) -> Any:
    """The transformers tokenizer of a local model directory.

    Read from ``tokenizer.json``; where there is none, ``tekken.json`` is converted. The result is always one that
    reports character offsets, which the loss on responses needs.

    Raises:
        DataError: neither file is there, or it cannot be read; or files beside it name different begins and ends.
    """
    directory = Path(directory)
    table, tekken = (directory / name for name in TOKENIZER_FILES)
    if not table.is_file() and not tekken.is_file():
        raise DataError(
            f"{directory} has no tokenizer: neither tokenizer.json nor tekken.json is there.",
            "Text is turned into the ids of the model that will be trained on it.",
            "Give the Hugging Face directory of that model with its tokenizer files.",
        )
    try:
        for entry in directory.iterdir():
            if not entry.is_dir():
                open_input(entry).close()  # the libraries would wait for a pipe among them
        if not table.is_file():
            from transformers.integrations.mistral import convert_tekken_tokenizer

            # An empty template keeps the conversion from making one up; ours is given where it is needed.
            return convert_tekken_tokenizer(str(tekken), chat_template="")
        # With a tekken.json beside it, transformers would choose a tokenizer that reports no offsets.
        choice: dict[str, Any] = {"mistral_format": False} if tekken.is_file() else {}
        if "fix_mistral_regex" not in _settings(directory):
            choice["fix_mistral_regex"] = False  # no warning by model_type; the tokenizer itself is looked at
        tokenizer = _tokenizer_class(directory).from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False, **choice
        )
    except Exception as error:  # tokenizers raises bare Exception for a damaged file
        raise DataError(
            f"the tokenizer in {directory} cannot be loaded: {error}.", fix="Copy the tokenizer files again."
        ) from error
    if not tokenizer.is_fast:
        raise DataError(
            f"the tokenizer in {directory} is a {type(tokenizer).__name__}, which reports no character offsets.",
            "Which tokens belong to a response is known from the characters they cover.",
            "Use a tokenizer.json that the tokenizers library reads.",
        )
    check_ends(directory)
    return tokenizer


def _tokenizer_class(directory: Path) -> Any:
    """The class that reads ``tokenizer.json``: the generic one where the files name it or none, else by their choice.

    Choosing by the files imports torch and takes seconds, which most tokenizers have no need of.
    """
    named = _settings(directory).get("tokenizer_class")
    if named in (None, "PreTrainedTokenizerFast", "TokenizersBackend"):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def _settings(directory: Path) -> dict[str, Any]:
    file = directory / "tokenizer_config.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _state(tokenizer: Any) -> dict[str, Any]:
    """The tokenizer as ``tokenizer.json`` would say it."""
    return json.loads(tokenizer.backend_tokenizer.to_str())


def tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 over what decides the ids of a text: vocabulary, merges, added tokens, normalizer, pre-tokenizer.

    Formatting of the file, truncation settings and chat template do not enter, so that the same tokenizer has the same
    digest whether it was read from ``tokenizer.json`` or converted from ``tekken.json``.
    """
    return _digest(_state(tokenizer))


def corrected_digest(tokenizer: Any) -> str:
    """The same over the tokenizer with the words of its vocabulary; that of the tokenizer where it has them."""
    state = _state(tokenizer)
    return _digest(state if word_fault(state) is None else corrected(state))


def _digest(state: Mapping[str, Any]) -> str:
    model = state["model"]
    parts = {
        "vocabulary": model.get("vocab"),
        "merges": model.get("merges"),
        "added": sorted((token["id"], token["content"], token["special"]) for token in state["added_tokens"]),
        "normalizer": state.get("normalizer"),
        "pre_tokenizer": state.get("pre_tokenizer"),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Encoded:
    """Ids of a text, and the characters that each covers.

    Attributes:
        ids: int32 [N].
        offsets: int64 [N, 2], first character and the one after the last, counted in the text that was given.
    """

    ids: np.ndarray
    offsets: np.ndarray


class TokenTable:
    """A tokenizer that is known to fit a model, with the ids that documents are built from.

    Attributes:
        tokenizer: the transformers tokenizer.
        vocab_size: entries of the model's embedding; every id is below it.
        bos_id, eos_id: begin and end of a document.
        images: how images become tokens; None for a model without a vision tower.
    """

    def __init__(
        self,
        tokenizer: Any,
        architecture: Architecture,
        *,
        image_size: int | None = None,
        rounding: Rounding = "floor",
        origin: str = "the tokenizer",
    ) -> None:
        """Check the tokenizer against the model.

        Args:
            tokenizer: see :func:`load_tokenizer`.
            architecture: of the model.
            image_size: longest side of a resized image; the tower's own limit if None.
            rounding: see :func:`~megatron_apriel.data.corpus.image_size.patch_grid`.
            origin: names the tokenizer in error messages.

        Raises:
            DataError: ids beyond the model's vocabulary, merges at random, no begin or end token, or image tokens that
                differ from the model's.
        """
        self.tokenizer = tokenizer
        self.vocab_size = architecture.decoder.vocab_size
        largest = max(tokenizer.get_vocab().values())
        if largest >= self.vocab_size:
            raise DataError(
                f"{origin}: its largest id {largest} does not fit the model's vocabulary of {self.vocab_size}.",
                "Every id is a row of the model's embedding.",
                "Use the tokenizer that belongs to the model's config.json.",
            )
        for name in ("bos_token", "eos_token"):
            if getattr(tokenizer, f"{name}_id", None) is None:
                raise DataError(
                    f"{origin} has no {name}.",
                    "Documents begin with the one and end with the other.",
                    f'Set "{name}" in tokenizer_config.json.',
                )
        if dropout := getattr(tokenizer.backend_tokenizer.model, "dropout", None):
            raise DataError(
                f"{origin}: its model has dropout={dropout}.",
                "Merges are then left out at random, and a text has other ids whenever it is read.",
                'Set "dropout" of the model in tokenizer.json to null.',
            )
        self.bos_id, self.eos_id = int(tokenizer.bos_token_id), int(tokenizer.eos_token_id)
        self.images: ImageRecord | None = None
        if (tower := architecture.tower) is not None:
            image, row_break, end = self._image_ids(architecture.image_token_id, origin)
            self.images = ImageRecord(
                image_token_id=image,
                break_token_id=row_break,
                end_token_id=end,
                patch_size=tower.patch_size,
                image_size=image_size or tower.image_size,
                rounding=rounding,
            )

    @classmethod
    def from_directory(cls, directory: str | Path, rounding: Rounding = "floor") -> TokenTable:
        """Tokenizer and image rule of a Hugging Face model directory, checked against its ``config.json``."""
        architecture = Architecture.from_directory(directory)
        return cls(
            load_tokenizer(directory),
            architecture,
            image_size=longest_side(directory, architecture),
            rounding=rounding,
            origin=f"the tokenizer in {directory}",
        )

    @property
    def record(self) -> TokenizerRecord:
        """What a corpus remembers of its tokenizer."""
        pad = self.tokenizer.pad_token_id
        return TokenizerRecord(
            sha256=self.digest,
            vocab_size=self.vocab_size,
            bos_id=self.bos_id,
            eos_id=self.eos_id,
            pad_id=self.eos_id if pad is None else pad,
            faulty_words=self.word_fault is not None,
        )

    def _image_ids(self, expected: int, origin: str) -> tuple[int, int, int]:
        special = {
            token.content: index for index, token in self.tokenizer.added_tokens_decoder.items() if token.special
        }
        names = (IMAGE_TOKEN, IMAGE_BREAK_TOKEN, IMAGE_END_TOKEN)
        missing = [name for name in names if name not in special]
        if missing:
            raise DataError(
                f"{origin} lacks the special tokens {', '.join(missing)}.",
                "An image becomes rows of [IMG] tokens closed by [IMG_BREAK] and [IMG_END].",
                "Use the tokenizer that belongs to a Pixtral-style model.",
            )
        image, row_break, end = (special[name] for name in names)
        if image != expected:
            raise DataError(
                f"{origin}: {IMAGE_TOKEN} has id {image}, the model's config.json says image_token_index={expected}.",
                "The model replaces the embeddings at that id by the image's features.",
                "Use the tokenizer that belongs to the model's config.json.",
            )
        return image, row_break, end

    @cached_property
    def digest(self) -> str:
        """See :func:`tokenizer_digest`."""
        return tokenizer_digest(self.tokenizer)

    @cached_property
    def word_fault(self) -> WordFault | None:
        """How it splits text into other words than its vocabulary's; None where it does not."""
        return word_fault(_state(self.tokenizer))

    def correct_words(self) -> None:
        """Split text into the words of its vocabulary from now on."""
        correct_tokenizer(self.tokenizer.backend_tokenizer)
        for name in ("digest", "word_fault"):
            self.__dict__.pop(name, None)

    @cached_property
    def _control_tokens(self) -> re.Pattern[str]:
        tokens = [token.content for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        # Longest first, so that a token wins over one that it contains.
        return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))))

    @cached_property
    def _marked(self) -> re.Pattern[str]:
        return re.compile(f"{_MARK_START}({self._control_tokens.pattern}){_MARK_END}|[{_MARK_START}{_MARK_END}]")

    def encode_text(self, text: str) -> np.ndarray:
        """int32 ids of a user's text, control tokens in it as the characters they are made of; no begin, no end."""
        return self._encode(text, as_text=True).ids

    def encode_rendered(self, text: str, marked: bool = False) -> Encoded:
        """Ids and offsets of a rendered conversation, in which the template's control tokens count.

        Args:
            text: what the template gave.
            marked: its input went through :meth:`mark_control_tokens`. The marks cover no token.
        """
        if not marked:
            return self._encode(text, as_text=False)
        pieces, end = [], 0
        for match in self._marked.finditer(text):
            pieces.append((end, text[end : match.start()], False))
            if match[1] is not None:
                pieces.append((match.start(1), match[1], True))
            end = match.end()
        pieces.append((end, text[end:], False))
        encoded = [(start, self._encode(piece, as_text)) for start, piece, as_text in pieces if piece]
        return Encoded(
            ids=np.concatenate([part.ids for _, part in encoded]),
            offsets=np.concatenate([part.offsets + start for start, part in encoded]),
        )

    def has_control_tokens(self, value: Any) -> bool:
        """Whether any string in a tree of lists and dictionaries, keys included, contains a control token."""
        if isinstance(value, str):
            return self._control_tokens.search(value) is not None
        if isinstance(value, Mapping):
            return any(self.has_control_tokens(one) for item in value.items() for one in item)
        return isinstance(value, list) and any(self.has_control_tokens(item) for item in value)

    def mark_control_tokens(self, value: Any) -> Any:
        """The same tree with every control token in its strings between two marks; marks of its own are dropped."""
        if isinstance(value, str):
            clean = value.replace(_MARK_START, "").replace(_MARK_END, "")
            return self._control_tokens.sub(f"{_MARK_START}\\g<0>{_MARK_END}", clean)
        if isinstance(value, Mapping):
            return {self.mark_control_tokens(key): self.mark_control_tokens(item) for key, item in value.items()}
        return [self.mark_control_tokens(item) for item in value] if isinstance(value, list) else value

    def _encode(self, text: str, as_text: bool) -> Encoded:
        fields = self.tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=as_text,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,  # no warning about the tokenizer's own maximum: documents are packed later
        )
        offsets = np.array(fields["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        return Encoded(np.array(fields["input_ids"], dtype=np.int32), offsets)
