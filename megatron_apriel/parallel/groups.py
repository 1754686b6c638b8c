"""Process groups, device and random states of a run, made from a layout and taken down again.

The arithmetic of who stands where is in ``layout.py`` and needs no torch; here it becomes communicators. Megatron Core
keeps its groups in a module (``parallel_state``); this file is the only one that makes or destroys them.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import random
from collections.abc import Iterator

import numpy
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

from megatron_apriel.errors import ConfigError, TransientError, listed, shown
from megatron_apriel.parallel import cpu, user_buffers
from megatron_apriel.parallel.fp8_scales import forget_scales
from megatron_apriel.parallel.layout import Layout, started_ranks
from megatron_apriel.parallel.meeting import first_host, met
from megatron_apriel.parallel.watch import ended_soon, other_ranks, raised_together
from megatron_apriel.quantities import counted

TIMEOUT = datetime.timedelta(minutes=30)
"""How long a collective may wait for the slowest rank before the run is given up."""


@contextlib.contextmanager
def joined() -> Iterator[torch.device]:
    """Within it, this rank has its device and can talk to all others; yields the device.

    Takes rank and world size from the environment that torchrun and Slurm's ``srun`` set, and a single process without
    one as a world of one. A default process group that exists already is used and left in place. If another rank dies,
    this one is ended; so is one that fails and cannot end by itself (``watch.py``).

    Raises:
        ConfigError: if there are more ranks on this host than devices.
    """
    cpu.enable()
    device = _take_device()
    if dist.is_initialized():
        yield device
        return
    _join()
    try:
        with _others_watched():
            yield device
    except BaseException as error:
        if raised_together(error) or dist.get_world_size() == 1:
            dist.destroy_process_group()
        else:
            # Not destroyed: that waits for kernels under way, and those for ranks that may be gone.
            ended_soon(error)
        raise
    dist.destroy_process_group()


@contextlib.contextmanager
def initialized(layout: Layout, seed: int = 1234) -> Iterator[torch.device]:
    """:func:`joined`, and within it Megatron's process groups of a layout and this rank's random states.

    With the groups goes what libraries keep for all models that ran on them.

    Args:
        layout: how the ranks are laid out.
        seed: of parameters' initialisation and of dropout; shifted per tensor-parallel and pipeline rank.

    Raises:
        ConfigError: as :func:`joined`, and if the number of ranks is not the layout's.
    """
    with joined() as device:
        if dist.get_world_size() != layout.world_size:
            raise ConfigError(
                f"the layout is for {counted(layout.world_size, 'rank')}, but"
                f" {counted(dist.get_world_size(), 'was', 'were')} started.",
                fix="Start as many processes as the layout has ranks (torchrun --nproc-per-node, --nnodes; or srun,"
                " with MASTER_ADDR and MASTER_PORT set).",
            )
        try:
            parallel_state.initialize_model_parallel(
                tensor_model_parallel_size=layout.tensor,
                pipeline_model_parallel_size=layout.pipeline,
                virtual_pipeline_model_parallel_size=layout.virtual if layout.virtual > 1 else None,
                context_parallel_size=layout.context,
                distributed_timeout_minutes=int(TIMEOUT.total_seconds() // 60),
            )
            seed_all(seed)
            yield device
            # Not after a failure: another rank may be gone, and the device would wait for it.
            user_buffers.release()
        finally:
            forget_scales()
            parallel_state.destroy_model_parallel()


def seed_all(seed: int) -> None:
    """Seed Python's, NumPy's, torch's and Megatron's random states; Megatron's differ where the parameters do."""
    stage_seed = seed + 100 * parallel_state.get_pipeline_model_parallel_rank()
    random.seed(stage_seed)
    numpy.random.seed(stage_seed % 2**32)
    torch.manual_seed(stage_seed)
    model_parallel_cuda_manual_seed(stage_seed, force_reset_rng=True)


def current_device() -> torch.device:
    """The device that this rank computes on."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _take_device() -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
    if torch.cuda.device_count() == 1 and "LOCAL_RANK" not in os.environ and "SLURM_LOCALID" in os.environ:
        local_rank = 0  # Slurm bound each task to a GPU of its own (--gpus-per-task), the only one that it sees
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"rank {local_rank} of this host has no device:"
            f" {counted(torch.cuda.device_count(), 'CUDA device is', 'CUDA devices are')} visible.",
            "Every process drives one device.",
            "Start as many processes per host as it has devices, or widen CUDA_VISIBLE_DEVICES.",
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _join() -> None:
    """Make the default process group from the environment, or alone where there is none.

    Raises TransientError where the ranks do not find each other: a port that is taken, a rank that does not come.
    ConfigError where a launcher's words are not all there.
    """
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    try:
        if "RANK" in os.environ:
            _check_launcher()
            dist.init_process_group(backend, timeout=TIMEOUT)
        elif {"SLURM_PROCID", "SLURM_NTASKS", "MASTER_ADDR"} <= os.environ.keys():
            _join_in_step(backend, int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"]))
        else:
            dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=TIMEOUT)
    except dist.DistError as error:
        place = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise TransientError(
            f"this rank could not meet the others at {place}: {str(error).splitlines()[0]}",
            "The port may still be held by an earlier run, or a rank did not come.",
            "Start the same command again, with another MASTER_PORT if it stays so.",
        ) from error


def _check_launcher() -> None:
    """Raise ConfigError where what torch reads of a launcher's words is not there, or cannot be."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    rank, ranks, way_out = os.environ["RANK"], started_ranks(os.environ, "WORLD_SIZE"), "Start by torchrun or srun"
    if missing := [name for name in names if not os.environ.get(name)]:
        raise ConfigError(
            f"the environment has RANK={shown(rank)}, and lacks {listed(missing)}.",
            "By these the ranks of a run know how many they are and where they meet.",
            f"{way_out}, which set all of them; or unset RANK for a process alone.",
        )
    if not (rank.isdecimal() and int(rank) < ranks):
        raise ConfigError(
            f"RANK={shown(rank)} is not one of WORLD_SIZE={ranks} ranks, which are numbered from 0.", fix=f"{way_out}."
        )


def _join_in_step(backend: str, rank: int, world_size: int) -> None:
    """Make the default process group of a Slurm step."""
    if world_size == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1, timeout=TIMEOUT)
        return
    with met(os.environ, rank, world_size, TIMEOUT) as store:
        store.set(f"here/{rank}", "")
        if rank == 0:  # it answers latecomers until all are here
            store.wait([f"here/{other}" for other in range(world_size)], TIMEOUT)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=TIMEOUT)


def _others_watched() -> contextlib.AbstractContextManager[None]:
    """This rank ends if another one that it met is gone; see ``watch.py``."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    if ranks == 1:
        return contextlib.nullcontext()
    host = os.environ.get("MASTER_ADDR") or first_host(os.environ.get("SLURM_STEP_NODELIST", ""))
    return other_ranks(dist.distributed_c10d._get_default_store(), host, rank, ranks)


def image_shares_group() -> dist.ProcessGroup:
    """The tensor- and context-parallel ranks of one model replica and stage: those that share a sequence's images."""
    return parallel_state.get_tensor_and_context_parallel_group()


def context_group() -> dist.ProcessGroup:
    """The context-parallel ranks of one replica, stage and tensor shard: those that divide a sequence's tokens."""
    return parallel_state.get_context_parallel_group()


def group_of_one() -> dist.ProcessGroup:
    """A group of this rank alone, for modules that hold all of their parameters on every rank."""
    # Made by its member only, so that a job of a thousand ranks does not make a thousand groups one after another.
    return dist.new_group([dist.get_rank()], use_local_synchronization=True)
