"""All engines, by their names on the command line."""

from __future__ import annotations

from megatron_apriel.generate.engines.engine import Engine
from megatron_apriel.generate.engines.llama import Llama
from megatron_apriel.generate.engines.transformers_serve import TransformersServe
from megatron_apriel.generate.engines.vllm import Vllm

ENGINES: dict[str, Engine] = {engine.name: engine for engine in (Vllm(), Llama(), TransformersServe())}
