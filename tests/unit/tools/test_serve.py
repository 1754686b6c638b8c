"""The command line that serves: what it starts, what it refuses, and its exit codes, with a stand-in for an engine."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Timer
from typing import ClassVar

import numpy as np
import pytest

from megatron_apriel.checkpoint.convert import convert, plan_conversion
from megatron_apriel.errors import CheckpointError, ConfigError, ExitCode, ServerError, TransientError, run_command
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.kinds import Kind
from megatron_apriel.generate.conversation import Question, Turn
from megatron_apriel.generate.engines import serving, transformers_serve
from megatron_apriel.generate.engines.comparison import Case
from megatron_apriel.generate.engines.engine import Asked, Engine, GreedyReply, Launch, Service
from megatron_apriel.generate.engines.memory import longest_context
from megatron_apriel.generate.engines.running import Program
from megatron_apriel.generate.engines.table import ENGINES
from megatron_apriel.testing.checkpoints import write_hf_checkpoint
from megatron_apriel.testing.ports import own_port
from tools import serve

SERVER = (
    "import sys, signal; from http.server import BaseHTTPRequestHandler, HTTPServer\n"
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
    "class Handler(BaseHTTPRequestHandler):\n"
    "    def do_GET(self):\n"
    "        self.send_response(200); self.end_headers()\n"
    "HTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()\n"
)


class StandIn(Engine):
    name: ClassVar[str] = "standin"
    summary: ClassVar[str] = "for tests"
    setup: ClassVar[str] = "make standin"
    code = SERVER
    reply = GreedyReply((1,), (4,))

    def check(self, service: Service) -> None:
        pass

    def steps(self, service: Service) -> Sequence[Launch]:
        return [Launch((sys.executable, "-c", "print('made')"))]

    def launch(self, service: Service) -> Launch:
        return Launch((sys.executable, "-c", self.code, str(service.port)), {"A": "b c"}, ("a remark",))

    def greedy(self, service: Service, asked: Asked) -> GreedyReply:
        return self.reply


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    made = StandIn()
    monkeypatch.setitem(ENGINES, "standin", made)
    monkeypatch.setattr(serve, "free_port", lambda host: own_port())
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf_checkpoint(tmp_path_factory.mktemp("served") / "tiny", Architecture.from_preset("tiny"))


def run(*arguments: object) -> int:
    return serve.main([*map(str, arguments)])


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, 0), (signal.SIGHUP, 0)]
)
def test_it_says_where_it_serves_until_a_signal(
    number: signal.Signals,
    code: int,
    engine: StandIn,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    port, greeting = own_port(), serve.greeting

    def signalled(engine: Engine, service: Service) -> list[str]:
        Timer(0.3, os.kill, (os.getpid(), number)).start()
        return greeting(engine, service)

    monkeypatch.setattr(serve, "greeting", signalled)
    assert run(model, "--engine", "standin", "--port", port) == code
    said = capfd.readouterr()
    assert f"The model tiny answers at http://127.0.0.1:{port}/v1" in said.out
    assert f"python tools/chat.py http://127.0.0.1:{port}/v1" in said.out
    assert "note: a remark" in said.err and "made" in said.err


def test_an_engine_that_ends_by_itself_fails(engine: StandIn, model: Path) -> None:
    engine.code = "raise SystemExit(3)"
    with pytest.raises(ServerError, match=r"ended with exit code 3 before it answered(?s:.*)stands above"):
        run(model, "--engine", "standin", "--port", own_port())


@pytest.mark.parametrize(("token", "code"), [(4, ExitCode.OK), (3, ExitCode.OK), (0, ExitCode.FAILED)])
def test_the_check_compares(
    token: int,
    code: int,
    engine: StandIn,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scores = np.array([[math.log(0.01), 0, 0, math.log(0.4999), math.log(0.5)]], np.float32)
    scores[0, 1:3] = math.log(0.01)
    case = Case(Asked("it", Question([Turn("user", ("Why?",))]), (1,), "Why?"), (4,), scores, "So.")
    monkeypatch.setattr(serve, "_reference", lambda service: [case])
    engine.reply = GreedyReply((1,), (token,))
    assert run(model, "--engine", "standin", "--check") == code
    said = capsys.readouterr().out
    assert "greedy answers of standin, served, and of transformers in this process, float32" in said
    assert "prompt tokens" in said and "answer tokens" in said
    assert ("1 of 1 answers differ" in said) == (code == ExitCode.FAILED)
    assert ("rounding" in said) and ("0.0002" in said) == (token != 4)


@pytest.mark.parametrize("when", ["loading", "starting", "asking"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_check(
    when: str, number: signal.Signals, engine: StandIn, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled(at: str) -> None:
        if at == when:
            os.kill(os.getpid(), number)
            time.sleep(60)

    def cases(service: Service) -> list[Case]:
        signalled("loading")
        case = Case(Asked("it", Question([Turn("user", ("Why?",))]), (1,), "Why?"), (4,), np.zeros((1, 5)), "So.")
        return [case]

    def greedy(self: StandIn, service: Service, asked: Asked) -> GreedyReply:
        signalled("asking")
        return self.reply

    waits = Program.wait_until_ready

    def waiting(self: Program, address: str, seconds: float) -> bool:
        signalled("starting")
        return waits(self, address, seconds)

    monkeypatch.setattr(serve, "_reference", cases)
    monkeypatch.setattr(StandIn, "greedy", greedy)
    monkeypatch.setattr(Program, "wait_until_ready", waiting)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended:
        sys.exit(run_command(lambda: run(model, "--engine", "standin", "--check")))
    assert ended.value.code == 128 + number and signal.getsignal(number) is before


def test_a_dry_run_prints_commands_that_can_be_typed(
    engine: StandIn, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine.code = "pass"
    assert run(model, "--engine", "standin", "--dry-run") == ExitCode.OK
    first, second = capsys.readouterr().out.splitlines()
    assert (first, second) == (
        f"{sys.executable} -c 'print('\"'\"'made'\"'\"')'", f"A='b c' {sys.executable} -c pass 8000",
    )  # fmt: skip
    options = ("--served-name", "it", "--context", 2048, "--", "--quantization", "fp8")
    assert run(model, "--dry-run", *options) == ExitCode.OK
    (said,) = capsys.readouterr().out.splitlines()
    for part in (
        f".venv-vllm/bin/vllm serve {model}", "--served-model-name it", "--max-model-len 2048", "--dtype float32",
        "--tokenizer-mode hf", "--config-format hf", "--reasoning-parser apriel", "--enable-auto-tool-choice",
        "VLLM_CPU_KVCACHE_SPACE=1",
    ):  # fmt: skip
        assert part in said
    assert said.endswith(" --quantization fp8")


def test_gpus(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(serving, "gpu_memory", lambda: [80 << 30] * 4)
    assert run(model, "--dry-run") == ExitCode.OK
    said = capsys.readouterr().out
    assert "--tensor-parallel-size 1" in said and "--dtype bfloat16" in said and "--max-model-len 4096" in said
    assert "CPU" not in said and "--enforce-eager" not in said
    assert run(model, "--dry-run", "--gpus", 0) == ExitCode.OK
    assert "VLLM_CPU_KVCACHE_SPACE" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"--gpus 5: this machine has 4 GPUs"):
        run(model, "--dry-run", "--gpus", 5)
    monkeypatch.setattr(serving, "gpu_memory", lambda: [1 << 18] * 4)
    with pytest.raises(ConfigError, match=r"(?s)the weights have .* in bfloat16, and 1 GPU has .* --gpus"):
        run(model, "--dry-run")


def test_the_context_is_what_has_room() -> None:
    """15 billion parameters in 16 bits, and 192 KiB of keys and values for a token."""
    large = Architecture.from_preset("apriel-15b")
    room = int(0.85 * (80 << 30)) - 2 * large.parameters
    fits = longest_context(large, "bfloat16", [80 << 30])
    assert fits % 1024 == 0 and fits * 192 * 1024 <= room < (fits + 1024) * 192 * 1024
    assert fits < longest_context(large, "bfloat16", [80 << 30] * 2) <= large.decoder.max_positions
    assert longest_context(large, "float32", []) == 8192
    with pytest.raises(ConfigError, match=r"(?s)1 GPU has .*Divide the model over more with --gpus"):
        longest_context(large, "bfloat16", [24 << 30])


def test_refusals(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        run(tmp_path / "none")
    with pytest.raises(ConfigError, match="--context 8000 is more than the 4096 tokens that the model reads"):
        run(model, "--context", "8K")
    places = "megatron_apriel.generate.engines.environments.PROJECT"
    monkeypatch.setattr(places, tmp_path)
    with pytest.raises(
        ConfigError,
        match=r"\.venv-vllm has no .*: it was not(?s:.*)make vllm; or .* --engine transformers",
    ):
        run(model)
    (tmp_path / ".venv-vllm" / "bin").mkdir(parents=True)
    program = tmp_path / ".venv-vllm" / "bin" / "vllm"
    program.write_text("#!/before/.venv-vllm/bin/python\n")
    with pytest.raises(ConfigError, match=r"it names /before/\S+/python, which is not there(?s:.*)anew: make vllm"):
        run(model)
    program.write_text("")
    monkeypatch.setattr(transformers_serve, "find_spec", lambda name: object())
    convert(plan_conversion(model, Kind.MISTRAL), tmp_path / "mistral")
    for more in ((), ("--dry-run",)):
        with pytest.raises(CheckpointError, match=r"in Mistral's form(?s:.*)convert_checkpoint.py .* --to hf"):
            run(tmp_path / "mistral", *more)
    write_hf_checkpoint(tmp_path / "damaged", Architecture.from_preset("tiny"))
    (tmp_path / "damaged" / "model.safetensors").rename(tmp_path / "damaged" / "model-00001-of-00001.safetensors")
    with pytest.raises(CheckpointError, match=r"no model\.safetensors\.index\.json"):
        run(tmp_path / "damaged", "--dry-run")
    monkeypatch.setattr(serving, "gpu_memory", lambda: [80 << 30] * 4)
    with pytest.raises(ConfigError, match=r"--gpus 3 does not divide the decoder's \d key-value groups"):
        run(model, "--gpus", 3)
    with pytest.raises(ConfigError, match="transformers serves on one GPU"):
        run(model, "--gpus", 2, "--engine", "transformers")


def test_a_port_that_is_taken(engine: StandIn, model: Path) -> None:
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(TransientError):
            run(model, "--engine", "standin", "--port", other.getsockname()[1])
        assert run_command(lambda: run(model, "--engine", "standin", "--port", other.getsockname()[1])) == 76


def test_the_visible_gpus_are_those_of_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_apriel.generate.engines.gpus import gpu_memory

    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 81559\necho 81559\necho 40960\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu_memory() == [81559 << 20, 81559 << 20, 40960 << 20]
    for value, number in (("0,1", 2), ("", 0), ("-1", 0), ("2", 1)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert len(gpu_memory()) == number
    program.write_text("#!/bin/sh\necho no driver\nexit 9\n")
    assert gpu_memory() == []
    program.unlink()
    assert gpu_memory() == []


def test_a_driver_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_apriel.generate.engines import gpus

    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "PATIENCE_S", 0.1)
    with pytest.raises(ServerError, match=r"nvidia-smi did not answer within 0\.1 s"):
        gpus.gpu_memory()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus.gpu_memory() == []
