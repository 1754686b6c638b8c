"""A question and its answer as a raw record, with what a test adds to it; and that a record is refused."""

from __future__ import annotations

from typing import Any

import pytest

from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.data.raw.records.conversion import parse_record, recognise

ASKED = {"role": "user", "content": "Which colour?"}
ANSWERED = {"role": "assistant", "content": "Red."}


def chat(*turns: dict[str, Any], **beside: Any) -> dict[str, Any]:
    return {"messages": list(turns or (ASKED, ANSWERED)), **beside}


def answer(content: Any = "Red.", **fields: Any) -> dict[str, Any]:
    return chat(ASKED, {"role": "assistant", "content": content, **fields})


def asked(content: Any, **fields: Any) -> dict[str, Any]:
    return chat({"role": "user", "content": content, **fields}, ANSWERED)


def check_refused(record: dict[str, Any], message: str) -> None:
    shape = recognise(record)
    assert shape is not None
    with pytest.raises(BadRecord, match=message):
        parse_record(record, shape)
