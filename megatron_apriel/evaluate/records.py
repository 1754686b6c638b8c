"""The files that grow: answers and verdicts, a line each, the last line of an item counts.

A process that is killed leaves at most one line cut off; the next one takes it away before it writes on. Whatever else
befalls a file costs the lines that it befalls and no others: a power cut leaves zero bytes, a copy loses a line end, a
hand adds a field. They are passed over and named, and whole records in them are kept. An item without another line is
as one that was not asked, or not scored, yet.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from megatron_apriel.errors import OutputError, brief, listed
from megatron_apriel.formats.growing_files import cut_torn_line, in_ranges
from megatron_apriel.formats.json_files import unique_keys
from megatron_apriel.generate.answer import Answer, FinishReason
from megatron_apriel.generate.asking import Asked
from megatron_apriel.generate.conversation import ToolCall
from megatron_apriel.grading.responses import withheld
from megatron_apriel.grading.verdict import Cause, Mark
from megatron_apriel.inputs import open_input

Record = Mapping[str, Any]
_Fields = Mapping[str, Callable[[Any], bool]]
"""Of a line, each with what its value must be."""
_BETWEEN = re.compile(rb'\0+|(?=\{"key": )')
"""Where a record can begin within a line: quotes in a text are escaped, and so are zero bytes."""
_SHOWN = 200
"""Letters of a problem, and of a list of lines."""


@dataclass(frozen=True)
class Lines:
    """What a file holds.

    Attributes:
        records: the last whole one of each item, by its key.
        damage: which lines hold something else, in two sentences; empty where none does.
    """

    records: Mapping[str, Record] = field(default_factory=dict)
    damage: str = ""


def read_answers(path: Path) -> Lines:
    """Answers and failures; none where there is no file."""
    return _read(path, _fields_of_answer, "asked", "asks")


def read_verdicts(path: Path) -> Lines:
    """Verdicts; none where there is no file."""
    return _read(path, lambda record: _VERDICT, "scored", "scores")


def _read(path: Path, fields_of: Callable[[Record], _Fields], done: str, does: str) -> Lines:
    if not path.exists():
        return Lines()
    found: dict[str, Record] = {}
    damaged: dict[int, str] = {}
    number = 0
    with open_input(path) as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                number -= 1
                break
            records, problem = _whole_records(line, fields_of)
            found |= {record["key"]: record for record in records}
            if problem:
                damaged[number] = problem
    if not damaged:
        return Lines(found)
    first, problem = next(iter(damaged.items()))
    many = f"{len(damaged):,} {'is' if len(damaged) == 1 else 'are'} damaged and passed over"
    which = f"{brief(in_ranges(list(damaged)), _SHOWN)}; line {first}: {brief(problem, _SHOWN)}"
    way_out = f"An item without another line counts as not {done}, and the same command {does} it."
    return Lines(found, f"of {number:,} lines of {path.name}, {many} ({which}). {way_out}")


def _whole_records(line: bytes, fields_of: Callable[[Record], _Fields]) -> tuple[list[Record], str]:
    """The records of a line, one if it is whole, and what is wrong with the rest of it."""
    if not line.strip():
        return [], ""
    try:
        return [_record(line, fields_of)], ""
    except ValueError as error:
        problem = str(error)
    found, parts = [], list(filter(bytes.strip, _BETWEEN.split(line)))
    for part in parts:
        with suppress(ValueError):
            found.append(_record(part, fields_of))
    if b"\0" in line:
        return found, "it has zero bytes"
    return found, problem if len(found) < len(parts) else ""


def _record(text: bytes, fields_of: Callable[[Record], _Fields]) -> Record:
    """The record that a text is. Raises ValueError if it is none, or more than that."""
    try:
        record = json.loads(text.decode("utf-8", "surrogatepass"), object_pairs_hook=unique_keys)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8: {error.reason}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error.msg} at letter {error.pos + 1}") from None
    except RecursionError:
        raise ValueError("lists lie in one another too deep") from None
    if not isinstance(record, dict):
        raise ValueError("it is no JSON object")
    fields = fields_of(record)
    for what, names in (("lacks", fields.keys() - record.keys()), ("has the unknown", record.keys() - fields.keys())):
        if names:
            raise ValueError(f"it {what} {listed(sorted(names))}")
    if wrong := [name for name, fits in fields.items() if not fits(record[name])]:
        raise ValueError(f"its {listed(wrong)} cannot be {brief(json.dumps(record[wrong[0]]))}")
    return record


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _is_count(value: Any) -> bool:
    return value is None or (isinstance(value, int) and _is_number(value))


def _is_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def _is_calls(value: Any) -> bool:
    return _is_objects(value) and all(
        {"name", "arguments"} <= call.keys() <= {"name", "arguments", "id"} and all(map(_is_text, call.values()))
        for call in value
    )


_OUTCOME: _Fields = {"key": _is_text, "question": _is_text, "seconds": _is_number}
_FAILURE: _Fields = {**_OUTCOME, "failed": _is_text}
_ANSWER: _Fields = {
    **_OUTCOME, "content": _is_text, "reasoning": _is_text, "calls": _is_calls, "problem": _is_text,
    "finish": list(FinishReason).__contains__, "prompt_tokens": _is_count, "tokens": _is_count,
}  # fmt: skip
_CONVERSATION: _Fields = {**_ANSWER, "messages": _is_objects, "end": _is_text, "user": _is_text}
_VERDICT: _Fields = {
    "key": _is_text, "mark": list(Mark).__contains__, "cause": list(Cause).__contains__, "reason": _is_text,
    "found": _is_text, "parts": lambda value: isinstance(value, dict), "scorer": _is_text, "mark_of": _is_text,
}  # fmt: skip


def _fields_of_answer(record: Record) -> _Fields:
    if "failed" in record:
        return _FAILURE
    return _CONVERSATION if record.keys() & {"messages", "end", "user"} else _ANSWER


class RecordFile:
    """A file that is written on, by one process at a time; a context manager."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        cut_torn_line(path)
        self._path, self._file = path, path.open("ab")

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # what cannot be written was said
            self._file.close()

    def add(self, record: Record) -> None:
        """Write a line, so that it stays if this process is killed. Raises OutputError."""
        text = json.dumps(record, ensure_ascii=False, default=dict)
        try:
            self._file.write(text.encode("utf-8", "surrogatepass") + b"\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(
                f"{self._path} cannot be written: {error.strerror}.", "What was written before is kept.",
                "Make room for it, and give the same command again.",
            ) from None  # fmt: skip


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


def failure_of(record: Record) -> str:
    """Why a line holds no answer of the model; empty where it does."""
    answer = answer_of(record)
    return str(record["failed"]) or "without a reason" if answer is None else withheld(answer)
