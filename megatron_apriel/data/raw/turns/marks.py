"""Marks that say which words are learned: a turn's weight or flag, and spans of characters of a plain text.

A turn without a mark is learned if it is the assistant's. What its makers say of each mark: ``weight`` of OpenAI's
fine-tuning and of mistral-finetune is 0 or 1; ``train`` and ``training`` are axolotl's; ``loss`` is ms-swift's. None
of them has an exact meaning between 0 and 1 that all trainers share, so such a record is refused.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from megatron_apriel.data.raw.fields.envelopes import OURS
from megatron_apriel.data.raw.fields.meanings import MARKS, MASK, MASKED, SPANS, WEIGHTS
from megatron_apriel.data.raw.fields.taken import Fields, is_nothing
from megatron_apriel.data.raw.problems import BadRecord

_SPELLINGS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def is_learned(turn: Fields, role: str, where: str) -> bool | None:
    """What the marks of a turn say, or None if it has none.

    Raises:
        BadRecord: a mark that cannot be followed, or two that disagree.
    """
    found: dict[str, bool] = {}
    for name in MARKS.names:
        value = turn.take(name)
        if value is not None:
            found[turn.path(name)] = _flag(value, f"{where}: {name}")
    for name in MASKED.names:
        value = turn.take(name)
        if value is not None:
            found[turn.path(name)] = not _flag(value, f"{where}: {name}")
    if len(set(found.values())) > 1:
        raise BadRecord(f"{where}: {' and '.join(found)} disagree about what is learned")
    learned = next(iter(found.values()), None)
    if learned and role != "assistant":
        raise BadRecord(f"{where}: {next(iter(found))} says to learn a turn of the {role}; only the assistant's are")
    return learned


def check_weights(record: Fields) -> None:
    """Raise BadRecord if the record as a whole is marked otherwise than to be learned."""
    for name in WEIGHTS.names:
        value = record.peek(name)
        if isinstance(value, bool | int | float | str) and not is_nothing(value):
            record.take(name)
            if not _flag(value, f"field {record.path(name)!r}"):
                raise BadRecord(f"field {record.path(name)!r} says that the record is not to be learned; leave it out")


def check_mask(record: Fields) -> None:
    """Take the name of the speaker whose turns are not learned, where it is the user's; any other is left."""
    value = record.peek(name := MASK.names[0])
    if isinstance(value, str):
        plain = value.strip().lower()
        if (record.reading.roles.get(plain) or OURS.get(plain)) == "user":
            record.take(name)


def masked_spans(record: Fields, length: int) -> list[tuple[int, int]] | None:
    """First character, and the one behind the last, of each span of a text that is not learned; None without marks.

    Fast-LLM's spans are pairs of the first and the last character.

    Raises:
        BadRecord: other spans than that, beyond the text or over each other.
    """
    name = record.taken_name(*SPANS.names)
    value = record.take(*SPANS.names)
    if value is None:
        return [] if any(record.peek(one) == [] for one in SPANS.names) else None
    pairs: list[Any] = value if isinstance(value, list) else [None]
    if pairs and not isinstance(pairs[0], list | tuple) and len(pairs) % 2 == 0:
        pairs = [pairs[at : at + 2] for at in range(0, len(pairs), 2)]  # as Fast-LLM's reader takes them, too
    spans = []
    for pair in pairs:
        numbers = pair if isinstance(pair, list | tuple) and all(type(one) is int for one in pair) else ()
        if len(numbers) != 2 or not 0 <= numbers[0] <= numbers[1] < length:
            raise BadRecord(f"field {name!r} is not pairs of the first and the last of {length:,} characters: {pair!r}")
        spans.append((numbers[0], numbers[1] + 1))
    spans.sort()
    for before, after in pairwise(spans):
        if after[0] < before[1]:
            raise BadRecord(f"field {name!r} has spans over each other: {before[0]}-{before[1] - 1} and {after[0]}")
    return spans


def _flag(value: Any, what: str) -> bool:
    if isinstance(value, str):
        value = _SPELLINGS.get(value.strip().lower(), value)
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    raise BadRecord(f"{what} is {value!r}: words are learned (1, true) or not (0, false), and nothing between")
