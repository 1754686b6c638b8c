"""What engines are asked in a comparison, and what is made of their replies."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from megatron_apriel.errors import ConfigError, ServerError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.kinds import Kind
from megatron_apriel.generate.conversation import Question, Sampling, Turn
from megatron_apriel.generate.engines import transformers_serve
from megatron_apriel.generate.engines.engine import Asked, GreedyReply, Service
from megatron_apriel.generate.engines.requests import whole_reply
from megatron_apriel.generate.engines.table import ENGINES
from megatron_apriel.testing.chat_servers import Reply, ScriptedServer, whole
from megatron_apriel.testing.ports import own_port

ASKED = Asked("it", Question([Turn("user", ("Why?",))], (), Sampling(greedy=True, max_tokens=7)), (1, 2), "Why?")


def service_at(address: str) -> Service:
    port = urlsplit(address).port
    assert port
    return Service(Path("/models/it"), Kind.HF, Architecture.from_preset("tiny"), "it", port=port)


def test_vllm_returns_tokens() -> None:
    reply = whole({"prompt_token_ids": [1, 2], "choices": [{"token_ids": [3, 4], "message": {"content": None}}]})
    with ScriptedServer(reply) as server:
        found = ENGINES["vllm"].greedy(service_at(server.address), ASKED)
    assert found == GreedyReply((1, 2), (3, 4))
    (body,) = server.requests
    assert body["model"] == "it" and body["temperature"] == 0 and body["max_tokens"] == 7 and not body["stream"]
    assert body["return_token_ids"] is True and body["skip_special_tokens"] is False and "stream_options" not in body


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"city": "Z\\u00fcrich"}'}}


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "Hm."}, "Hm."),
        ({"content": "Hm.\n[BEGIN FINAL RESPONSE]\nSo.\n[END FINAL RESPONSE]\n<|end|>\n"}, "Hm.\nSo."),
        ({"content": "So.", "reasoning_content": "Hm."}, "Hm.\nSo."),
        ({"content": "", "reasoning_content": "Hm.\n[BEGIN FINAL"}, "Hm."),
        ({"content": "So.\n[END FI", "reasoning_content": "Hm."}, "Hm.\nSo."),
        ({"content": "", "reasoning_content": "Hm.", "tool_calls": [CALL]}, 'Hm.\nf({"city": "Zürich"})'),
    ],
)
def test_transformers_returns_text_whether_it_divides_it_or_not(message: dict[str, Any], text: str) -> None:
    with ScriptedServer(whole({"choices": [{"message": message, "finish_reason": "length"}]})) as server:
        assert ENGINES["transformers"].greedy(service_at(server.address), ASKED) == GreedyReply(text=text)
    assert server.requests[0]["model"] == "/models/it"


def test_transformers_is_of_this_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ENGINES["transformers"]
    assert engine.launch(service_at("http://127.0.0.1:1")).command[0] == sys.executable
    monkeypatch.setattr(transformers_serve, "find_spec", lambda name: None if name == "uvicorn" else object())
    with pytest.raises(ConfigError, match=r"needs uvicorn, and .*\n.*make setup"):
        engine.check(service_at("http://127.0.0.1:1"))


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (whole({"error": {"message": "no such tool"}}, 400), "answered 400: no such tool"),
        (Reply([b"<html>"], kind="text/html"), "answered 200 with <html>"),
        (whole(["no", "object"]), "answered 200"),
    ],
)
def test_other_replies_are_errors(reply: Reply, message: str) -> None:
    with ScriptedServer(reply) as server, pytest.raises(ServerError, match=message):
        whole_reply(f"{server.address}/v1/chat/completions", {})


def test_a_server_that_is_gone() -> None:
    with pytest.raises(ServerError, match="cannot be reached"):
        whole_reply(f"http://127.0.0.1:{own_port()}/v1/chat/completions", {})


def test_addresses() -> None:
    service = Service(Path("/models/it"), Kind.HF, Architecture.from_preset("tiny"), "it", "0.0.0.0", 81)
    assert service.address == "http://127.0.0.1:81/v1"
    service = Service(Path("/models/it"), Kind.HF, Architecture.from_preset("tiny"), "it", "::1", 81)
    assert service.address == "http://[::1]:81/v1"
