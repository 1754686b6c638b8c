"""vLLM: the server for throughput, on GPUs and, for tests and small models, on a CPU.

``tools/setup_vllm.sh`` makes its environment. The model's own files decide how it is read: vLLM would prefer Mistral's
files where a directory holds both forms, and the tokenizer in ``tekken.json`` to the trained chat template, so every
choice is said to it.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from megatron_apriel.errors import ConfigError
from megatron_apriel.generate.engines.engine import Asked, Engine, GreedyReply, Launch, Service
from megatron_apriel.generate.engines.environments import PROJECT, check_made, program_in
from megatron_apriel.generate.engines.memory import cached_bytes
from megatron_apriel.generate.engines.requests import whole_reply
from megatron_apriel.generate.server_messages import body_of

ENVIRONMENT = ".venv-vllm"
PLUGIN = "megatron_apriel.generate.vllm_plugin"
PARSER = "apriel"

_QUIET = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
"""Weights are never downloaded, and no usage statistics are sent."""


class Vllm(Engine):
    """``vllm serve`` with the parsers of this format."""

    name: ClassVar[str] = "vllm"
    summary: ClassVar[str] = "for throughput: many clients at once, on GPUs or a CPU"
    setup: ClassVar[str] = "make vllm"
    ready_path: ClassVar[str] = "/health"

    def check(self, service: Service) -> None:
        """Raise what stands against starting it; see :class:`Engine`."""
        check_made(ENVIRONMENT, "vllm", f"{self.setup}; or serve with --engine transformers, which is slow, or llama")
        groups = service.architecture.decoder.num_kv_heads
        if service.gpus and groups % service.gpus:
            valid = [number for number in range(1, groups + 1) if groups % number == 0]
            raise ConfigError(
                f"--gpus {service.gpus} does not divide the decoder's {groups} key-value groups.",
                fix=f"Possible: {', '.join(map(str, valid))}.",
            )

    def launch(self, service: Service) -> Launch:
        """``vllm serve``."""
        command = [
            str(program_in(ENVIRONMENT, "vllm")), "serve", str(service.directory),
            "--served-model-name", service.name,
            "--host", service.host, "--port", str(service.port),
            "--dtype", service.dtype,
            "--max-model-len", str(service.context),
            "--config-format", "hf", "--load-format", "safetensors", "--tokenizer-mode", "hf",
            "--reasoning-parser-plugin", PLUGIN, "--reasoning-parser", PARSER,
            "--tool-parser-plugin", PLUGIN, "--tool-call-parser", PARSER, "--enable-auto-tool-choice",
        ]  # fmt: skip
        variables = {**_QUIET, "PYTHONPATH": str(PROJECT)}  # for the parsers, which import this package
        if service.gpus:
            command += ["--tensor-parallel-size", str(service.gpus)]
        else:
            command += ["--enforce-eager", "--max-num-seqs", "8"]
            variables |= {"VLLM_CPU_KVCACHE_SPACE": str(_cache_gib(service)), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        return Launch((*command, *service.further), variables)

    def greedy(self, service: Service, asked: Asked) -> GreedyReply:
        """Ask with the switch that makes vLLM return the tokens."""
        body = body_of(asked.question, self.served_name(service))
        body |= {"stream": False, "return_token_ids": True, "skip_special_tokens": False}
        del body["stream_options"]
        reply: dict[str, Any] = whole_reply(f"{service.address}/chat/completions", body)
        return GreedyReply(tuple(reply["prompt_token_ids"]), tuple(reply["choices"][0]["token_ids"]))


def _cache_gib(service: Service) -> int:
    """Memory for keys and values of one conversation of full length, in whole GiB."""
    return math.ceil(cached_bytes(service.architecture.decoder, service.dtype) * service.context / 2**30)
