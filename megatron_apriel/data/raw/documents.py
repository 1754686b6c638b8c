"""What a raw record becomes: plain text or a conversation, with its images, and what is to be said about it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ImageValue = str | bytes | Mapping[str, Any]
"""An image as a record gives it; ``ImageLoader`` turns it into bytes."""


@dataclass(frozen=True)
class Remarks:
    """What the summary says about a document.

    Attributes:
        unused: dotted paths of fields that were not used, with how often each stood there.
        reasoning: its last turn shows some.
        hidden_reasoning: earlier turns that had some, which the chat format does not show.
        unrecognised: an answer looks as if it held reasoning in a spelling that is not known.
        marked: it says itself which of its words are learned.
    """

    unused: Counter[str] = field(default_factory=Counter)
    reasoning: bool = False
    hidden_reasoning: int = 0
    unrecognised: bool = False
    marked: bool = False


@dataclass(frozen=True)
class TextDocument:
    """Plain text.

    Attributes:
        parts: strings, and None where the next image stands.
        images: in order.
        learned: whether each part is learned, where the record says so.
        remarks: for the summary.
    """

    parts: tuple[str | None, ...]
    images: tuple[ImageValue, ...] = ()
    learned: tuple[bool, ...] | None = None
    remarks: Remarks = field(default_factory=Remarks, compare=False)


@dataclass(frozen=True)
class Conversation:
    """Messages as the chat template reads them.

    Attributes:
        messages: an image is a part ``{"type": "image"}``, its data in ``images``.
        tools: schemas.
        images: in the order of their parts.
        learned: for each message of the assistant, whether it is learned.
        remarks: for the summary.
    """

    messages: tuple[dict[str, Any], ...]
    tools: tuple[dict[str, Any], ...] = ()
    images: tuple[ImageValue, ...] = ()
    learned: tuple[bool, ...] = ()
    remarks: Remarks = field(default_factory=Remarks, compare=False)
