"""The command, cut off by kill -9, a signal while questions are out, or a server that is gone: what it keeps."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron_apriel.errors import DataError, OutputError, ServerError
from megatron_apriel.testing.chat_servers import Reply
from tests.unit.evaluate.conftest import (
    TOOL,
    Answering,
    AnsweringUntil,
    lines,
    row,
    run,
    started,
    wait_until,
    write_lines,
)


def test_a_killed_command_goes_on(tmp_path: Path, data: Path, answering: Answering) -> None:
    write_lines(data / "mmlu_pro" / "test.jsonl", [
        {"question_id": number, "question": f"What is {number}?", "options": ["so", "no"], "answer": "A",
         "category": "law"}
        for number in range(200)
    ])  # fmt: skip

    answer = AnsweringUntil(25, "Answer: A")
    server = answering(answer)
    out = tmp_path / "out"
    words = ("--model", server.address, "--benchmarks", "mmlu_pro", "--data", str(data), "--at-once", "2")
    with started([TOOL, str(out), *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        answers = out / "mmlu_pro" / "answers-1.jsonl"
        wait_until(lambda: answers.exists() and answers.read_bytes().count(b"\n") == 25)
        wait_until(lambda: len(server.requests) == 25 + 2)  # so that none arrives later
        process.send_signal(signal.SIGKILL)
    with answers.open("ab") as file:
        file.write(b'{"key": "torn')
    answer.goes_on.set()
    assert run(out, data, "--model", server.address, "--at-once", "2") == 0
    assert row(out)["right"] == 200
    assert len(server.requests) == 25 + 2 + 175
    assert len(lines(answers)) == 200


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_while_questions_are_out(tmp_path: Path, data: Path, answering: Answering, number: int,
                                          code: int) -> None:  # fmt: skip
    came, over = threading.Event(), threading.Event()

    def never(body: dict[str, Any]) -> str:
        came.set()
        over.wait(300)
        return "Answer: A"

    words = ("--benchmarks", "mmlu_pro", "--data", str(data), "--model", answering(never).address)
    with started([TOOL, str(tmp_path / "out"), *words], stderr=subprocess.PIPE) as process:
        assert came.wait(300)
        process.send_signal(number)
        said = process.communicate()[1]
        over.set()
    assert process.returncode == code, said
    assert "Traceback" not in said and "exception" not in said
    assert "what was answered and scored is kept: the same command goes on" in said


def test_a_server_that_is_gone_keeps_what_was_answered(tmp_path: Path, data: Path, answering: Answering,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    from megatron_apriel.evaluate import running

    def impatient(models: Sequence[Any], jobs: Any, done: Any, **options: Any) -> None:
        asking(list(models), jobs, done, **options, patience_s=0.1)

    asking = running.ask_models
    monkeypatch.setattr(running, "ask_models", impatient)
    server = answering(lambda body: "Answer: A")
    original = server.reply

    def reply(body: dict[str, Any]) -> Reply:
        if len(server.requests) > 4:
            server._server.socket.close()
        return original(body)

    monkeypatch.setattr(server, "reply", reply)
    with pytest.raises(ServerError):
        run(tmp_path / "out", data, "--model", server.address, "--at-once", "1")
    assert 0 < len(lines(tmp_path / "out" / "mmlu_pro" / "answers-1.jsonl")) < 10


LIMITED = (
    "import resource, runpy, sys; size = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)); "
    "sys.argv = sys.argv[2:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("", "items.jsonl: File too large"),
        ("load", "answers-1.jsonl cannot be written: File too large.\n  What was written before is kept."),
        ("load,ask", "verdicts-1.jsonl cannot be written: File too large."),
        ("load,ask,score", "report.html: File too large"),
    ],
)
def test_a_full_disk_is_said_and_the_same_command_goes_on(
    tmp_path: Path, data: Path, answering: Answering, before: str, said: str
) -> None:
    server, out = answering(lambda body: "Answer: A"), tmp_path / "out"
    own = ("--model", server.address)
    if before:
        run(out, data, *own, "--steps", before)
    words = [TOOL, str(out), "--benchmarks", "mmlu_pro", "--data", str(data), *own, "--at-once", "4"]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started(["-c", LIMITED, "1200", *words], **how) as process:
        errors = process.communicate()[1]
    assert process.returncode == 1 and said in errors and "Traceback" not in errors and "exception" not in errors
    assert not (out / "report.json").exists(), "it says that all of an evaluation is there"
    asked = len(server.requests)
    assert run(out, data, *own) == 0
    assert (row(out)["right"], row(out)["missing"]) == (6, 0)
    assert len(server.requests) - asked < 10 or not before
    assert not [path for path in out.rglob("*") if path.name.startswith(".")]


@pytest.mark.parametrize("name", ["file", "file/below", "loop", "/proc/evaluation"])
def test_a_place_that_cannot_be_is_said(tmp_path: Path, data: Path, answering: Answering, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    server = answering(lambda body: "Answer: A")
    for more in ((), ("--dry-run",))[: 1 if name.startswith("/") else 2]:
        with pytest.raises(OutputError):
            run(tmp_path / name, data, "--model", server.address, *more)
    assert not server.requests


def test_items_that_are_not_all_there_are_refused(tmp_path: Path, data: Path, answering: Answering) -> None:
    server, out = answering(lambda body: "Answer: A"), tmp_path / "out"
    own = ("--model", server.address)
    assert run(out, data, *own) == 0
    items = out / "mmlu_pro" / "items.jsonl"
    items.write_bytes(b"".join(items.read_bytes().splitlines(keepends=True)[:7]))
    with pytest.raises(
        DataError, match=r"items\.jsonl has 7 of 10\.(?s:.*)Remove .*items\.json: they are loaded again"
    ):
        run(out, data, *own)
    (out / "mmlu_pro" / "items.json").unlink()
    assert run(out, data, *own) == 0 and len(server.requests) == 10


def test_what_was_killed_while_it_wrote_its_settings_begins_anew(
    tmp_path: Path, data: Path, answering: Answering
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    host = "".join(letter if letter.isalnum() else "_" for letter in os.uname().nodename)[:64]
    for name in (f".partial-{host}-99999999-1-settings.json", ".partial-elsewhere-7-1-settings.json"):
        (out / name).write_text("{")
    assert run(out, data, "--model", answering(lambda body: "Answer: A").address) == 0
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == [
        ".partial-elsewhere-7-1-settings.json"
    ]
