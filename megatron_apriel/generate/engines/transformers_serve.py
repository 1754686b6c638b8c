"""``transformers serve``: the reference behind OpenAI's protocol, one answer at a time.

It does not divide an answer: reasoning, markers and calls come as text, which ``tools/chat.py`` and every other client
of this project divide themselves. It lies in vLLM's environment, which has transformers with what serving needs.
"""

from __future__ import annotations

from typing import Any, ClassVar

from megatron_apriel.errors import ConfigError
from megatron_apriel.generate.engines.engine import Asked, Engine, GreedyReply, Launch, Service
from megatron_apriel.generate.engines.environments import check_made, program_in
from megatron_apriel.generate.engines.requests import whole_reply
from megatron_apriel.generate.engines.vllm import ENVIRONMENT
from megatron_apriel.generate.server_messages import body_of


class TransformersServe(Engine):
    """``transformers serve``."""

    name: ClassVar[str] = "transformers"
    summary: ClassVar[str] = "the reference, slow: one answer at a time"
    setup: ClassVar[str] = "make vllm"
    ready_path: ClassVar[str] = "/health"

    def check(self, service: Service) -> None:
        """Raise what stands against starting it; see :class:`Engine`."""
        check_made(ENVIRONMENT, "transformers", self.setup)
        if service.gpus > 1:
            raise ConfigError("transformers serves on one GPU.", fix="Say --gpus 1, or --engine vllm.")

    def launch(self, service: Service) -> Launch:
        """``transformers serve`` of one model."""
        command = [
            str(program_in(ENVIRONMENT, "transformers")), "serve", str(service.directory),
            "--host", service.host, "--port", str(service.port), "--dtype", service.dtype,
            "--device", "cuda" if service.gpus else "cpu",
        ]  # fmt: skip
        # It lists what lies in a cache of downloads, and fails where there is none.
        variables = {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(program_in(ENVIRONMENT, "").parent)}
        return Launch((*command, *service.further), variables)

    def served_name(self, service: Service) -> str:
        """Its directory."""
        return str(service.directory)

    def greedy(self, service: Service, asked: Asked) -> GreedyReply:
        """Ask; it tells the text alone."""
        body: dict[str, Any] = body_of(asked.question, self.served_name(service)) | {"stream": False}
        del body["stream_options"]
        reply = whole_reply(f"{service.address}/chat/completions", body)
        return GreedyReply(text=reply["choices"][0]["message"]["content"])
