"""``transformers serve``: the reference behind OpenAI's protocol, one answer at a time.

It divides an answer as the model's ``tokenizer_config.json`` says; where that says nothing, the answer comes as text,
which every client of this project divides itself. It runs in the project's own environment, so that it is the very
transformers that answers are compared with.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from megatron_apriel.errors import ConfigError
from megatron_apriel.generate.answer import Part
from megatron_apriel.generate.engines.engine import Asked, Engine, GreedyReply, Launch, Service
from megatron_apriel.generate.engines.requests import whole_reply
from megatron_apriel.generate.server_messages import body_of
from megatron_apriel.generate.server_reply import Reply, whole_answer

_NEEDED = ("fastapi", "uvicorn", "openai", "accelerate")
"""What it imports beside transformers; the extra ``serve`` of ``setup.py``."""


class TransformersServe(Engine):
    """``transformers serve``."""

    name: ClassVar[str] = "transformers"
    summary: ClassVar[str] = "the reference, slow: one answer at a time"
    setup: ClassVar[str] = "make setup"
    ready_path: ClassVar[str] = "/health"

    def check(self, service: Service) -> None:
        """Raise what stands against starting it; see :class:`Engine`."""
        if missing := [name for name in _NEEDED if find_spec(name) is None]:
            raise ConfigError(
                f"transformers serve needs {' and '.join(missing)}, and {sys.prefix} has no such package.",
                fix=f"Install the pinned set: {self.setup}",
            )
        if service.gpus > 1:
            raise ConfigError("transformers serves on one GPU.", fix="Say --gpus 1, or --engine vllm.")

    def launch(self, service: Service) -> Launch:
        """``transformers serve`` of one model."""
        command = [
            sys.executable, "-m", "transformers.cli.transformers", "serve", str(service.directory),
            "--host", service.host, "--port", str(service.port), "--dtype", service.dtype,
            "--device", "cuda" if service.gpus else "cpu",
        ]  # fmt: skip
        # It lists what lies in a cache of downloads, and fails where there is none.
        variables = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(Path(sys.executable).parent)}
        return Launch((*command, *service.further), variables, called="transformers serve")

    def served_name(self, service: Service) -> str:
        """Its directory."""
        return str(service.directory)

    def greedy(self, service: Service, asked: Asked) -> GreedyReply:
        """Ask; it returns the text alone."""
        body: dict[str, Any] = body_of(asked.question, self.served_name(service)) | {"stream": False}
        del body["stream_options"]
        reply = Reply(Part.REASONING)
        for _ in reply.pieces(whole_reply(f"{service.address}/chat/completions", body)):
            pass
        for _ in reply.rest():
            pass
        return GreedyReply(text=whole_answer(reply, trained=True).text)
