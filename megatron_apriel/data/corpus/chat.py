"""The chat format: one Jinja template, rendered by transformers here and in the exported checkpoint alike.

``chat_template.jinja`` beside this file is the only description of the format. A conversation is rendered once, as a
whole, by transformers' own renderer, and the rendered text is tokenised once; ids therefore equal
``tokenizer.apply_chat_template`` by construction, with no second implementation that could drift. The template marks
what the model itself would have written with ``{% generation %}`` blocks; the renderer reports their characters, the
tokenizer reports the characters of each token, and a token that overlaps a block carries the loss on responses.

A turn is ``<|role|>``, newline, content, newline, ``<|end|>``, newline. A last turn of the assistant opens with
``Here are my reasoning steps:``, which the generation prompt also ends with, so it is not the model's to predict;
reasoning, final response, ``<|end|>`` and the closing ``</s>``, at which servers stop, are. Earlier turns of the
assistant show their final response only, as they will when the conversation is continued; they carry loss as well.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from megatron_apriel.data.corpus.format import ImageRecord, image_block
from megatron_apriel.data.corpus.tokens import TokenTable
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.read_limits import DEFAULT_LIMITS
from megatron_apriel.quantities import counted

MOST_MESSAGES = 10_000
"""Of a conversation; transformers renders them in time that grows with the square of their number."""

IMAGE_MARKER = "\ufdd2"
"""Of an image in a plain document's ``text``; a code point that no text in use contains."""
ALIKE_TEMPLATES = frozenset({
    # Did not cut an answer at [END FINAL RESPONSE] in every branch, which is for what clients send back.
    "1df2c597ea0a1ac622a6a7d8a12f4215129a86dd8cb8ade9cf227922b9463e09",
    # Wrote tools as they were given, with the fields that servers add, and in their order.
    "824e9a57c1564b0661299479a8a84c11ae0b656a4b791dd7df589add53f0a4b2",
})  # fmt: skip
"""Digests of earlier templates that rendered what was prepared to the same tokens; their corpora are as good."""

_GENERATION_TAG = re.compile(r"\s*\{%-\s*(?:end)?generation\s*-%\}\n?")


@dataclass(frozen=True)
class EncodedDocument:
    """One document, ready for the corpus.

    Attributes:
        tokens: int32 [N], image tokens already expanded.
        responses: bool [N], tokens that the model itself would have written.
        image_starts: index of the first token of each image.
        text: what was tokenised, each image a marker in it.
    """

    tokens: np.ndarray
    responses: np.ndarray
    image_starts: tuple[int, ...] = ()
    text: str = ""


@cache
def chat_template() -> str:
    """The Jinja template, with the ``{% generation %}`` blocks that say which text is the model's own."""
    return resources.files("megatron_apriel.data.corpus").joinpath("chat_template.jinja").read_text(encoding="utf-8")


@cache
def exported_chat_template() -> str:
    """The same template without the ``generation`` tags, which renderers other than transformers may not know.

    Renders every conversation to the same text; this is what a checkpoint is exported with.
    """
    return _GENERATION_TAG.sub("\n", chat_template())


@cache
def exported_template_digest() -> str:
    """SHA-256 of the template, by which a corpus remembers how its conversations were rendered."""
    return hashlib.sha256(exported_chat_template().encode()).hexdigest()


def renders_alike(digest: str) -> bool:
    """Whether the template of this digest rendered what was prepared as the exported one does; "" is not known."""
    return digest in ("", exported_template_digest(), *ALIKE_TEMPLATES)


def render_chat(
    messages: Sequence[dict[str, Any]],
    tools: Sequence[dict[str, Any]] | None = None,
    *,
    bos_token: str = "<s>",
    eos_token: str = "</s>",
    generation_prompt: bool = False,
) -> tuple[str, list[tuple[int, int]]]:
    """Render a conversation and report which characters the model itself would have written.

    Args:
        messages: dictionaries with ``role`` and ``content``, as for ``tokenizer.apply_chat_template``.
        tools: JSON schemas of the tools that the system turn offers.
        bos_token, eos_token: as in the tokenizer.
        generation_prompt: end with the opening of the assistant's answer.

    Returns:
        The text, and pairs of first character and the one after the last.

    Raises:
        BadRecord: an unknown role or content part, or an image where none may stand.
    """
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered, spans = render_jinja_template(
            conversations=[list(messages)],
            tools=list(tools) if tools else None,
            chat_template=chat_template(),
            return_assistant_tokens_mask=True,
            bos_token=bos_token,
            eos_token=eos_token,
            add_generation_prompt=generation_prompt,
        )
    except (jinja2.TemplateError, TypeError) as error:
        raise BadRecord(f"the chat template refuses the conversation: {error}") from None
    return rendered[0], spans[0]


def encode_chat(
    table: TokenTable,
    messages: Sequence[dict[str, Any]],
    tools: Sequence[dict[str, Any]] | None = None,
    grids: Sequence[tuple[int, int]] = (),
    most_characters: int = DEFAULT_LIMITS.text_characters,
    *,
    learned: Sequence[bool] = (),
    generation_prompt: bool = False,
) -> EncodedDocument:
    """Turn a conversation into ids, response flags and image positions.

    Args:
        table: tokenizer and ids.
        messages, tools: see :func:`render_chat`; an image is a part of type ``image``, its pixels are not looked at.
        grids: rows and columns of patches of each image, in the order of their parts.
        most_characters: of the rendered text.
        learned: for each message of the assistant, whether its tokens are responses; all are, if it is empty.
        generation_prompt: end with the opening of an answer, for the model to go on.

    Raises:
        BadRecord: the template refuses the conversation, ``grids`` does not match its images, or it is too long.
    """
    if len(messages) > MOST_MESSAGES:
        raise BadRecord(f"it has {len(messages):,} messages, more than {MOST_MESSAGES:,}")
    _check_length(_characters([*messages, *(tools or ())]), most_characters)
    marked = table.has_control_tokens(list(messages)) or table.has_control_tokens(list(tools or ()))
    if marked:
        messages, tools = table.mark_control_tokens(list(messages)), table.mark_control_tokens(list(tools or ()))
    tokenizer = table.tokenizer
    text, spans = render_chat(
        messages,
        tools,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        generation_prompt=generation_prompt,
    )
    _check_length(len(text), most_characters)
    if learned:
        spans = [span for span, wanted in zip(spans, learned, strict=True) if wanted]
    encoded = table.encode_rendered(text, marked)
    responses = response_flags(encoded.offsets, spans)
    return replace(expand_images(encoded.ids, responses, grids, table.images), text=text)


def encode_text(
    table: TokenTable,
    parts: Sequence[str | None],
    grids: Sequence[tuple[int, int]] = (),
    most_characters: int = DEFAULT_LIMITS.text_characters,
    learned: Sequence[bool] | None = None,
) -> EncodedDocument:
    """Turn a plain document into ids: ``<s>``, the text, ``</s>``.

    No token of it is a response, unless the document says itself what is learned of it: then the tokens of those parts
    are, and ``</s>`` with the last part. Parts are tokenised one by one, so no token belongs to two.

    Args:
        table: tokenizer and ids.
        parts: pieces of text, with None for each image between them.
        grids: rows and columns of patches of each image.
        most_characters: of all pieces.
        learned: whether each part is learned.

    Raises BadRecord if it is longer, or has images that the model or ``grids`` has not.
    """
    _check_length(_characters(list(parts)), most_characters)
    pieces = [np.array([table.bos_id], dtype=np.int32)]
    flags = [False, *(learned if learned is not None else [False] * len(parts))]
    for part in parts:
        if part is not None:
            pieces.append(table.encode_text(part))
        elif table.images is None:
            raise BadRecord("it has an image, and the model has no vision tower")
        else:
            pieces.append(np.array([table.images.image_token_id], dtype=np.int32))
    pieces.append(np.array([table.eos_id], dtype=np.int32))
    responses = np.repeat([*flags, flags[-1]], list(map(len, pieces)))
    text = "".join(IMAGE_MARKER if part is None else part for part in parts)
    return replace(expand_images(np.concatenate(pieces), responses, grids, table.images), text=text)


def response_flags(offsets: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """bool [N]: from the first to the last token that overlaps a span, for every span.

    Args:
        offsets: int64 [N, 2], ascending, characters of each token.
        spans: pairs of first character and the one after the last.
    """
    flags = np.zeros(len(offsets), dtype=bool)
    bounds = np.array(spans, dtype=np.int64).reshape(-1, 2)
    first = np.searchsorted(offsets[:, 1], bounds[:, 0], side="right")
    behind = np.searchsorted(offsets[:, 0], bounds[:, 1], side="left")
    for begin, end in zip(first.tolist(), behind.tolist(), strict=True):
        flags[begin:end] = True
    return flags


def _characters(value: Any) -> int:
    """Of all strings in a tree of lists and dictionaries."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(_characters(one) for item in value.items() for one in item)
    return sum(map(_characters, value)) if isinstance(value, list) else 0


def _check_length(characters: int, most: int) -> None:
    if characters > most:
        raise BadRecord(f"it has {characters:,} characters, more than {most:,}; --max-text allows more")


def expand_images(
    tokens: np.ndarray,
    responses: np.ndarray,
    grids: Sequence[tuple[int, int]],
    record: ImageRecord | None,
) -> EncodedDocument:
    """Replace the one ``[IMG]`` token of each image by its rows of tokens; none of them is a response."""
    places = [] if record is None else np.flatnonzero(tokens == record.image_token_id).tolist()
    if len(places) != len(grids):
        places_of = counted(len(places), "place")
        raise BadRecord(f"the text has {places_of} for images, and the record has {counted(len(grids), 'image')}")
    if record is None or not places:
        return EncodedDocument(tokens, responses)
    token_pieces, flag_pieces, starts, done, length = [], [], [], 0, 0
    for place, (rows, columns) in zip(places, grids, strict=True):
        image = image_block(rows, columns, record)
        starts.append(length + place - done)
        token_pieces += [tokens[done:place], image]
        flag_pieces += [responses[done:place], np.zeros(len(image), dtype=bool)]
        length, done = starts[-1] + len(image), place + 1
    return EncodedDocument(
        np.concatenate([*token_pieces, tokens[done:]]),
        np.concatenate([*flag_pieces, responses[done:]]),
        tuple(starts),
    )
