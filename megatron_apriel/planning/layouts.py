"""All layouts that a stage could run on so many GPUs, with their predicted memory and time per step. No torch.

Tensor parallelism stays inside a node. Where a pipeline can be split evenly and by load, the better of the two stands
for both. What :func:`megatron_apriel.parallel.checks.check_layout` refuses is kept with its reason.

The plan also chooses what is no matter of layout. Where the stage does not say so itself, 8-bit copies of weights may
be remade. One GPU cannot split anything: there, optimizer states that do not fit go to the host. Of layers that are
recomputed as a whole, as many are left out as fit and pay: each costs host memory and a longer update, and spares every
micro-batch a forward pass. Their inputs wait on the host where that is what makes a layout fit, or fit better.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from megatron_apriel.config.choices import INPUTS, RECOMPUTE
from megatron_apriel.config.machine_sections import ParallelSection, RecomputeSection
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.errors import ConfigError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.parallel.balance import balanced_layers, stage_extras
from megatron_apriel.parallel.checks import check_layout
from megatron_apriel.parallel.layout import Layout, divisors
from megatron_apriel.planning.certainty import Doubt, doubts
from megatron_apriel.planning.choosing_moments import allowed
from megatron_apriel.planning.hardware import Hardware
from megatron_apriel.planning.memory import RankMemory, rank_memory
from megatron_apriel.planning.step_time import StepTime, step_time
from megatron_apriel.planning.workload import Workload

GIB = 2**30
TENSOR, CONTEXT = (1, 2, 4, 8), (1, 2, 4, 8, 16)
MOST_STAGES, VIRTUAL = 16, (1, 2, 3, 4, 6)


@dataclass(frozen=True)
class Candidate:
    """A layout that may run, as the stage that would run on it."""

    config: StageConfig
    layout: Layout
    layers: tuple[int, ...]
    """Decoder layers of each virtual stage."""
    memory: RankMemory
    """Of the pipeline stage that needs most."""
    fullest_stage: int
    time: StepTime
    available: float
    """Bytes of a GPU that are left to the program."""
    host_available: float
    """Bytes of the host beside it."""
    doubts: list[Doubt]
    """Why its time may be further off than others'."""

    @property
    def over(self) -> float:
        """Bytes by which it does not fit, on the GPU or the host; negative where it does."""
        return _over(self.memory, self.available, self.host_available)

    @property
    def tokens_per_second(self) -> float:
        """Of one GPU."""
        return self.config.batch_tokens / self.time.total / self.layout.world_size

    @property
    def teraflops(self) -> float:
        """Of one GPU, by the rule of :mod:`megatron_apriel.formats.flops`."""
        return self.time.flops / self.time.total / self.layout.world_size / 1e12

    @property
    def gpu_hours(self) -> float | None:
        """Of the whole stage; None where its epochs are not counted."""
        if self.config.tokens is None:
            return None
        return self.config.steps * self.time.total * self.layout.world_size / 3600

    @property
    def label(self) -> str:
        return _label(self.config.parallel)


@dataclass
class Candidates:
    """What was found: one entry of ``accepted`` for each layout, kind of recomputation, and for 8-bit copies of weights
    that are kept and remade."""

    accepted: list[Candidate] = field(default_factory=list)
    refused: list[tuple[str, ConfigError]] = field(default_factory=list)

    def fitting(self) -> list[Candidate]:
        """Of each layout the fastest kind of recomputation that fits; the fastest first."""
        fitting = [candidate for candidate in self.accepted if candidate.over <= 0]
        return _one_each(sorted(fitting, key=lambda candidate: candidate.time.total))

    def missing(self) -> list[Candidate]:
        """Of each layout that fits in no way the smallest; the nearest first."""
        fitting = {candidate.label for candidate in self.accepted if candidate.over <= 0}
        too_large = [candidate for candidate in self.accepted if candidate.label not in fitting]
        return _one_each(sorted(too_large, key=lambda candidate: candidate.over))


def candidates(
    config: StageConfig, architecture: Architecture, gpus: int, gpu: Hardware, workload: Workload
) -> Candidates:
    """Every layout on so many GPUs, predicted.

    With ``optimizer.moments=auto``, those with moments of the first form with which any layout fits.

    Args:
        config: the stage; its own layout and recomputation are replaced.
        architecture: the model.
        gpus: GPUs of the run.
        gpu: rates, links and memory.
        workload: what the sequences hold.
    """
    for stage in allowed(config):
        found = _candidates(stage, architecture, gpus, gpu, workload)
        if found.fitting():
            break
    return found


def _candidates(
    config: StageConfig, architecture: Architecture, gpus: int, gpu: Hardware, workload: Workload
) -> Candidates:
    found = Candidates()
    for tensor, context, pipeline, virtual in _shapes(architecture, gpus, gpu):
        parallel = config.parallel.model_copy(
            update={
                "tensor": tensor,
                "sequence": tensor > 1,
                "context": context,
                "pipeline": pipeline,
                "virtual": virtual,
                "layers_per_stage": None,
                # One rank has no gathers and scatters that could be overlapped.
                "tensor_overlap": config.parallel.tensor_overlap and tensor > 1,
            }
        )
        stage = config.model_copy(update={"parallel": parallel, "recompute": RecomputeSection()})
        try:
            check_layout(_split(stage, architecture, workload), architecture, gpus)
        except ConfigError as error:
            found.refused.append((_label(parallel), error))
            continue
        for kind in _kinds(stage, architecture.decoder.num_layers, gpus):
            tried = [
                _candidate(split, architecture, gpus, gpu, workload)
                for one in kind
                for split in _splits(one, architecture, workload)
            ]
            found.accepted.append(min(tried, key=lambda entry: (max(entry.over, 0), entry.time.total)))
    return found


def _kinds(stage: StageConfig, num_layers: int, gpus: int) -> Iterator[list[StageConfig]]:
    """The stage with each kind of recomputation, of which the best is to be found among those of a list."""
    for one in _with_copies(_with_host(stage) if gpus == 1 else stage):
        for mode in RECOMPUTE:
            counts = [None, *range(num_layers - 1, 0, -1)] if gpus == 1 and mode == "full" else [None]
            for inputs in INPUTS if mode == "full" else INPUTS[:1]:
                sections = [RecomputeSection(mode=mode, layers=count, inputs=inputs) for count in counts]
                yield [one.model_copy(update={"recompute": section}) for section in sections]


def _with_host(stage: StageConfig) -> StageConfig:
    """With states on the host where they do not fit on one GPU, unless the stage says otherwise."""
    optimizer = stage.optimizer
    if "host" in optimizer.model_fields_set or stage.checkpoint.background:
        return stage
    return stage.model_copy(update={"optimizer": optimizer.model_copy(update={"host": "auto"})})


def _with_copies(stage: StageConfig) -> Iterator[StageConfig]:
    """The stage as it is, and with 8-bit copies of weights remade where it does not say what becomes of them."""
    yield stage
    precision = stage.precision
    if precision.fp8 != "none" and "fp8_weights" not in precision.model_fields_set:
        yield stage.model_copy(update={"precision": precision.model_copy(update={"fp8_weights": "remade"})})


def _shapes(architecture: Architecture, gpus: int, gpu: Hardware) -> Iterator[tuple[int, int, int, int]]:
    """Ranks over tensor, context, pipeline, and chunks of each pipeline rank."""
    for tensor in TENSOR:
        for context in CONTEXT:
            for pipeline in (number for number in divisors(gpus) if number <= MOST_STAGES):
                if gpus % (tensor * context * pipeline) or (gpus > gpu.gpus_per_node and gpu.gpus_per_node % tensor):
                    continue
                for virtual in VIRTUAL if pipeline > 1 else (1,):
                    if pipeline * virtual <= architecture.decoder.num_layers:
                        yield tensor, context, pipeline, virtual


def _splits(config: StageConfig, architecture: Architecture, workload: Workload) -> list[StageConfig]:
    """The stage with its layers split by load, and evenly where that is another split."""
    by_load, parallel = _split(config, architecture, workload), config.parallel
    is_even = architecture.decoder.num_layers % (parallel.pipeline * parallel.virtual) == 0
    return [by_load, config] if is_even and config != by_load else [by_load]


def _split(config: StageConfig, architecture: Architecture, workload: Workload) -> StageConfig:
    """The stage with its layers split by load; nothing said where that is an even split."""
    parallel = config.parallel
    extras = stage_extras(config, architecture, workload.image_tokens / config.sequence_length)
    layers = balanced_layers(architecture.decoder.num_layers, parallel.pipeline, parallel.virtual, extras)
    if len(set(layers)) == 1:
        return config
    return config.model_copy(update={"parallel": parallel.model_copy(update={"layers_per_stage": layers})})


def _over(memory: RankMemory, available: float, host_available: float) -> float:
    """Bytes by which a rank does not fit, on the GPU or the host; negative where it does."""
    of_gpu, of_host = memory.total - available, memory.on_host - host_available
    return max(of_gpu, of_host) if of_host > 0 else of_gpu


def _candidate(
    config: StageConfig, architecture: Architecture, gpus: int, gpu: Hardware, workload: Workload
) -> Candidate:
    layout = Layout.from_config(config.parallel, gpus)
    memories = [rank_memory(config, architecture, layout, rank, gpu.available) for rank in range(layout.pipeline)]
    # The one that fits least; where all fit, the one that needs most in all.
    host_available = gpu.host_available(gpus, config.optimizer.host_memory)
    over = [max(_over(memory, gpu.available, host_available), 0.0) for memory in memories]
    fullest = max(range(layout.pipeline), key=lambda rank: (over[rank], memories[rank].total + memories[rank].on_host))
    time = step_time(config, architecture, layout, gpu, workload)
    return Candidate(
        config=config,
        layout=layout,
        layers=layout.layers_per_virtual_stage(architecture.decoder.num_layers),
        memory=memories[fullest],
        fullest_stage=fullest,
        time=time,
        available=gpu.available,
        host_available=host_available,
        doubts=doubts(layout, gpu, time),
    )


def _label(parallel: ParallelSection) -> str:
    sizes = {"TP": parallel.tensor, "CP": parallel.context, "PP": parallel.pipeline, "VP": parallel.virtual}
    return " ".join(f"{name}{size}" for name, size in sizes.items())


def _one_each(ordered: list[Candidate]) -> list[Candidate]:
    """The first candidate of each layout."""
    first: dict[str, Candidate] = {}
    for candidate in ordered:
        first.setdefault(candidate.label, candidate)
    return list(first.values())
