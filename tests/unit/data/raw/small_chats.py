"""A question and its answer as a raw record, with fields beside them that a test adds."""

from __future__ import annotations

from typing import Any

ASKED = {"role": "user", "content": "Which colour?"}
ANSWERED = {"role": "assistant", "content": "Red."}


def chat(*turns: dict[str, Any], **beside: Any) -> dict[str, Any]:
    return {"messages": list(turns or (ASKED, ANSWERED)), **beside}


def answer(content: Any = "Red.", **fields: Any) -> dict[str, Any]:
    return chat(ASKED, {"role": "assistant", "content": content, **fields})


def asked(content: Any, **fields: Any) -> dict[str, Any]:
    return chat({"role": "user", "content": content, **fields}, ANSWERED)
