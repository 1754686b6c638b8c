"""Where a rank's optimizer states go: onto its device, or as much as the configuration says into host memory.

Whether the host has the room is asked before any of it is taken. What a process takes beyond its control group's limit
is not refused by the system: it ends the process.
"""

from __future__ import annotations

import math

import torch
from megatron.core import parallel_state
from megatron.core.optimizer import MegatronOptimizer

from megatron_apriel.config.schema import StageConfig
from megatron_apriel.errors import ConfigError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.parallel.agreement import alike
from megatron_apriel.parallel.groups import current_device
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning.hardware import Hardware
from megatron_apriel.planning.host_memory import SPARE, free_host_memory, ranks_of_this_host
from megatron_apriel.planning.memory import host_share
from megatron_apriel.quantities import size
from megatron_apriel.train.optimizer import own_optimizers


def place_states(optimizer: MegatronOptimizer, config: StageConfig, architecture: Architecture, layout: Layout) -> None:
    """Make the optimizer's states where ``optimizer.host`` says; collective.

    Raises:
        ConfigError: host memory does not hold them.
    """
    share = share_on_host(config, architecture, layout)

    def make() -> None:
        for own in own_optimizers(optimizer):
            own.make_states(share, permit=lambda needed: check_host_memory(config, needed))

    alike(make)


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


def check_host_memory(config: StageConfig, needed: int) -> None:
    """Refuse to take more than there is: ``needed`` bytes for each rank of this machine. Raises ConfigError."""
    if not needed:
        return
    ranks, room, most = ranks_of_this_host(), free_host_memory(), config.optimizer.host_memory
    usable = int(room.free * (1 - SPARE))
    if needed * ranks > (usable if most is None else min(most, usable)):
        for_ranks = f"{size(needed * ranks)} for {ranks} ranks, " if ranks > 1 else ""
        bound = "" if most is None or most > usable else f" and optimizer.host_memory allows {size(most)}"
        raise ConfigError(
            f"optimizer.host={config.optimizer.host} needs {size(needed)} of host memory, {for_ranks}and"
            f" {size(usable)} may be taken{bound}.",
            f"{room.of} has {size(room.free)} free, of which a tenth is left to data and program.",
            "Lower optimizer.host, give the job more memory, or divide the model over more GPUs (tools/plan.py).",
        )


def placement_in_words(optimizer: MegatronOptimizer) -> str | None:
    """The line that says how much of this rank's states lies where; None if all is on the device."""
    states = [own.states for own in own_optimizers(optimizer)]
    on_host = sum(each.host_bytes for each in states)
    if not on_host:
        return None
    everything = sum(tensor.nbytes for each in states for tensor in each.tensors())
    return f"optimizer states: {size(everything - on_host)} on the device, {size(on_host)} in host memory"
