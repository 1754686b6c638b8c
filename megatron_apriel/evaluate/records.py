"""The files that grow: answers and verdicts, a line each, the last line of an item counts.

A process that is killed leaves at most one line cut off; the next one takes it away before it writes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from megatron_apriel.errors import DataError
from megatron_apriel.formats.growing_files import cut_torn_line
from megatron_apriel.generate.answer import Answer, FinishReason
from megatron_apriel.generate.asking import Asked
from megatron_apriel.generate.conversation import ToolCall
from megatron_apriel.inputs import open_input

Record = Mapping[str, Any]


def read_records(path: Path) -> dict[str, Record]:
    """The last line of each item by its key; none where there is no file. Raises DataError for a damaged one."""
    if not path.exists():
        return {}
    found: dict[str, Record] = {}
    with open_input(path) as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                record = json.loads(line)
                found[record["key"]] = record
            except (ValueError, KeyError, TypeError):
                raise DataError(f"line {number} of {path} is damaged.", fix="Remove it, or the file.") from None
    return found


class RecordFile:
    """A file that is written on, by one process at a time; a context manager."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_torn_line(path)
        self._file = path.open("ab")

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, record: Record) -> None:
        """Write a line, so that it stays if this process is killed."""
        text = json.dumps(record, ensure_ascii=False, default=dict)
        self._file.write(text.encode("utf-8", "surrogatepass") + b"\n")
        self._file.flush()


def record_of(asked: Asked) -> dict[str, Any]:
    """What the line of an outcome holds beside the item's key and the mark of its question."""
    record: dict[str, Any] = {"seconds": round(asked.seconds, 3)}
    if asked.answer is None:
        return record | {"failed": asked.problem}
    answer = asked.answer
    return record | {
        "content": answer.content, "reasoning": answer.reasoning, "calls": [vars(call) for call in answer.calls],
        "finish": answer.finish.value, "prompt_tokens": answer.prompt_tokens, "tokens": answer.tokens,
        "problem": answer.problem,
    }  # fmt: skip


def answer_of(record: Record) -> Answer | None:
    """The answer in a line; None for a failure."""
    if "failed" in record:
        return None
    return Answer(
        record["reasoning"], record["content"], tuple(ToolCall(**call) for call in record["calls"]),
        FinishReason(record["finish"]), record["prompt_tokens"], record["tokens"], record["problem"],
    )  # fmt: skip
