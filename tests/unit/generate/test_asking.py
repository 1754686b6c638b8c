"""Many questions at once: every one gets an outcome, whatever servers do."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from megatron_apriel.errors import DataError, ServerError
from megatron_apriel.generate import asking, whole_answers
from megatron_apriel.generate.answer import Answer, AnswerStream, FinishReason, Model
from megatron_apriel.generate.asking import Asked, ask_models
from megatron_apriel.generate.conversation import Question, Turn
from megatron_apriel.generate.server import ServerModel
from megatron_apriel.grading.responses import final_response
from megatron_apriel.grading.verdict import Cause, Verdict
from megatron_apriel.testing.chat_servers import AnsweringServer, Reply, ScriptedServer, whole
from megatron_apriel.testing.ports import own_port


def said(text: str, finish: str = "stop", **message: object) -> Reply:
    choice = {"index": 0, "message": {"content": text, **message}, "finish_reason": finish}
    return whole({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 5}})


def jobs(count: int) -> list[tuple[str, Callable[[], Question]]]:
    return [(str(number), lambda number=number: Question((Turn("user", (f"question {number}",)),)))  # type: ignore[misc]
            for number in range(count)]  # fmt: skip


def outcomes(servers: list[ScriptedServer], count: int, **options: int | float) -> dict[str, Asked]:
    models: list[Model] = [ServerModel(server.address) for server in servers]
    done: list[Asked] = []
    ask_models(models, jobs(count), done.append, **options)  # type: ignore[arg-type]
    assert len({one.key for one in done}) == len(done) == count
    return {one.key: one for one in done}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_LONGEST_WAIT", 0.02)


def test_every_question_is_answered_once() -> None:
    with ScriptedServer(said("an answer")) as server:
        found = outcomes([server], 50)
    assert {one.answer.content for one in found.values() if one.answer} == {"an answer"}
    assert sorted(body["messages"][0]["content"] for body in server.requests) == sorted(
        f"question {number}" for number in range(50)
    )
    assert all(body["stream"] is False and "stream_options" not in body for body in server.requests)


def test_servers_share_the_questions() -> None:
    with ScriptedServer(said("first")) as first, ScriptedServer(said("second")) as second:
        found = outcomes([first, second], 60, at_once=2)
    told = [one.answer.content for one in found.values() if one.answer]
    assert told.count("first") == len(first.requests) > 0 and told.count("second") == len(second.requests) > 0


@pytest.mark.parametrize(
    ("text", "finish", "expected"),
    [
        ("Maybe. [BEGIN FINAL RESPONSE] 4 [END FINAL RESPONSE]", "stop", ("Maybe.", "4", FinishReason.STOP)),
        ("Four.", "stop", ("", "Four.", FinishReason.STOP)),
        ("Let me", "length", ("Let me", "", FinishReason.LENGTH)),
    ],
)
def test_answers_are_divided_as_in_a_chat(text: str, finish: str, expected: tuple[str, str, FinishReason]) -> None:
    with ScriptedServer(said(text, finish)) as server:
        answer = outcomes([server], 1)["0"].answer
    assert answer is not None and (answer.reasoning, answer.content, answer.finish) == expected
    assert (answer.prompt_tokens, answer.tokens) == (3, 5)


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("eos_token", FinishReason.STOP), ("STOP", FinishReason.STOP), ("model_length", FinishReason.LENGTH),
        ("safety", FinishReason.FILTERED), ("error", FinishReason.INTERRUPTED), ("abort", FinishReason.INTERRUPTED),
    ],
)  # fmt: skip
def test_ends_have_many_names(reason: str, finish: FinishReason) -> None:
    with ScriptedServer(said("Four.", reason)) as server:
        answer = outcomes([server], 1)["0"].answer
    assert answer is not None and answer.finish is finish and "unknown" not in answer.problem


def test_an_end_that_nobody_knows_is_none_of_a_whole_answer() -> None:
    with ScriptedServer(said("Four.", "out\x1bof\ncheese")) as server:
        answer = outcomes([server], 1)["0"].answer
    assert answer is not None and answer.finish is FinishReason.INTERRUPTED
    assert answer.problem == r"the server ended it for a reason unknown here: out\x1bof\ncheese"
    verdict = final_response(answer)
    assert isinstance(verdict, Verdict) and verdict.cause is Cause.FAILED and answer.problem in verdict.reason


def test_reasoning_in_a_field_of_its_own() -> None:
    with ScriptedServer(said("4", reasoning_content="Two and two.")) as server:
        answer = outcomes([server], 1)["0"].answer
    assert answer is not None and (answer.reasoning, answer.content) == ("Two and two.", "4")


def test_what_may_pass_is_tried_again() -> None:
    busy = whole({"error": {"message": "busy"}}, 503)
    with ScriptedServer(busy, busy, said("yes")) as server:
        found = outcomes([server], 1)
        assert len(server.requests) == 3
    assert found["0"].answer is not None


def test_what_does_not_pass_is_an_outcome_and_the_others_go_on() -> None:
    with ScriptedServer(whole({"message": "too long"}, 400), said("yes")) as server:
        found = outcomes([server], 5, at_once=1)
    assert "too long" in found["0"].problem and found["0"].answer is None
    assert all(found[str(number)].answer for number in range(1, 5))
    with ScriptedServer(whole({"error": {"message": "broken"}}, 500)) as server:
        found = outcomes([server], 2, attempts=3)
        assert len(server.requests) == 6
    assert "broken" in found["1"].problem


@pytest.mark.parametrize("reply", [whole([1]), whole({"choices": "none"}), whole({"error": "broken"}), said("x", "")])
def test_nonsense_is_an_outcome(reply: Reply) -> None:
    with ScriptedServer(reply) as server:
        found = outcomes([server], 2)
    assert all(one.answer is None and one.problem for one in found.values())


def test_a_question_that_cannot_be_made_is_an_outcome() -> None:
    def fail() -> Question:
        raise DataError("the picture is gone.")

    done: list[Asked] = []
    with ScriptedServer(said("yes")) as server:
        ask_models([ServerModel(server.address)], [("bad", fail), *jobs(2)], done.append)
    assert {one.key: one.problem for one in done} == {"bad": "the picture is gone.", "0": "", "1": ""}


def test_a_server_that_goes_away_leaves_its_questions_to_the_others() -> None:
    with ScriptedServer(said("yes")) as there, ScriptedServer(said("gone"), port=own_port()) as gone:
        models: list[Model] = [ServerModel(gone.address), ServerModel(there.address)]
        gone.__exit__()
        done: list[Asked] = []
        ask_models(models, jobs(20), done.append, at_once=2, patience_s=0.1)
        assert [one.answer.content for one in done if one.answer] == ["yes"] * 20


def test_without_any_server_the_rest_stays_unasked() -> None:
    with ScriptedServer(said("yes"), port=own_port()) as server:
        models: list[Model] = [ServerModel(server.address)]
    done: list[Asked] = []
    with pytest.raises(ServerError, match=r"no server can be asked any more: .*cannot be reached"):
        ask_models(models, jobs(20), done.append, patience_s=0.1)
    assert not done


def test_a_server_that_comes_back_in_time_is_used() -> None:
    port = own_port()
    with ScriptedServer(said("yes"), port=port) as server:
        model = ServerModel(server.address)
    back = threading.Event()
    done: list[Asked] = []

    def come_back() -> None:
        with ScriptedServer(said("yes"), port=port):
            back.wait(300)

    thread = threading.Timer(0.3, come_back)
    thread.start()
    ask_models([model], jobs(5), done.append, patience_s=300.0)
    back.set()
    thread.join()
    assert len(done) == 5 and all(one.answer for one in done)


def later(seconds: float, reply: Reply) -> Reply:
    return replace(reply, blocks=[seconds, *reply.blocks])


def test_an_answer_may_take_longer_than_a_stream_may_pause() -> None:
    done: list[Asked] = []
    with ScriptedServer(later(1.0, said("yes"))) as server:
        ask_models([ServerModel(server.address, seconds=0.1)], jobs(2), done.append)
        assert len(server.requests) == 2
    assert [one.answer.content for one in done if one.answer] == ["yes", "yes"]


def test_a_server_that_gives_no_sign_of_life_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_answers, "_SIGN_OF_LIFE_S", 0.1)
    silent = Reply([300.0])
    done: list[Asked] = []
    with ScriptedServer(silent, models=silent) as server:
        ask_models([ServerModel(server.address, "hung", seconds=0.1)], jobs(1), done.append, attempts=2)
        assert len(server.requests) == 2
    assert done[0].answer is None and "gave no sign of an answer" in done[0].problem


def test_an_answer_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_answers, "LONGEST_ANSWER_S", 0.2)
    done: list[Asked] = []
    with ScriptedServer(Reply([300.0])) as server:
        ask_models([ServerModel(server.address, seconds=0.1)], jobs(1), done.append, attempts=1)
    assert done[0].answer is None and "gave no sign of an answer" in done[0].problem


def test_an_answer_without_an_end_is_an_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_answers, "MOST_LINE_BYTES", 1000)
    with ScriptedServer(Reply([b" " * 600] * 100, kind="application/json"), said("yes")) as server:
        found = outcomes([server], 2, at_once=1)
    assert "more than 1,000 bytes" in found["0"].problem and found["1"].answer


def test_what_arrives_damaged_is_asked_again() -> None:
    damaged = Reply([b"no gzip"], 200, "application/json", {"content-encoding": "gzip"})
    with ScriptedServer(damaged, said("yes")) as server:
        found = outcomes([server], 3)
        assert len(server.requests) == 4
    assert all(one.answer for one in found.values())


def test_a_server_that_listens_again_is_not_gone_while_it_answers() -> None:
    with ScriptedServer(said("yes"), port=own_port()) as server:
        model, port = ServerModel(server.address), server._server.server_port
    done: list[Asked] = []
    back: list[ScriptedServer] = []

    def come_back() -> None:
        back.append(ScriptedServer(later(1.0, said("yes")), port=port).__enter__())

    thread = threading.Timer(0.1, come_back)
    thread.start()
    ask_models([model], jobs(2), done.append, patience_s=0.7)
    thread.join()
    back[0].__exit__()
    assert [one.answer.content for one in done if one.answer] == ["yes", "yes"]


BUSY = whole({"error": {"message": "too many"}}, 429)


def test_a_busy_server_costs_a_question_none_of_its_attempts() -> None:
    with ScriptedServer(*[BUSY] * 12, said("yes")) as server:
        found = outcomes([server], 2, attempts=2)
    assert all(one.answer for one in found.values())


def test_a_server_that_asks_for_a_rest_has_one() -> None:
    resting = whole({"error": {"message": "too many"}}, 429, retry_after="30")
    with ScriptedServer(resting, said("first")) as first, ScriptedServer(said("second")) as second:
        found = outcomes([first, second], 20, at_once=1)
        assert (len(first.requests), len(second.requests)) == (1, 20)
    assert all(one.answer for one in found.values())


def test_a_server_that_stays_busy_leaves_the_rest_unasked() -> None:
    done: list[Asked] = []
    with ScriptedServer(BUSY) as server, pytest.raises(ServerError, match=r"asked any more: .*answered 429: too many"):
        ask_models([ServerModel(server.address)], jobs(20), done.append, busy_s=0.1)
    assert not done


def test_a_server_that_answers_one_question_and_takes_no_other_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_SLOW_REFUSAL_S", 0.05)
    first = threading.Event()

    def answer(body: dict[str, Any]) -> Reply:
        if body["messages"][0]["content"] == "question 0":
            first.set()
            return later(1.0, said("yes"))
        first.wait(300)
        return BUSY

    done: list[Asked] = []
    with AnsweringServer(answer) as server, pytest.raises(ServerError, match="answered 429"):
        ask_models([ServerModel(server.address)], jobs(2), done.append, at_once=2, busy_s=0.2)
    assert [one.key for one in done if one.answer] == ["0"]


@pytest.mark.parametrize("status", [401, 404])
def test_a_server_that_refuses_everything_leaves_the_rest_unasked(status: int) -> None:
    done: list[Asked] = []
    refusal = whole({"error": {"message": "the model `old` does not exist"}}, status)
    with ScriptedServer(said("yes"), refusal) as server, pytest.raises(ServerError, match=f"{status}: the model `old`"):
        ask_models([ServerModel(server.address)], jobs(20), done.append, at_once=1)
    assert [one.key for one in done] == ["0"]


def test_other_models_are_asked_one_by_one() -> None:
    class Alone(Model):
        name = "alone"

        def stream(self, question: Question) -> AnswerStream:
            raise AssertionError("answers are asked for whole")

        def answer(self, question: Question) -> Answer:
            if question.turns[0].text.endswith("1"):
                raise DataError("it has a picture, and reads none.")
            return Answer("", "yes", finish=FinishReason.STOP)

        def close(self) -> None:
            pass

    done: list[Asked] = []
    ask_models([Alone()], jobs(3), done.append)
    assert [(one.key, one.problem) for one in done] == [
        ("0", ""),
        ("1", "it has a picture, and reads none."),
        ("2", ""),
    ]
