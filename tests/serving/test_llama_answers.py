"""llama.cpp's real converter and server, where ``LLAMA_CPP`` names its folder: answers, parts, sizes of images."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image
from served_conversations import TOOLS, picture

from megatron_apriel.errors import ExitCode
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.kinds import Kind
from megatron_apriel.generate.conversation import Question, Sampling, Turn
from megatron_apriel.generate.engines.engine import Service
from megatron_apriel.generate.engines.environments import PROJECT
from megatron_apriel.generate.engines.llama import Llama
from megatron_apriel.generate.engines.llama_images import llama_size
from megatron_apriel.generate.engines.requests import whole_reply
from megatron_apriel.generate.engines.running import Program, free_port, run_step
from megatron_apriel.generate.server import ServerModel

pytestmark = [
    pytest.mark.serving,
    pytest.mark.skipif("LLAMA_CPP" not in os.environ, reason="LLAMA_CPP names no folder of llama.cpp"),
]
GREEDY = Sampling(greedy=True, max_tokens=250)


@pytest.fixture(scope="module")
def llama(rigged: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A llama-server that serves the rigged model."""
    architecture, port = Architecture.from_directory(rigged), free_port("127.0.0.1")
    service, engine = Service(rigged, Kind.HF, architecture, "rigged", port=port, context=2048), Llama()
    engine.check(service)
    for step in engine.steps(service):
        run_step(step)
    with Program(engine.launch(service), tmp_path_factory.mktemp("log") / "llama.log") as program:
        assert program.wait_until_ready(f"http://127.0.0.1:{port}{engine.ready_path}", 300)
        yield service


def test_the_check_finds_them_alike(rigged: Path) -> None:
    command = [sys.executable, "tools/serve.py", rigged, "--engine", "llama", "--check", "--context", "2048"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.OK, done.stdout + done.stderr
    assert "All 9 answers are the same" in done.stdout


def test_answers_come_in_parts_and_end_at_the_mark(llama: Service) -> None:
    """The server itself divides them, for every client; ours asks in a stream."""
    with ServerModel(llama.address, llama.name) as model:
        answer = model.answer(Question([Turn("user", (picture(), "What is it?"))], (), GREEDY))
        assert (answer.reasoning.strip(), answer.content) == ("I look.", "A red image.")
        answer = model.answer(Question([Turn("user", ("Weather in both?",))], TOOLS, GREEDY))
        assert [call.name for call in answer.calls] == ["weather", "weather"]
    body = {"messages": [{"role": "user", "content": "Two and two?"}], "temperature": 0, "max_tokens": 250}
    message = whole_reply(f"{llama.address}/chat/completions", body)["choices"][0]["message"]
    assert (message["reasoning_content"].strip(), message["content"]) == ("I add them.", "It is 4.")


@pytest.mark.parametrize(
    "size", [(32, 48), (16, 16), (131, 200), (24, 40), (64, 512), (300, 300), (512, 300), (250, 33), (7, 5)]
)
def test_images_are_cut_as_we_say(llama: Service, size: tuple[int, int]) -> None:
    tower = llama.architecture.tower
    assert tower is not None
    file = io.BytesIO()
    Image.new("RGB", size[::-1]).save(file, "PNG")
    address = llama.address.removesuffix("/v1")
    marker = httpx.get(f"{address}/props", trust_env=False).json()["media_marker"]
    data = [base64.b64encode(file.getvalue()).decode("ascii")]
    body = {"prompt": {"prompt_string": marker, "multimodal_data": data}, "n_predict": 1, "cache_prompt": False}
    height, width = llama_size(*size, tower.patch_size, tower.image_size)
    # <s>, and a token for each patch and for the end of each row.
    expected = 1 + (height // tower.patch_size) * (width // tower.patch_size + 1)
    assert whole_reply(f"{address}/completion", body)["tokens_evaluated"] == expected


def test_a_prompt_is_rendered_as_by_transformers(llama: Service, rigged: Path) -> None:
    from transformers import AutoTokenizer

    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "And?"},
        {"role": "assistant", "content": "Yes.\n[END FINAL RESPONSE]\n<|end|>\n", "reasoning_content": "Hm."},
        {"role": "user", "content": "So?"},
    ]
    function = {
        "description": "of a city",
        "name": "weather",
        "strict": False,
        "parameters": {"type": "object", "x": "ü"},
    }
    tools = [{"type": "function", "function": function}, *TOOLS]
    address = llama.address.removesuffix("/v1")
    rendered = whole_reply(f"{address}/apply-template", {"messages": messages, "tools": tools})["prompt"]
    expected = AutoTokenizer.from_pretrained(rigged).apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=True
    )
    assert rendered == expected.removeprefix("<s>") and rendered.count("[END FINAL RESPONSE]") <= 1
