"""The models that an evaluation asks: servers, or a directory that an engine serves while it is asked.

``transformers`` needs no server: the model is loaded into this process, and answers one question at a time. Any other
engine's program is started once for all benchmarks, at a port that is free, and is gone at the end, whatever ends it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_apriel.errors import ConfigError, ServerError
from megatron_apriel.generate.answer import Model
from megatron_apriel.generate.engines.environments import program_in
from megatron_apriel.generate.engines.gpus import gpu_memory
from megatron_apriel.generate.engines.running import free_port
from megatron_apriel.generate.engines.serving import READY_SECONDS, ready_address, service_of, started
from megatron_apriel.generate.engines.table import ENGINES
from megatron_apriel.generate.engines.transformers_serve import TransformersServe
from megatron_apriel.generate.engines.vllm import ENVIRONMENT, Vllm
from megatron_apriel.generate.opening import is_address, open_model
from megatron_apriel.generate.server import ServerModel
from megatron_apriel.outputs import terminating_signals_raise
from megatron_apriel.quantities import counted
from megatron_apriel.terminal import note

IN_PROCESS = TransformersServe.name
"""The engine that is no program here."""


@dataclass(frozen=True)
class Places:
    """Which models are asked, and how a directory is served.

    Attributes:
        names: addresses, or a directory.
        engine: of a directory; empty for the one that suits the machine.
        gpus, context: as :func:`~megatron_apriel.generate.engines.serving.service_of` takes them.
        device: for transformers.
        served_name, key_variable: of servers.
    """

    names: Sequence[str]
    engine: str = ""
    gpus: int | None = None
    context: int | None = None
    device: str = ""
    served_name: str = ""
    key_variable: str = ""

    def check(self) -> str:
        """The engine that serves the directory; empty where servers are asked.

        Raises:
            ConfigError: options that contradict each other.
        """
        directories = [name for name in self.names if not is_address(name)]
        if not directories:
            if self.engine or self.gpus is not None or self.context is not None:
                raise ConfigError(
                    f"--engine, --gpus and --context are of a directory, and {self.names[0]} is a server.",
                    fix="Leave them out: a server is asked as it runs.",
                )
            return ""
        if len(self.names) > 1:
            raise ConfigError(
                f"{directories[0]} is a directory, and one is asked alone.",
                fix="Give one directory, or addresses only; tools/serve.py serves a directory at an address.",
            )
        engine = self.engine or (IN_PROCESS if self.device else default_engine())
        if engine == IN_PROCESS and (self.gpus is not None or self.context is not None):
            raise ConfigError(
                f"--gpus and --context have no meaning for {engine}.", fix="Name the device with --device."
            )
        if engine != IN_PROCESS and (self.device or self.served_name or self.key_variable):
            raise ConfigError(
                f"--device, --served-name and --key-variable have no meaning for a directory that {engine} serves.",
                fix="Leave them out; --gpus 0 serves on the CPU.",
            )
        return engine


def default_engine() -> str:
    """vLLM where there is a GPU and its environment was made; else transformers."""
    return Vllm.name if gpu_memory() and program_in(ENVIRONMENT, "vllm").is_file() else IN_PROCESS


@contextmanager
def opened(places: Places, log_folder: Path) -> Iterator[list[Model]]:
    """The models, for the time of the block; what an engine prints goes into a file of ``log_folder``.

    Raises:
        ConfigError, CheckpointError: a model cannot be served so.
        ServerError: it cannot be reached, or its program ended.
    """
    engine = places.check()
    if engine and engine != IN_PROCESS:
        with terminating_signals_raise(), _served(places, engine, log_folder / f"{engine}.log") as model:
            yield [model]
        return
    if engine:
        note(f"loading {places.names[0]} by {engine}, in this process")
    begun = time.monotonic()
    with ExitStack() as stack:
        options = {"served_name": places.served_name, "key_variable": places.key_variable, "device": places.device}
        models = [stack.enter_context(open_model(name, **options)) for name in places.names]
        if len(names := dict.fromkeys(model.name for model in models)) > 1:
            note(f"warning: the servers have models of different names, which share the questions: {', '.join(names)}")
        if engine:
            note(f"loaded in {time.monotonic() - begun:.0f} s")
        yield models


@contextmanager
def _served(places: Places, name: str, log: Path) -> Iterator[Model]:
    engine = ENGINES[name]
    directory = Path(places.names[0])
    # A name that no other program has: what answers at the port may not be ours.
    own_name = f"{directory.resolve().name}-{secrets.token_hex(4)}"
    service, remarks = service_of(directory, gpus=places.gpus, context=places.context, name=own_name)
    engine.check(service)
    service = replace(service, port=free_port(service.host))
    for remark in (*remarks, *engine.launch(service).remarks):
        note(f"note: {remark}")
    note(
        f"starting {name} on {counted(service.gpus, 'GPU') if service.gpus else 'the CPU'}; what it prints is in {log}"
    )
    with started(engine, service, log, passes_signals=False) as program:
        begun = time.monotonic()
        program.wait_until_ready(ready_address(engine, service), READY_SECONDS)
        note(f"{name} answers, after {time.monotonic() - begun:.0f} s")

        def check() -> None:
            program.check_running(" while it was asked")

        with ServerModel(service.address, check=check) as model:
            if model.name != (wanted := engine.served_name(service)):
                raise ServerError(
                    f"{service.address} serves {model.name}, and not {wanted}.",
                    f"Another program took the port before {name} did.",
                    "Give the same command again: another port is taken then.",
                )
            yield model
