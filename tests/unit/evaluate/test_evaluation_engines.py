"""A directory that an engine serves while it is asked: started once, gone afterwards however it ends, and resumed."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import ClassVar

import pytest

from megatron_apriel.errors import ConfigError, ServerError
from megatron_apriel.evaluate import models
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.generate.engines.engine import Asked, Engine, GreedyReply, Launch, Service
from megatron_apriel.generate.engines.table import ENGINES
from megatron_apriel.testing.chat_servers import ScriptedServer, whole
from megatron_apriel.testing.checkpoints import write_hf_checkpoint
from megatron_apriel.testing.ports import own_port
from tests.unit.evaluate.conftest import lines, row, run

SERVER = """
import json, os, signal, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
_, port, starts, after, act, name = sys.argv
open(starts, "a").write(f"{os.getpid()}\\n")
print("a word of the engine", flush=True)
if after == "never":
    sys.exit(3)
asked = 0

class Handler(BaseHTTPRequestHandler):
    def send(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.send({"data": [{"id": name}]})

    def do_POST(self):
        global asked
        self.rfile.read(int(self.headers["Content-Length"]))
        asked += 1
        if after and asked > int(after):
            exec(act)
        message = {"content": "Answer: A"}
        self.send({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    def log_message(self, *words):
        pass

HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""


class StandIn(Engine):
    name: ClassVar[str] = "vllm"
    summary: ClassVar[str] = "for tests"
    setup: ClassVar[str] = "make standin"

    def __init__(self, starts: Path) -> None:
        self.starts, self.after, self.act = starts, "", ""

    def check(self, service: Service) -> None:
        pass

    def launch(self, service: Service) -> Launch:
        words = (str(service.port), str(self.starts), self.after, self.act, service.name)
        code = (sys.executable, "-c", SERVER, *words)
        return Launch(code, remarks=("a remark",))

    def greedy(self, service: Service, asked: Asked) -> GreedyReply:
        raise AssertionError("an evaluation compares no tokens")

    @property
    def started(self) -> list[int]:
        return [int(line) for line in self.starts.read_text().split()]


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn(tmp_path / "starts")
    monkeypatch.setitem(ENGINES, "vllm", made)
    monkeypatch.setattr(models, "free_port", lambda host: own_port())
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf_checkpoint(tmp_path_factory.mktemp("evaluated") / "the model", Architecture.from_preset("tiny"))


def all_gone(engine: StandIn) -> bool:
    for process in engine.started:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
    return True


def test_one_start_serves_all_benchmarks(
    tmp_path: Path, data: Path, engine: StandIn, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, own = tmp_path / "out", ("--model", str(model), "--engine", "vllm", "--runs", "2")
    for _ in range(2):  # the second time nothing is left to ask
        assert run(out, data, *own, benchmarks="mmlu_pro,aime25") == 0
        assert len(engine.started) == 1 and all_gone(engine)
    assert (row(out)["asked"], row(out)["right"], row(out, 1)["asked"]) == (20, 12, 6)
    assert (out / "vllm.log").read_text().startswith("a word of the engine")
    said = capsys.readouterr().err
    assert f"starting vllm on the CPU; what it prints is in {out}/vllm.log" in said and "note: a remark" in said


def test_an_engine_that_dies_is_named_and_the_work_resumed(
    tmp_path: Path, data: Path, engine: StandIn, model: Path
) -> None:
    """At once, without the patience that a server at an address has."""
    engine.after, engine.act = "4", "os._exit(7)"
    out, own = tmp_path / "out", ("--model", str(model), "--engine", "vllm", "--at-once", "1")
    with pytest.raises(ServerError, match=r"ended with exit code 7 while it was asked(?s:.*)a word of the engine"):
        run(out, data, *own)
    assert len(lines(out / "mmlu_pro" / "answers-1.jsonl")) == 4
    engine.after = ""
    assert run(out, data, *own) == 0
    assert row(out)["right"] == 6 and len(engine.started) == 2 and all_gone(engine)
    assert (out / "vllm.log").read_text().count("a word of the engine") == 2


def test_another_program_at_the_port_is_not_asked(
    tmp_path: Path, data: Path, engine: StandIn, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ScriptedServer(whole({}), models=("the model",)) as other:
        monkeypatch.setattr(models, "free_port", lambda host: other._server.server_port)
        monkeypatch.setattr(StandIn, "ready_path", "/v1/models")
        monkeypatch.setattr(
            StandIn, "launch", lambda *_: Launch((sys.executable, "-c", "import time; time.sleep(600)"))
        )
        with pytest.raises(ServerError, match="serves the model, and not the model-"):
            run(tmp_path / "out", data, "--model", str(model), "--engine", "vllm")
        assert not other.requests


def test_an_engine_that_does_not_start(tmp_path: Path, data: Path, engine: StandIn, model: Path) -> None:
    engine.after = "never"
    with pytest.raises(ServerError, match=r"ended with exit code 3 before it answered(?s:.*)a word of the engine"):
        run(tmp_path / "out", data, "--model", str(model), "--engine", "vllm")


@pytest.mark.parametrize(("number", "error"), [("INT", KeyboardInterrupt), ("TERM", SystemExit), ("HUP", SystemExit)])
def test_a_signal_ends_the_engine_and_keeps_the_answers(
    tmp_path: Path, data: Path, engine: StandIn, model: Path, number: str, error: type[BaseException]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    engine.after, engine.act = "4", f"os.kill(os.getppid(), signal.SIG{number}); time.sleep(60)"
    with pytest.raises(error):
        run(tmp_path / "out", data, "--model", str(model), "--engine", "vllm", "--at-once", "1")
    assert all_gone(engine) and signal.getsignal(signal.SIGTERM) == before
    assert len(lines(tmp_path / "out" / "mmlu_pro" / "answers-1.jsonl")) == 4


def test_the_engine_that_suits_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("megatron_apriel.generate.engines.environments.PROJECT", tmp_path)
    chosen = []
    for memory in ([], [80 << 30]):
        monkeypatch.setattr(models, "gpu_memory", lambda memory=memory: memory)
        chosen.append(models.Places(["directory"]).check())
    (tmp_path / ".venv-vllm" / "bin").mkdir(parents=True)
    (tmp_path / ".venv-vllm" / "bin" / "vllm").touch()
    chosen.append(models.Places(["directory"]).check())
    assert chosen == ["transformers", "transformers", "vllm"]
    assert models.Places(["directory"], device="cpu").check() == "transformers"
    assert models.Places(["http://here:1", "there:2"]).check() == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["http://here:1", "--engine", "vllm"], "http://here:1 is a server"),
        (["http://here:1", "--gpus", "2"], "http://here:1 is a server"),
        (["somewhere", "http://here:1"], "somewhere is a directory, and one is asked alone"),
        (["somewhere", "elsewhere"], "somewhere is a directory, and one is asked alone"),
        (["somewhere", "--engine", "vllm", "--device", "cpu"], "for a directory that vllm serves"),
        (["somewhere", "--engine", "llama", "--served-name", "it"], "for a directory that llama serves"),
        (["somewhere", "--engine", "transformers", "--gpus", "2"], "no meaning for transformers"),
    ],
)
def test_options_that_contradict_each_other(tmp_path: Path, data: Path, arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run(tmp_path / "out", data, "--model", *arguments)
    assert not (tmp_path / "out").exists()
