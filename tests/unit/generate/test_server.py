"""Answers of servers that divide them in different ways, and of addresses that answer something else."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import httpx
import pytest
from PIL import Image

from megatron_apriel.errors import ConfigError, ServerError
from megatron_apriel.generate import server_events
from megatron_apriel.generate.answer import Answer, FinishReason, Part
from megatron_apriel.generate.conversation import Picture, Question, Sampling, ToolCall, Turn
from megatron_apriel.generate.server import ServerModel, asked_to_wait
from megatron_apriel.testing.chat_servers import Reply, ScriptedServer, streamed, whole
from megatron_apriel.testing.ports import own_port

ASKED = Question([Turn("user", ("Why?",))])
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
CALL = ToolCall("f", '{"x": 1}', "id_1")
USAGE = {"prompt_tokens": 7, "completion_tokens": 5}
NO_RESPONSE = "there is no [BEGIN FINAL RESPONSE]: the answer ends in its reasoning"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited for; no time passes."""
    seconds: list[float] = []
    monkeypatch.setattr("megatron_apriel.generate.server.sleep", seconds.append)
    return seconds


def letters(text: str, name: str = "content") -> Iterator[dict[str, Any]]:
    return ({name: letter} for letter in text)


def call_delta(**function: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": 0, "id": CALL.id if "name" in function else None, "function": function}]}


RAW = "Hm.\n[BEGIN FINAL RESPONSE]\nSo.\n[END FINAL RESPONSE]\n<|end|>"
CALLING = (
    'Hm.\n[BEGIN FINAL RESPONSE]\n<tool_calls>[{"name": "f", "arguments": {"x": 1}}]</tool_calls>\n[END FINAL RESPONSE]'
)

ANSWERS = {
    "as the model wrote it": (streamed(*letters(RAW), usage=USAGE), Answer("Hm.", "So.", (), FinishReason.STOP, 7, 5)),
    "reasoning in a field": (
        streamed(*letters("Hm.\n", "reasoning_content"), *letters("So.")), Answer("Hm.", "So.", (), FinishReason.STOP),
    ),
    "reasoning in vLLM's field": (
        streamed({"role": "assistant", "content": ""}, *letters("Hm.", "reasoning"), {"content": "So."}),
        Answer("Hm.", "So.", (), FinishReason.STOP),
    ),
    "reasoning in a field and an end left": (
        streamed(*letters("Hm.", "reasoning_content"), *letters("\nSo.\n[END FINAL RESPONSE]\n<|end|>")),
        Answer("Hm.", "So.", (), FinishReason.STOP),
    ),
    "calls in fields": (
        streamed({"reasoning": "Hm."}, call_delta(name="f", arguments=""), call_delta(arguments='{"x"'),
                 call_delta(arguments=": 1}"), finish="tool_calls"),
        Answer("Hm.", "", (CALL,), FinishReason.CALLS),
    ),
    "calls in text": (
        streamed(*letters(CALLING)), Answer("Hm.", "", (ToolCall("f", '{"x": 1}'),), FinishReason.CALLS),
    ),
    "cut in the reasoning": (
        streamed(*letters("Hm"), finish="length"), Answer("Hm", "", (), FinishReason.LENGTH, problem=NO_RESPONSE),
    ),
    "cut in the reasoning's field": (
        streamed({"reasoning": "Hm"}, finish="length"), Answer("Hm", "", (), FinishReason.LENGTH, problem=NO_RESPONSE),
    ),
    "another format": (streamed(*letters("So it is.")), Answer("", "So it is.", (), FinishReason.STOP)),
    "in one piece": (
        whole({"choices": [{"message": {"content": RAW}, "finish_reason": "stop"}], "usage": USAGE}),
        Answer("Hm.", "So.", (), FinishReason.STOP, 7, 5),
    ),
    "events in another spelling": (
        Reply([b': ping\r\n\r\nevent: x\r\ndata:{"choices": [{"delta": {"content":\r\n',
               b'data: "[BEGIN FINAL RESPONSE]So."}, "finish_reason": "eos"}]}\r\n\r\n']),
        Answer("", "So.", (), FinishReason.STOP),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_are_the_same_whoever_divides_them(name: str) -> None:
    reply, expected = ANSWERS[name]
    with ScriptedServer(reply) as server, ServerModel(server.address) as model, model.stream(ASKED) as stream:
        pieces = list(stream)
    assert stream.answer == expected
    joined = {part: "".join(piece.text for piece in pieces if piece.part is part) for part in Part}
    if name != "another format":
        assert (joined[Part.REASONING], joined[Part.CONTENT]) == (expected.reasoning, expected.content)
    if expected.calls:
        assert json.loads(joined[Part.CALLS]) == [{"name": "f", "arguments": {"x": 1}}]


def test_pieces_come_before_the_answer_is_whole() -> None:
    first = streamed({"content": "I think"}, {"content": " hard"}, finish=None)
    with ScriptedServer(Reply([*first.blocks, 60.0])) as server, ServerModel(server.address) as model:
        with model.stream(ASKED) as stream:
            assert [piece.text for piece in islice(stream, 2)] == ["I think", " hard"]
        assert stream.answer == Answer("I think hard", finish=FinishReason.INTERRUPTED)


def test_a_model_of_another_format_is_shown_as_content_from_its_second_answer_on() -> None:
    replies = (streamed({"content": "One."}), streamed({"content": "Two."}), streamed({"content": RAW}))
    with ScriptedServer(*replies) as server, ServerModel(server.address) as model:
        parts = [[(piece.part.value, piece.text) for piece in model.stream(ASKED)] for _ in range(2)]
        assert parts == [[("reasoning", "One.")], [("content", "Two.")]]
        assert model.answer(ASKED) == Answer("Hm.", "So.", (), FinishReason.STOP)
    with ScriptedServer(replies[0]) as server, ServerModel(server.address, trained=True) as model:
        assert model.answer(ASKED).reasoning == "One."
    with ScriptedServer(replies[0]) as server, ServerModel(server.address, trained=False) as model:
        assert [piece.part for piece in model.stream(ASKED)] == [Part.CONTENT]


def test_what_is_asked() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(buffer, "PNG")
    picture = Picture.from_bytes(buffer.getvalue())
    turns = [
        Turn("system", ("Be brief.",)),
        Turn("user", (picture, "What?")),
        Turn("assistant", (), (ToolCall("f", "{}"), ToolCall("f", '{"x": 2}'))),
        Turn("tool", ("one",)),
        Turn("tool", ("two",)),
        Turn("assistant", ("So.",), (CALL,)),
        Turn("tool", ("three",), result_of=CALL.id),
    ]
    sampling = Sampling(greedy=True, max_tokens=9, temperature=0.5, seed=3)
    with (
        ScriptedServer(streamed({"content": "x"})) as server,
        ServerModel(server.address + "/v1/", key="secret") as model,
    ):
        model.answer(Question(turns, TOOLS, sampling))
        model.answer(Question(turns[:1], (), Sampling(temperature=0.5, top_p=0.9)))
    first, second = server.requests
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert first["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": picture.url}},
                                     {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"id": "call_2", "type": "function", "function": {"name": "f", "arguments": '{"x": 2}'}}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "one"},
        {"role": "tool", "tool_call_id": "call_2", "content": "two"},
        {"role": "assistant", "content": "So.", "tool_calls": [
            {"id": "id_1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]},
        {"role": "tool", "tool_call_id": "id_1", "content": "three"},
    ]  # fmt: skip
    assert picture.url.startswith("data:image/png;base64,iVBOR")
    assert {"temperature": 0, "max_tokens": 9, "seed": 3, "tools": TOOLS, "model": "scripted"}.items() <= first.items()
    assert "top_p" not in first and "tools" not in second
    assert (second["temperature"], second["top_p"]) == (0.5, 0.9)


REFUSALS = {
    "nothing of the protocol": (Reply([b"<html>It works!"], kind="text/html"), "text/html instead of JSON: <html>It"),
    "no JSON in an event": (Reply([b"data: {]\n\n"]), "text/event-stream instead of JSON"),
    "another JSON": (whole({"hello": 1}), "is not of OpenAI's protocol"),
    "a list": (whole([1]), "instead of JSON"),
    "choices that are none": (whole({"choices": [3]}), "is not of OpenAI's protocol"),
    "calls that are none": (streamed({"tool_calls": "x"}), "is not of OpenAI's protocol"),
    "nothing": (Reply([]), "the answer broke off without a reason, after 0 characters"),
    "an answer that breaks off": (streamed({"content": "So"}, finish=None), "broke off without a reason, after 2"),
    "a body that breaks off": (
        Reply([b'data: {"choices": []}\n\n'], headers={"content-length": "999"}), "the answer broke off: peer closed"),
    "an error within": (Reply([b'data: {"error": {"message": "out of memory"}}\n\n']), "reports: out of memory"),
    "a wrong request": (whole({"error": {"message": "no such model"}}, 400), "400 Bad Request: no such model"),
    "another spelling of it": (whole({"detail": [{"msg": "x"}]}, 422), "422 Unprocessable"),
    "a key": (whole({"error": "invalid key"}, 401), "401 Unauthorized: invalid key(?s:.*)wants a key"),
    "another place": (Reply([], 307, "text/html", {"location": "https://x/v1"}), "It sends to https://x/v1: give that"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_nonsense_is_named(name: str) -> None:
    reply, message = REFUSALS[name]
    with ScriptedServer(reply) as server, ServerModel(server.address) as model:
        with pytest.raises(ServerError, match=message):
            model.answer(ASKED)
        assert len(server.requests) == 1


def test_what_has_no_end_is_not_read_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_events, "MOST_LINE_BYTES", 1000)
    monkeypatch.setattr(server_events, "MOST_BYTES", 5000)
    for blocks, kind in (([b"x" * 100] * 50, "text/event-stream"), ([b": ping\n\n"] * 5000, "text/event-stream"),
                         ([b" " * 100] * 50, "application/json")):  # fmt: skip
        reply = Reply(blocks, kind=kind)
        with (
            ScriptedServer(reply) as server,
            ServerModel(server.address) as model,
            pytest.raises(ServerError, match=r"more than 1,000|more for one answer"),
        ):
            model.answer(ASKED)


def test_a_busy_server_is_asked_again(waits: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    busy = whole({"error": {"message": "loading"}}, 503)
    replies = (busy, whole({}, 429, retry_after="7"), streamed({"content": "So."}))
    with ScriptedServer(*replies) as server, ServerModel(server.address) as model:
        assert model.answer(ASKED).content == "So."
    assert waits == [1, 7]
    said = capsys.readouterr().err
    assert "503 Service Unavailable: loading. Trying again in 1 s (1 of 3)." in said and "7 s (2 of 3)" in said
    with ScriptedServer(busy) as server, ServerModel(server.address, attempts=2) as model:
        with pytest.raises(ServerError, match="503 Service Unavailable: loading"):
            model.answer(ASKED)
        assert len(server.requests) == 2


def test_a_server_that_is_gone_or_silent(waits: list[float]) -> None:
    with ScriptedServer(streamed({"content": "So."}), port=own_port()) as server:
        model = ServerModel(server.address, attempts=2)
    with pytest.raises(ServerError, match="cannot be reached"):
        model.answer(ASKED)
    assert waits == [1]
    model.close()
    silent = Reply([b": wait\n\n", 600.0])
    # Asked again where a busy machine does not even begin an answer in time.
    with (
        ScriptedServer(silent) as server,
        ServerModel(server.address, "it", seconds=0.3, attempts=100) as model,
        pytest.raises(ServerError, match=r"gave no sign for 0.3 s within an answer"),
    ):
        model.answer(ASKED)


def test_a_server_without_a_parser_of_calls_is_asked_for_text() -> None:
    """vLLM refuses tools then; the text is parsed here."""
    why = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
    replies = (whole({"error": {"message": why}}, 400), streamed({"content": CALLING}))
    with ScriptedServer(*replies) as server, ServerModel(server.address) as model:
        for _ in range(2):
            assert model.answer(Question(ASKED.turns, TOOLS)).calls == (ToolCall("f", '{"x": 1}'),)
    assert [request.get("tool_choice") for request in server.requests] == [None, "none", "none"]


@pytest.mark.parametrize(
    "address", ["localhost:8000", "models/final", "ftp://x/v1", "http://", "http://x:99999", "http://["]
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ConfigError, match="is no server's address"):
        ServerModel(address)


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_the_path_may_be_left_out(path: str) -> None:
    with ScriptedServer(streamed({"content": "So."})) as server, ServerModel(server.address + path) as model:
        assert (model.name, model.answer(ASKED).content) == ("scripted", "So.")


def test_the_model_is_chosen() -> None:
    reply = streamed({"content": "So."})
    with ScriptedServer(reply, models=["a", "b"]) as server:
        with pytest.raises(ConfigError, match=r"has 2 models(?s:.*)Choose one by its name: a, b"):
            ServerModel(server.address)
        with ServerModel(server.address, "b") as model:
            model.answer(ASKED)
        assert server.requests[0]["model"] == "b"
    for listing, message in ((whole({"data": []}), "lists no models"), (whole({"x": 1}), "lists no models"),
                             (whole({}, 404), "404 Not Found"), (Reply([b"hi"], kind="text/plain"), "instead of JSON"),
                             (Reply([]), "lists no models")):  # fmt: skip
        with ScriptedServer(reply, models=listing) as server, pytest.raises(ServerError, match=message):
            ServerModel(server.address)


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost"])
def test_no_proxy_stands_before_this_machine(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with ScriptedServer(streamed({"content": "yes"})) as server:
        port = server.address.rpartition(":")[2]
        with ServerModel(f"http://{address}:{port}") as model:
            assert model.answer(ASKED).content == "yes"


def test_other_machines_are_reached_as_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer(streamed({"content": "by the proxy"})) as proxy:
        monkeypatch.setenv("http_proxy", proxy.address)
        monkeypatch.delenv("no_proxy", raising=False)
        with ServerModel("http://model.invalid", "x") as model, pytest.raises(ServerError, match="404"):
            model.answer(ASKED)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("7", 7.0), (" 1.5 ", 1.5), ("0", 0.0), ("-3", 0.0), ("100000", 60.0), ("", None), ("soon", None), ("nan", None),
     ("inf", None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0), ("Fri, 21 Oct 2955 07:28:00 GMT", 60.0),
     ("Wed, 21 Oct 2015 07:28:00", None), ("Wed, 99 Oct 2015 07:28:00 GMT", None)],
)  # fmt: skip
def test_how_long_a_server_wants_to_rest(said: str, seconds: float | None) -> None:
    assert asked_to_wait(httpx.Response(429, headers={"retry-after": said})) == seconds


def test_a_refusal_that_arrives_damaged_is_a_refusal(waits: list[float]) -> None:
    damaged = Reply([b"no gzip"], 500, "application/json", {"content-encoding": "gzip"})
    with ScriptedServer(damaged) as server, ServerModel(server.address) as model:
        with pytest.raises(ServerError, match="cannot be reached"):
            model.answer(ASKED)
        assert len(waits) == len(server.requests) - 1 > 0
