"""A directory behind an engine: what is to be served on this machine, and the engine's program started for it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from megatron_apriel.errors import CheckpointError, ConfigError, printable
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.kinds import Kind, architecture_of, recognise
from megatron_apriel.formats.tensor_accounts import open_accounted
from megatron_apriel.generate.engines.engine import Engine, Launch, Service
from megatron_apriel.generate.engines.gpus import gpu_memory
from megatron_apriel.generate.engines.memory import longest_context
from megatron_apriel.generate.engines.running import Program, run_step
from megatron_apriel.quantities import counted
from megatron_apriel.terminal import note

READY_SECONDS = 1800
"""For which an engine may load."""


def service_of(
    model: Path, *, gpus: int | None = None, dtype: str | None = None, context: int | None = None, name: str = "",
    host: str = "127.0.0.1", port: int = 8000, further: Sequence[str] = (),
) -> tuple[Service, list[str]]:  # fmt: skip
    """What is to be served, and remarks on what was chosen for it.

    Args:
        model: its directory.
        gpus: that it is divided over; by default one, where there is one.
        dtype: that is computed in; by default bfloat16 on GPUs and float32 on a CPU.
        context: most tokens of a conversation; by default those that have room.
        name: for clients; by default the directory's.
        host, port: where.
        further: options for the program, as they are.

    Raises:
        CheckpointError: there is no model, its tensors are not those of its config, or it is not in Hugging Face's
            form.
        ConfigError: it does not fit the GPUs or the context.
    """
    kind = recognise(model)
    directory = model.resolve()
    _check_form(directory, kind)
    architecture = architecture_of(directory)
    open_accounted(directory, architecture, "model")  # an engine may load for minutes before it finds a fault
    memory = gpu_memory()
    gpus = gpus if gpus is not None else min(1, len(memory))
    dtype = dtype or ("bfloat16" if gpus else "float32")
    if gpus < 0 or gpus > len(memory):
        raise ConfigError(
            f"--gpus {gpus}: this machine has {counted(len(memory), 'GPU')} that can be used.",
            fix="0 serves on the CPU; CUDA_VISIBLE_DEVICES says which are used.",
        )
    most, remarks = _context(context, architecture, dtype, memory[:gpus])
    service = Service(
        directory=directory, kind=kind, architecture=architecture, name=name or directory.name, host=host, port=port,
        gpus=gpus, dtype=dtype, context=most, further=tuple(further),
    )  # fmt: skip
    return service, remarks


def _check_form(directory: Path, kind: Kind) -> None:
    """Raise CheckpointError for models that are not in Hugging Face's form: prompts are made by the chat template."""
    if kind is not Kind.HF:
        what = "Mistral's form" if kind is Kind.MISTRAL else "the form of a run's checkpoints"
        raise CheckpointError(
            f"{printable(directory)} is in {what}.",
            "Its prompts would not be in the trained format, which is in the chat template of Hugging Face's form.",
            f"Convert it: python tools/convert_checkpoint.py {shlex.quote(str(directory))} DIRECTORY --to hf",
        )


def _context(asked: int | None, architecture: Architecture, dtype: str, memory: list[int]) -> tuple[int, list[str]]:
    """Most tokens of a conversation, and a remark where it is less than the model reads."""
    most, longest = architecture.decoder.max_positions, longest_context(architecture, dtype, memory)
    if asked is not None and asked > most:
        raise ConfigError(f"--context {asked} is more than the {most} tokens that the model reads.")
    remark = f"conversations have {longest} tokens at most; the model reads {most} (--context says another limit)"
    return asked or longest, [remark] if asked is None and longest < most else []


def spelled(launch: Launch) -> str:
    """A program as a person would start it."""
    variables = [f"{name}={shlex.quote(value)}" for name, value in launch.variables.items()]
    return " ".join([*variables, shlex.join(launch.command)])


def started(engine: Engine, service: Service, log: Path | None = None, *, passes_signals: bool = True) -> Program:
    """The engine's program, once what it needs is made; see :class:`Program`."""
    for step in engine.steps(service):
        note(f"running {spelled(step)}")
        run_step(step)
    return Program(engine.launch(service), log, passes_signals=passes_signals)


def ready_address(engine: Engine, service: Service) -> str:
    """What answers once the model can be asked."""
    return service.address.removesuffix("/v1") + engine.ready_path
