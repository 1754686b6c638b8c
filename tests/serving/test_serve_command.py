"""tools/serve.py with the real engines: the comparison, serving until a signal, and nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from served_conversations import TOOLS, picture

from megatron_apriel.errors import ExitCode
from megatron_apriel.generate.conversation import Question, Sampling, Turn
from megatron_apriel.generate.engines.environments import PROJECT
from megatron_apriel.generate.engines.running import check_port, free_port
from megatron_apriel.generate.server import ServerModel

pytestmark = pytest.mark.serving

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}


def processes_with(text: str) -> list[str]:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = file.read_bytes()
        except OSError:
            continue
        if text.encode() in command:
            found.append(command.decode(errors="replace"))
    return found


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
def test_the_check_finds_them_alike(engine: str, rigged: Path) -> None:
    command = [sys.executable, "tools/serve.py", rigged, "--engine", engine, "--check", "--context", "2048"]
    done = subprocess.run(command, cwd=PROJECT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.OK, done.stdout + done.stderr
    assert "All 9 answers are the same" in done.stdout
    assert not processes_with(str(rigged))


def test_transformers_serves_until_a_signal(rigged: Path) -> None:
    """Its text is divided by our client; nothing of it is left when it was told to end."""
    port = free_port("127.0.0.1")
    command = [sys.executable, "tools/serve.py", rigged, "--engine", "transformers", "--port", str(port)]
    with subprocess.Popen(command, cwd=PROJECT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as serving:
        assert serving.stdout
        said = ""
        for line in serving.stdout:
            said += line
            if "Ctrl-C ends it" in line:
                break
        address = re.search(r"chat\.py (\S+) --served-name (\S+)", said)
        assert address, said
        with ServerModel(address[1], address[2]) as model:
            greedy = Sampling(greedy=True, max_tokens=250)
            answer = model.answer(Question([Turn("user", (picture(), "What is it?"))], (), greedy))
            assert (answer.reasoning, answer.content) == ("I look.", "A red image.")
            answer = model.answer(Question([Turn("user", ("Weather in both?",))], TOOLS, greedy))
            assert [str(call) for call in answer.calls] == ['weather({"city": "Oslo"})', 'weather({"city": "Rome"})']
        serving.send_signal(signal.SIGINT)
        assert serving.wait(60) == ExitCode.INTERRUPTED
    check_port("127.0.0.1", port)
    assert not processes_with(str(rigged))
