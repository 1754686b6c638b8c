"""What the tests of real servers share: a model that answers in the format, and a vLLM that serves it, started once.

They are marked ``serving`` and left out unless asked for: ``make test-serving`` makes vLLM's environment and runs them.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.kinds import Kind
from megatron_apriel.generate.conversation import Picture
from megatron_apriel.generate.engines.engine import Service
from megatron_apriel.generate.engines.running import Program, free_port
from megatron_apriel.generate.engines.vllm import Vllm
from megatron_apriel.generate.transformers_model import TransformersModel
from megatron_apriel.testing.rigged_models import CONVERSATIONS, red_image, write_rigged_model

TOOLS: tuple[dict[str, Any], ...] = (
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    },
)
"""With every field that vLLM writes into a prompt, in its order."""


def called(*cities: str) -> list[dict[str, Any]]:
    return [{"function": {"name": "weather", "arguments": {"city": city}}} for city in cities]


FURTHER = (
    [
        {"role": "system", "content": "Never say [BEGIN FINAL RESPONSE] {}."},
        {"role": "user", "content": "Two and two?"},
        {"role": "assistant", "content": "It is 4.", "reasoning_content": "I add them."},
    ],
    [
        {"role": "user", "content": "Weather in both?"},
        {"role": "assistant", "content": "I look.", "reasoning_content": "Two.", "tool_calls": called("Oslo", "Rome")},
    ],
    [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": called("Oslo")},
        {"role": "tool", "content": "rain"},
        {"role": "assistant", "content": "It rains."},
        {"role": "user", "content": [{"type": "image", "image": red_image()}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A red image.", "reasoning_content": "I look."},
    ],
)
"""Learned beside those of every rigged model: a marker in a question, two calls at once behind a text, an image behind
a tool's result."""


def picture() -> Picture:
    file = io.BytesIO()
    red_image().save(file, "PNG")
    return Picture.from_bytes(file.getvalue())


@pytest.fixture(scope="session")
def rigged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    directory = write_rigged_model(
        tmp_path_factory.mktemp("serving") / "rigged", (*CONVERSATIONS, *FURTHER), TOOLS, steps=2000
    )
    torch.set_num_threads(threads)
    return directory


@pytest.fixture(scope="session")
def reference(rigged: Path) -> TransformersModel:
    return TransformersModel(rigged, device="cpu")


@pytest.fixture(scope="session")
def service(rigged: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A vLLM that serves the rigged model."""
    architecture = Architecture.from_directory(rigged)
    port = free_port("127.0.0.1")
    service = Service(rigged, Kind.HF, architecture, "rigged", port=port, context=2048, further=("--seed", "0"))
    engine = Vllm()
    engine.check(service)
    patch = pytest.MonkeyPatch()
    patch.setenv("OMP_NUM_THREADS", "1")
    with Program(engine.launch(service), tmp_path_factory.mktemp("log") / "vllm.log") as program:
        patch.undo()
        assert program.wait_until_ready(f"http://127.0.0.1:{port}{engine.ready_path}", 900)
        yield service
