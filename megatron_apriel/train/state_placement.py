"""What a rank keeps in which form and where: its optimizer's states, and in host memory also inputs of its layers.

A save in the background takes host memory too, for a copy of what it writes.

Whether the host has the room is asked by all ranks before any of them takes a part of it. What a process takes beyond
its control group's limit is not refused by the system: it ends the process.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from megatron.core import parallel_state
from megatron.core.optimizer import MegatronOptimizer
from torch import Tensor

from megatron_apriel.checkpoint.training_state import bytes_of_copy, distributed_parts
from megatron_apriel.config.choices import MOMENTS
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.errors import ConfigError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.tensor_names import Component, component_of
from megatron_apriel.model.apriel import AprielModel
from megatron_apriel.parallel.agreement import alike, greatest
from megatron_apriel.parallel.groups import current_device
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning.beginning import Beginning
from megatron_apriel.planning.choosing_moments import chosen_moments, with_moments
from megatron_apriel.planning.hardware import Hardware
from megatron_apriel.planning.host_memory import SPARE, free_host_memory, ranks_of_this_host
from megatron_apriel.planning.memory import host_share, inputs_on_host
from megatron_apriel.planning.state_forms import Kind, StateForm, form_of
from megatron_apriel.quantities import size
from megatron_apriel.train.layer_inputs import LayerInputs
from megatron_apriel.train.optimizer import own_optimizers


def place_inputs(
    chunks: Sequence[AprielModel], config: StageConfig, architecture: Architecture, layout: Layout
) -> LayerInputs | None:
    """Have what enters recomputed layers wait where ``recompute.inputs`` says; collective. None: on the device.

    Raises:
        ConfigError: host memory does not hold it.
    """
    if config.recompute.inputs == "gpu":
        return None
    rank = parallel_state.get_pipeline_model_parallel_rank()
    config = config.with_compute_on(torch.cuda.is_available())
    count, bytes_of_one = inputs_on_host(config, architecture.decoder, layout, rank)
    needed = count * bytes_of_one
    alike(lambda: check_host_memory(config, "recompute.inputs=host", "Set recompute.inputs=gpu", needed))

    def make() -> LayerInputs:
        inputs = LayerInputs(count, bytes_of_one, current_device())
        for chunk in chunks:
            inputs.follow(chunk.decoder)
        return inputs

    return alike(make)


def place_states(
    optimizer: MegatronOptimizer, config: StageConfig, architecture: Architecture, layout: Layout, beside: int = 0
) -> None:
    """Make the optimizer's states, in their forms, where ``optimizer.host`` says; collective.

    Args:
        optimizer: theirs.
        config, architecture, layout: of the run.
        beside: bytes of host memory that this rank has taken already, which count as its states do.

    Raises:
        ConfigError: host memory does not hold them.
    """
    share, forms = share_on_host(config, architecture, layout), state_forms(optimizer, config)
    needed = sum(own.host_bytes(share, forms=forms) for own in own_optimizers(optimizer))
    setting = f"optimizer.host={config.optimizer.host}"
    alike(lambda: check_host_memory(config, setting, "Lower optimizer.host", needed, beside))

    def make() -> None:
        for own in own_optimizers(optimizer):
            own.make_states(share, forms=forms)

    alike(make)


def check_copy(
    chunks: Sequence[AprielModel], optimizer: MegatronOptimizer, config: StageConfig, beside: int = 0
) -> None:
    """Check that the host holds what ``checkpoint.background`` copies there at the first save; collective.

    Args:
        chunks, optimizer: what is saved, with its states made.
        config: of the run.
        beside: as of :func:`place_states`.

    Raises:
        ConfigError: host memory does not hold it.
    """
    if not config.checkpoint.background:
        return
    needed, setting = bytes_of_copy(chunks, optimizer), "checkpoint.background=true"
    alike(lambda: check_host_memory(config, setting, "Set checkpoint.background=false", needed, beside))


def state_forms(optimizer: MegatronOptimizer, config: StageConfig) -> dict[Tensor, StateForm]:
    """The form of each parameter of this rank's optimizers, by the model's parameter of which it is a run."""
    forms = {}
    for part in distributed_parts(optimizer):
        names = {parameter: name for chunk in part.model_chunks for name, parameter in chunk.named_parameters()}
        for of_model, (group, number) in part.model_param_group_index_map.items():
            vocabulary = component_of(names[of_model]) in (Component.EMBEDDING, Component.HEAD)
            kind: Kind = "vector" if of_model.dim() < 2 else "vocabulary" if vocabulary else "matrix"
            own = part.optimizer.param_groups[group]["params"][number]
            forms[own] = form_of(config.optimizer, own.dtype == torch.bfloat16, kind)
    return forms


def with_settled_moments(config: StageConfig, beginning: Beginning) -> StageConfig:
    """The stage with ``optimizer.moments=auto`` decided, for all ranks alike; collective."""
    if config.optimizer.moments != "auto":
        return config

    def chosen() -> int:
        usable, most = free_host_memory().free * (1 - SPARE), config.optimizer.host_memory
        host = (usable if most is None else min(most, usable)) / ranks_of_this_host()
        gpu = memory_for_program(current_device())
        stage = chosen_moments(config, beginning.architecture, beginning.layout, gpu, host, beginning.state)
        return MOMENTS.index(stage.optimizer.moments)

    return with_moments(config, MOMENTS[greatest(alike(chosen))])


def share_on_host(config: StageConfig, architecture: Architecture, layout: Layout) -> float:
    """Part of this rank's states that lies on the host. ``auto`` is what does not fit on its GPU; none on a CPU."""
    if config.optimizer.host != "auto":
        return config.optimizer.host
    device = current_device()
    if device.type == "cpu":
        return 0.0
    rank = parallel_state.get_pipeline_model_parallel_rank()
    return host_share(config, architecture, layout, rank, memory_for_program(device))


def memory_for_program(device: torch.device) -> float:
    """Bytes of the device that a run may fill; what a plan reserves is left to CUDA, NCCL and the allocator's gaps."""
    if device.type == "cpu":
        return math.inf
    return torch.cuda.get_device_properties(device).total_memory - Hardware().reserve * 2**30


def check_host_memory(config: StageConfig, setting: str, instead: str, needed: int, beside: int = 0) -> None:
    """Refuse to take more than there is. Raises ConfigError.

    Args:
        config: ``optimizer.host_memory`` bounds everything that a run takes of a machine.
        setting, instead: what asks for it, and what to do where there is not as much.
        needed: bytes for each rank of this machine.
        beside: bytes that each has taken already.
    """
    if not needed:
        return
    ranks, room, most = ranks_of_this_host(), free_host_memory(), config.optimizer.host_memory
    usable = int(room.free * (1 - SPARE))
    allowed = usable if most is None else max(most - beside * ranks, 0)
    if needed * ranks > min(allowed, usable):
        for_ranks = f"{size(needed * ranks)} for {ranks} ranks, " if ranks > 1 else ""
        bound = ""
        if most is not None and allowed <= usable:
            bound = f" and optimizer.host_memory allows {size(most)}"
            bound += f", of which {size(beside * ranks)} are taken" if beside else ""
        raise ConfigError(
            f"{setting} needs {size(needed)} of host memory, {for_ranks}and {size(usable)} may be taken{bound}.",
            f"{room.of} has {size(room.free)} free, of which a tenth is left to data and program.",
            f"{instead}, give the job more memory, or divide the model over more GPUs (tools/plan.py).",
        )


def placement_in_words(optimizer: MegatronOptimizer, config: StageConfig, inputs: LayerInputs | None) -> list[str]:
    """In what form this rank's states are, and what lies in host memory, a line each.

    Nothing if they are exact and all is on the device.
    """
    states, section = [own.states for own in own_optimizers(optimizer)], config.optimizer
    on_host = sum(each.host_bytes for each in states)
    forms = [
        f"{what} in {form}"
        for what, form in (("moments", section.moments), ("masters", section.master), ("gradients", section.gradients))
        if form != "float32"
    ]
    lines = []
    if on_host or forms:
        everything = sum(tensor.nbytes for each in states for tensor in each.tensors())
        where = f"{size(everything - on_host)} on the device, {size(on_host)} in host memory"
        lines.append(f"optimizer states: {', '.join([where, *forms])}")
    if inputs is not None:
        lines.append(f"inputs of recomputed layers: up to {size(inputs.host_bytes)} in host memory")
    return lines
