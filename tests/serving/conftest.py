"""What the tests of real servers share: a model that answers in the format, and a vLLM that serves it, started once.

They are marked ``serving`` and left out unless asked for: ``make test-serving`` makes vLLM's environment and runs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from served_conversations import FURTHER, TOOLS

from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.kinds import Kind
from megatron_apriel.generate.engines.engine import Service
from megatron_apriel.generate.engines.running import Program, free_port
from megatron_apriel.generate.engines.vllm import Vllm
from megatron_apriel.generate.transformers_model import TransformersModel
from megatron_apriel.testing.rigged_models import CONVERSATIONS, write_rigged_model


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
