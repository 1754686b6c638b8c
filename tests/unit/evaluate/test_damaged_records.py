"""Damaged lines of answers and verdicts: passed over, counted and named; nothing else is lost, and all is asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_apriel.evaluate.records import RecordFile, read_answers, read_verdicts
from megatron_apriel.testing.chat_servers import whole
from tests.unit.evaluate.conftest import Answering, lines, row, run
from tools import compare

ANSWER: dict[str, Any] = {
    "key": "a", "question": "q", "seconds": 0.5, "content": "Answer: A", "reasoning": "", "calls": [], "finish": "stop",
    "prompt_tokens": 3, "tokens": None, "problem": "",
}  # fmt: skip
FAILURE: dict[str, Any] = {"key": "f", "question": "q", "seconds": 1, "failed": "no server"}
CONVERSATION: dict[str, Any] = ANSWER | {
    "key": "c", "messages": [{"role": "user", "key": "a"}], "end": "user_stop", "user": "somebody",
}  # fmt: skip
VERDICT: dict[str, Any] = {
    "key": "a", "mark": "none", "cause": "slow", "reason": "", "found": "", "parts": {}, "scorer": "letter 4",
    "mark_of": "0",
}  # fmt: skip


def line(record: Any) -> bytes:
    return json.dumps(record).encode() + b"\n"


def test_the_last_line_of_an_item_counts_and_a_torn_one_does_not(tmp_path: Path) -> None:
    path = tmp_path / "answers-1.jsonl"
    assert read_answers(path).records == {}
    with RecordFile(path) as file:
        file.add(ANSWER)
        file.add(ANSWER | {"key": "b", "content": "x" * 200_000})
        file.add(ANSWER | {"content": "\ud800\u2028 and \x00 are letters"})
    with path.open("ab") as torn:
        torn.write(line(ANSWER | {"key": "c", "content": "y" * 200_000})[:-9])
    found = read_answers(path)
    assert {key: record["content"] for key, record in found.records.items()} == {
        "a": "\ud800\u2028 and \x00 are letters", "b": "x" * 200_000,
    }  # fmt: skip
    assert not found.damage
    with RecordFile(path) as file:
        file.add(ANSWER | {"key": "c"})
    assert list(read_answers(path).records) == ["a", "b", "c"] and not read_answers(path).damage


@pytest.mark.parametrize(
    ("damaged", "kept", "said"),
    [
        (line(ANSWER)[:40] + b"\n", "", "it is not JSON"),
        (b"\0" * 5000 + b"\n", "", "it has zero bytes"),
        (b"\0" * 5000 + line(ANSWER), "a", "it has zero bytes"),
        (line(ANSWER)[:40] + b"\0" * 9 + line(CONVERSATION), "c", "it has zero bytes"),
        (line(ANSWER)[:-1] + line(FAILURE), "af", ""),
        (line(ANSWER)[:-1] + line(FAILURE)[:-1] + line(CONVERSATION)[:60] + b"\n", "af", "it is not JSON"),
        (line(ANSWER)[:40] + line(FAILURE), "f", "it is not JSON"),
        (line(CONVERSATION), "c", ""),
        (line(ANSWER)[:-1] + b"\r\n", "a", ""),
        (b"\n  \n", "", ""),
        (b'{"key": "\xff\xfe"}\n', "", "it is not UTF-8"),
        ("\ufeff".encode() + line(ANSWER), "a", "it is not JSON"),
        (json.dumps(ANSWER).encode("utf-16") + b"\n", "", "it has zero bytes"),
        (line(ANSWER).replace(b'"tokens": null', b'"tokens": 1, "tokens": 2'), "", "'tokens' is there twice"),
        (line(ANSWER | {"withdrawn": True}), "", "it has the unknown withdrawn"),
        (line(ANSWER | {"failed": "no"}), "", "it has the unknown calls, content"),
        (line(ANSWER | {"user": "u"}), "", "it lacks end, messages"),
        (line({"key": "a"}), "", "it lacks calls, content, finish, problem, prompt_tokens and 4 more"),
        (line([ANSWER]), "", "it is no JSON object"),
        (b"[" * 100_000 + b"\n", "", "too deep"),
        (line(ANSWER | {"key": 7}), "", "its key cannot be 7"),
        (line(ANSWER | {"content": None}), "", "its content cannot be null"),
        (line(ANSWER | {"finish": "ended"}), "", 'its finish cannot be "ended"'),
        (line(ANSWER | {"tokens": -1}), "", "its tokens cannot be -1"),
        (line(ANSWER | {"tokens": True}), "", "its tokens cannot be true"),
        (line(ANSWER | {"seconds": float("nan")}), "", "its seconds cannot be NaN"),
        (line(ANSWER | {"calls": [{"name": "f"}]}), "", "its calls cannot be"),
        (line(ANSWER | {"calls": [{"name": "f", "arguments": "{}", "id": None}]}), "", "its calls cannot be"),
        (line(CONVERSATION | {"messages": ["hello"]}), "", "its messages cannot be"),
    ],
)
def test_a_damaged_line_costs_itself_alone(tmp_path: Path, damaged: bytes, kept: str, said: str) -> None:
    path = tmp_path / "answers-1.jsonl"
    path.write_bytes(line(ANSWER | {"key": "first"}) + damaged + line(ANSWER | {"key": "last"}))
    found = read_answers(path)
    assert list(found.records) == ["first", *kept, "last"]
    assert bool(found.damage) == bool(said) and said in found.damage
    if said:
        assert found.damage.startswith("of 3 lines of answers-1.jsonl, 1 is damaged and passed over (2; line 2: ")


@pytest.mark.parametrize(
    "changed", [{"mark": "perhaps"}, {"cause": "because"}, {"parts": []}, {"mark_of": None}, {"weight": 2}]
)
def test_damaged_verdicts(tmp_path: Path, changed: dict[str, Any]) -> None:
    path = tmp_path / "verdicts-1.jsonl"
    path.write_bytes(line(VERDICT) + line(VERDICT | {"key": "b"} | changed))
    found = read_verdicts(path)
    assert found.records == {"a": VERDICT} and "the same command scores it" in found.damage


def test_what_damaged_lines_held_is_asked_and_scored_again(
    tmp_path: Path, data: Path, answering: Answering, capsys: pytest.CaptureFixture[str]
) -> None:
    server, out = answering(lambda body: "Answer: A"), tmp_path / "out"
    own = ("--model", server.address)
    assert run(out, data, *own) == 0
    answers, verdicts = (out / "mmlu_pro" / f"{kind}-1.jsonl" for kind in ("answers", "verdicts"))
    whole = answers.read_bytes().splitlines(keepends=True)
    lost = [json.loads(whole[place])["key"] for place in (2, 3, 7)]
    damaged = [*whole[:2], whole[2][:50] + b"\n", whole[3][:60], *whole[4:7], whole[7].replace(b'"stop"', b'"\xff"')]
    answers.write_bytes(b"".join([*damaged, *whole[8:]]))
    scored = verdicts.read_bytes().splitlines(keepends=True)
    verdicts.write_bytes(b"".join([b"\0" * 200 + b"\n", *scored[1:]]))

    assert run(out, data, *own, "--steps", "score,report") == 1
    said = capsys.readouterr()
    found = row(out)
    assert (found["asked"], found["missing"], found["items"]) == (7, 3, 10)
    problem = "MMLU-Pro: of 9 lines of answers-1.jsonl, 3 are damaged and passed over (3-4, 7; line 3: it is not JSON"
    assert problem in said.err and problem in said.out.replace("\n", " ")
    assert "MMLU-Pro: of 10 lines of verdicts-1.jsonl, 1 is damaged" in said.err
    for name in ("report.md", "report.html"):
        assert "are damaged and passed over" in (out / name).read_text(), name
    assert compare.main([str(out)]) == 0
    assert "answers-1.jsonl, 3 are damaged" in capsys.readouterr().out.replace("\n", " ")

    assert run(out, data, *own, "--dry-run") == 0
    dry = capsys.readouterr()
    assert "3 questions (7 are answered)" in dry.out and "3 are damaged" in dry.err
    before = len(server.requests)
    assert run(out, data, *own, "--only-failed") == 0
    found = row(out)
    assert len(server.requests) - before == 3 and (found["right"], found["wrong"], found["missing"]) == (6, 4, 0)
    again = [json.loads(text)["key"] for text in answers.read_bytes().splitlines()[-3:]]
    assert sorted(again) == sorted(lost)
    assert run(out, data, *own) == 0 and len(server.requests) - before == 3


def test_lines_of_another_evaluation_answer_nothing(tmp_path: Path, data: Path, answering: Answering) -> None:
    server, out = answering(lambda body: "Answer: A"), tmp_path / "out"
    assert run(out, data, "--model", server.address, "--limit", "4") == 0
    answers = out / "mmlu_pro" / "answers-1.jsonl"
    with RecordFile(answers) as file:
        for record in lines(answers):
            file.add(record | {"question": "0" * 16})
        file.add(lines(answers)[0] | {"key": "not among these"})
    assert run(out, data, "--model", server.address, "--limit", "4", "--steps", "score,report") == 1
    assert (row(out)["asked"], row(out)["missing"]) == (0, 4)
    assert run(out, data, "--model", server.address, "--limit", "4") == 0
    assert (row(out)["asked"], len(server.requests)) == (4, 8)


@pytest.mark.parametrize("count", [-1, True, 1.5, "7", None, [7]])
def test_what_a_server_counts_wrongly_is_not_known(
    tmp_path: Path, data: Path, answering: Answering, count: Any
) -> None:
    choice = {"index": 0, "message": {"content": "Answer: A"}, "finish_reason": "stop"}
    said = {"choices": [choice], "usage": {"prompt_tokens": count, "completion_tokens": 7}}
    assert run(tmp_path / "out", data, "--model", answering(lambda body: whole(said)).address) == 0
    found = read_answers(tmp_path / "out" / "mmlu_pro" / "answers-1.jsonl")
    assert {(one["prompt_tokens"], one["tokens"]) for one in found.records.values()} == {(None, 7)}
