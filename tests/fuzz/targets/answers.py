"""Answers of an evaluation: a damaged line costs itself alone, and is named; nothing that was read is invented."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from megatron_apriel.evaluate.records import RecordFile, answer_of, failure_of, read_answers

from ..byte_changes import change_bytes
from ..case import Target, Wrong
from ..json_changes import change_value, write_json

NAMES = ("key", "question", "seconds", "content", "reasoning", "calls", "finish", "prompt_tokens", "tokens", "problem",
         "failed", "messages", "end", "user", "name", "arguments", "id")  # fmt: skip
_ANSWER = {"content", "reasoning", "calls", "finish", "prompt_tokens", "tokens", "problem"}
_CONVERSATION = {"messages", "end", "user"}
_FINISH = ("stop", "tool_calls", "length", "content_filter", "interrupted")


class Answers(Target):
    """``answers-1.jsonl``, by which an evaluation knows what it has asked."""

    name = "answers"
    about = "answers of an evaluation that was killed, copied, or whose disk failed"
    guided = "answers-1.jsonl"

    def make(self, directory: Path) -> None:
        """Every case writes its own."""

    def mutate(self, random: Random, directory: Path, changes: int) -> str:
        records: list[Any] = [_record(number) for number in range(6)]
        inside, done = random.randint(0, changes), []
        for _ in range(inside):
            place = random.randrange(len(records))
            records[place], what = change_value(random, records[place], NAMES)
            done.append(f"line {place + 1}: {what}")
        data = "".join(f"{write_json(record)}\n" for record in records).encode("utf-8", "surrogatepass")
        for _ in range(changes - inside):
            data, what = random.choice((change_bytes, _joined, _zeros))(random, data)
            done.append(what)
        (directory / "answers-1.jsonl").write_bytes(data)
        return "; ".join(done)

    def check(self, directory: Path) -> None:
        path = directory / "answers-1.jsonl"
        lines = [line for line in path.read_bytes().split(b"\n")[:-1] if line.strip()]
        found = read_answers(path)
        for key, record in found.records.items():
            if not _is_valid(record) or record["key"] != key:
                raise Wrong(f"{record!r} was read")
            failure_of(record)
            if (answer_of(record) is None) != ("failed" in record):
                raise Wrong(f"{record!r} became an answer")
        whole = [_independent(line) for line in lines]
        for place, records in enumerate(whole):
            for record in records or ():
                later = b"".join(lines[place:])
                if found.records.get(record["key"]) != record and later.count(b'"key"') < 2:
                    raise Wrong(f"{record!r} is lost")
        if all(whole) and found.damage:
            raise Wrong(f"whole lines are called damaged: {found.damage}")
        if (
            not all(whole)
            and f" of {len(lines):,} lines" not in f" {found.damage}"
            and b"\n\n" not in path.read_bytes()
        ):
            raise Wrong(f"{whole.count(None)} damaged lines are not named: {found.damage}")
        with RecordFile(path) as file:
            file.add(_record(9))
        if "9" not in read_answers(path).records:
            raise Wrong("an answer that was added is lost")


def _record(number: int) -> dict[str, Any]:
    shared = {"key": str(number), "question": "0f", "seconds": 0.5}
    if number == 0:
        return shared | {"failed": "no server"}
    answer = shared | {
        "content": "A { [", "reasoning": "", "calls": [{"name": "f", "arguments": "{}", "id": ""}], "finish": "stop",
        "prompt_tokens": 3, "tokens": None, "problem": "",
    }  # fmt: skip
    return answer | {"messages": [{"role": "user"}], "end": "user_stop", "user": "u"} if number == 1 else answer


def _joined(random: Random, data: bytes) -> tuple[bytes, str]:
    places = [place for place, byte in enumerate(data) if byte == 10]
    if not places:
        return data, "no line end to take"
    place = random.choice(places)
    return data[:place] + data[place + 1 :], f"without the line end at {place}"


def _zeros(random: Random, data: bytes) -> tuple[bytes, str]:
    place, size = random.randint(0, len(data)), random.randint(1, 400)
    return data[:place] + bytes(size) + data[place + size * random.randint(0, 1) :], f"{size} zero bytes at {place}"


def _independent(line: bytes) -> list[dict[str, Any]] | None:
    """The records that a line consists of, by rules written down here again; None if there is anything else in it."""
    decoder, records, place = json.JSONDecoder(object_pairs_hook=_object), [], 0
    try:
        text = line.decode("utf-8", "surrogatepass").strip(" \t\r\n")
        while place < len(text):
            record, place = decoder.raw_decode(text, place)
            records.append(record)
    except (ValueError, RecursionError):
        return None
    return records if all(map(_is_valid, records)) else None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name stands twice")
    return dict(pairs)


def _is_valid(record: Any) -> bool:
    if not isinstance(record, dict):
        return False
    rest = record.keys() - {"key", "question", "seconds"}
    if len(record) - len(rest) != 3 or rest not in ({"failed"}, _ANSWER, _ANSWER | _CONVERSATION):
        return False
    texts = {"key", "question", "failed", "content", "reasoning", "problem", "end", "user"} & record.keys()
    seconds, calls = record["seconds"], record.get("calls", [])
    return (
        all(isinstance(record[name], str) for name in texts)
        and isinstance(seconds, int | float)
        and not isinstance(seconds, bool)
        and 0 <= seconds < float("inf")
        and record.get("finish", "stop") in _FINISH
        and all(_is_count(record.get(name)) for name in ("prompt_tokens", "tokens"))
        and isinstance(calls, list)
        and all(isinstance(call, dict) and set(call) | {"id"} == {"name", "arguments", "id"} for call in calls)
        and all(isinstance(value, str) for call in calls for value in call.values())
        and isinstance(record.get("messages", []), list)
        and all(isinstance(message, dict) for message in record.get("messages", []))
    )


def _is_count(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)
