"""One published set of records: what it holds, what must become of it, and what several sets say alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.unit.data.corpus.written_documents import Written, chat, said, user

ASKED, ANSWERED = "Which colour?", "Red."
QUESTION_AND_ANSWER = chat(user(ASKED), said(ANSWERED))
BARE_TIDE = {"name": "tide", "description": "d", "parameters": {"place": {"type": "string"}}}


@dataclass(frozen=True)
class Published:
    """A set: its records, what they become, and which fields the summary says were not used.

    Attributes:
        records: lines, or rows of a Parquet file.
        documents: what becomes of each.
        unused: paths with counts, where that is what the case shows.
        parquet: whether the records are rows.
        maps: pairs of --map.
    """

    records: list[dict[str, Any]]
    documents: list[Written]
    unused: dict[str, int] | None = None
    parquet: bool = False
    maps: tuple[str, ...] = field(default_factory=tuple)


def one(record: dict[str, Any], document: Written, unused: dict[str, int] | None = None, **more: Any) -> Published:
    return Published([record], [document], unused, **more)
