"""Predicted seconds of an optimizer step on a layout, from stated rates and shapes alone. No torch.

A step of ``m`` micro-batches takes::

    the pipeline's schedule with m micro-batches  +  gradients and parameters not hidden  +  optimizer

Without a pipeline, the schedule is ``m`` micro-batches one after the other; with one, ``pipeline_schedule.py`` follows
it pass by pass. A pass of a chunk is the work of its layers, of tower or head where it has them, and what it waits for:

* layers and images: ``layer_time.py``. A backward pass is twice the forward pass; a frozen decoder above something that
  trains leaves out the products for the gradients of its weights. Recomputation adds forward passes: of whole layers
  (``full``) or of their MLPs (``selective``), also in a tower that trains;
* tensor parallelism: in each layer two all-gathers and two reduce-scatters forward and as many backward, of the
  ``2 h S/C`` bytes of the hidden states (an all-reduce moves what the two together do), all waited for;
* context parallelism: in each layer an all-gather of keys and values, and a reduce-scatter of their gradients;
* the host: a pass is not over before it has started the kernels of all layers, however few tokens they have;
* pipeline: hidden states and their gradients come one message after both stages are ready for it;
* layers' inputs on the host: a copy of each forward and one backward, which slow what runs beside them, and are
  waited for where they take longer than the layer;
* sums of gradients in 24 bits: traffic of the GPU's memory in each micro-batch, and reductions that nothing hides;
* the optimizer's update: traffic of the GPU's memory; of states on the host, between it and the GPU, both ways at once;
* data parallelism, once a step: float32 gradients are scattered and weights gathered over the replicas. With
  ``parallel.overlap`` the first hides behind the last micro-batch's backward pass and the second behind the first
  one's forward pass; only what is left over counts.

A collective of ``n`` ranks moves ``(n - 1) / n`` of the bytes over its slowest link and costs one latency. Groups whose
ranks all stand in one node have its fast links.

Where the sequences of a step are known, each is followed with its own documents and images, and a step ends with the
replica that has most to do.

Not modelled: the clock, which rises where a GPU waits and falls at its power limit; smaller matrices being slower than
large ones; what ``parallel.tensor_overlap`` hides; ``attention=cudnn``, which is slower than what was measured; waiting
for data, checkpoints, contention between groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from megatron_apriel.config.schema import StageConfig
from megatron_apriel.data.loading.dealing import even_shares
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.flops import model_flops
from megatron_apriel.parallel.data_place import DataPlace
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning.hardware import Hardware
from megatron_apriel.planning.layer_time import (
    GIGA,
    MICRO,
    LayerSeconds,
    head_seconds,
    host_seconds,
    image_seconds,
    layer_seconds,
    sums_seconds,
)
from megatron_apriel.planning.memory import inputs_on_host, rank_memory, state_bytes, trained_parameters
from megatron_apriel.planning.pipeline_schedule import pipeline_seconds
from megatron_apriel.planning.state_forms import StateForm
from megatron_apriel.planning.workload import Content, Workload

MEASURED_FORM = StateForm()
"""Of the states with which ``Hardware.optimizer_bytes`` was measured; smaller ones are read and written in less."""
ZEROED_BYTES = 4.0
"""Of ``Hardware.optimizer_bytes``, what sets a gradient in float32 to zero. A rank does so for all of its parameters,
and the rest for its share of them."""
SUMS_BYTES = 14
"""A gradient in float32 is read and set to zero, its sum in three bytes read and written."""
SUMS_ONCE_BYTES = 48
"""What the norm of sums in 24 bits and setting them to zero take once a step, as memory traffic, beyond those in
float32. From 306 and 319 ms besides micro-batches of the whole model on one H200, 140 of them an update, 2026-11."""
CODES_BYTES = 20
"""What roots and scales of 8-bit moments on the GPU take in an update, as memory traffic. From those 140 ms."""


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step, by what they go to; they add up to ``total``."""

    micro_batches: int
    compute: float
    communication: float
    """Waited for in all micro-batches of the slowest rank, and once a step for gradients and weights."""
    host: float
    """In which the slowest rank's GPU waits for kernels to be started."""
    bubble: float
    optimizer: float
    flops: float
    """Of the whole global batch by the rule of :mod:`megatron_apriel.formats.flops`."""

    @property
    def total(self) -> float:
        return self.compute + self.communication + self.host + self.bubble + self.optimizer


@dataclass(frozen=True)
class _Rank:
    """Seconds of one micro-batch on a pipeline rank, by its chunks.

    Attributes:
        forward, backward: computation.
        waits_forward, waits_backward: for tensor- and context-parallel ranks.
        starts_forward, starts_backward: in which the host starts the kernels of both.
    """

    forward: Sequence[float]
    backward: Sequence[float]
    waits_forward: Sequence[float]
    waits_backward: Sequence[float]
    starts_forward: Sequence[float]
    starts_backward: Sequence[float]

    @property
    def compute(self) -> float:
        return sum(self.forward) + sum(self.backward)

    @property
    def waiting(self) -> float:
        return sum(self.waits_forward) + sum(self.waits_backward)

    @property
    def late(self) -> float:
        """In which kernels are still to be started."""
        return sum(
            max(0.0, starts - work - waits) for half in (True, False) for work, waits, starts in self._parts(half)
        )

    def passes(self, forward: bool) -> list[float]:
        """Of each chunk, all in all."""
        return [max(work + waits, starts) for work, waits, starts in self._parts(forward)]

    def _parts(self, forward: bool) -> Iterator[tuple[float, float, float]]:
        if forward:
            return zip(self.forward, self.waits_forward, self.starts_forward, strict=True)
        return zip(self.backward, self.waits_backward, self.starts_backward, strict=True)


@dataclass(frozen=True)
class _Replica:
    """What one replica does in a step: of each of its sequences, what every pipeline rank does.

    Attributes:
        sequences: by micro-batch and pipeline rank; one micro-batch stands for all where they are alike.
        number: micro-batches.
        message: seconds in which hidden states come from one pipeline stage to the next.
    """

    sequences: Sequence[Sequence[_Rank]]
    number: int
    message: float

    def busy(self, rank: int) -> tuple[float, float, float]:
        """Seconds of computing, of waiting for tensor- and context-parallel ranks and for the host in a step."""
        times = self.number / len(self.sequences)
        ranks = [sequence[rank] for sequence in self.sequences]
        parts = ((one.compute, one.waiting, one.late) for one in ranks)
        compute, waiting, late = (times * sum(part) for part in zip(*parts, strict=True))
        return compute, waiting, late

    def slowest(self) -> tuple[float, float, float]:
        """The same of the pipeline rank with most of it."""
        return max((self.busy(rank) for rank in range(len(self.sequences[0]))), key=sum)

    def seconds(self) -> float:
        """Of all micro-batches, on the schedule."""
        if len(self.sequences[0]) == 1:
            return sum(self.busy(0))
        return pipeline_seconds(self._passes(True), self._passes(False), self.number, self.message)

    def _passes(self, forward: bool) -> list[list[list[float]]]:
        """By rank, chunk and micro-batch."""
        return [
            [list(chunk) for chunk in zip(*(one.passes(forward) for one in ranks), strict=True)]
            for ranks in zip(*self.sequences, strict=True)
        ]


def step_time(
    config: StageConfig, architecture: Architecture, layout: Layout, gpu: Hardware, workload: Workload
) -> StepTime:
    """Predicted time of a step.

    Args:
        config: the stage, with its precision and recomputation.
        architecture: the model.
        layout: the layout, already checked against both.
        gpu: rates and links.
        workload: what the sequences hold.
    """
    contents = workload.of_a_step(config, architecture)
    replicas = [
        _replica(config, architecture, layout, gpu, own) for own in _dealt(config, architecture, layout, contents)
    ]
    scheduled, slowest = max(((replica.seconds(), replica) for replica in replicas), key=lambda pair: pair[0])
    compute, waiting, late = slowest.slowest()
    trained = [trained_parameters(config, architecture, layout, rank) for rank in range(layout.pipeline)]
    exposed, update = max(
        (
            (
                _data_parallel(config, layout, gpu, trained[rank], slowest.sequences[0][rank]),
                _optimizer(
                    config,
                    layout,
                    gpu,
                    trained[rank],
                    state_bytes(config, architecture, layout, rank),
                    rank_memory(config, architecture, layout, rank, gpu.available).host,
                ),
            )
            for rank in range(layout.pipeline)
        ),
        key=sum,
    )
    flops = sum(_flops(config, architecture, content) for content in contents)
    return StepTime(
        micro_batches=slowest.number,
        compute=compute,
        communication=waiting + exposed,
        host=late,
        bubble=max(0.0, scheduled - compute - waiting - late),
        optimizer=update,
        flops=flops * config.sequences_per_step / len(contents),
    )


def _flops(config: StageConfig, architecture: Architecture, content: Content) -> float:
    """Of a sequence, by the FLOPs rule."""
    images = content.images if architecture.tower else ()
    return model_flops(architecture, config.sequence_length, content.squared_lengths, images, config.train)


def _dealt(
    config: StageConfig, architecture: Architecture, layout: Layout, contents: tuple[Content, ...]
) -> list[list[Content]]:
    """The sequences of each replica; one replica stands for all where they are alike."""
    if len(contents) == 1:
        return [list(contents)]
    if config.parallel.dealing == "evenly":
        shares = even_shares([_flops(config, architecture, one) for one in contents], layout.data)
        return [[contents[number] for number in share] for share in shares]
    places = (DataPlace(data_rank=rank, data_size=layout.data) for rank in range(layout.data))
    return [[contents[number] for number in place.sequences(0, len(contents))] for place in places]


def _replica(
    config: StageConfig, architecture: Architecture, layout: Layout, gpu: Hardware, own: Sequence[Content]
) -> _Replica:
    return _Replica(
        sequences=[_sequence(config, architecture, layout, gpu, content) for content in own],
        number=layout.micro_batches(config.sequences_per_step),
        message=_message(config, architecture, layout, gpu),
    )


def _sequence(
    config: StageConfig, architecture: Architecture, layout: Layout, gpu: Hardware, content: Content
) -> list[_Rank]:
    """One micro-batch, which is one sequence, on every pipeline rank."""
    precisions: set[str] = {"none", config.precision.fp8}
    seconds = {fp8: layer_seconds(config, architecture, layout, gpu, content, fp8) for fp8 in precisions}
    head = head_seconds(config, architecture, gpu) / (layout.tensor * layout.context)
    images = image_seconds(config, architecture, layout, gpu, content)
    return [_rank(config, architecture, layout, gpu, rank, seconds, head, images) for rank in range(layout.pipeline)]


def _rank(
    config: StageConfig,
    architecture: Architecture,
    layout: Layout,
    gpu: Hardware,
    rank: int,
    seconds: Mapping[str, LayerSeconds],
    head: float,
    images: tuple[float, float],
) -> _Rank:
    """One micro-batch on a pipeline rank, from the seconds of a layer, of the head and of the images."""
    num_layers = architecture.decoder.num_layers
    sums = sums_seconds(config, architecture, gpu, SUMS_BYTES) / layout.tensor
    forward, backward = [0.0] * layout.virtual, [0.0] * layout.virtual
    moved = inputs_on_host(config, architecture.decoder, layout, rank)[1] / (gpu.host_bandwidth * GIGA)
    waits: list[tuple[float, float]] = []
    starts = [[0.0, 0.0] for _ in range(layout.virtual)]
    for chunk in range(layout.virtual):
        layers, recomputed = layout.layers_of(num_layers, rank, chunk), 0
        for place, layer in enumerate(layers):
            in_8_bits = config.precision.in_8_bits(layer, num_layers)
            fp8 = config.precision.fp8 if in_8_bits else "none"
            one = seconds[fp8]
            is_repeated = place < (config.recompute.layers or len(layers))
            repeated = is_repeated and config.recompute.mode == "full"
            for number, started in enumerate(host_seconds(layout, gpu, fp8, repeated)):
                starts[chunk][number] += started
            forward[chunk] += _beside_copy(one.forward, is_repeated * moved, gpu)
            backward[chunk] += _beside_copy(one.backward + is_repeated * one.again + sums, is_repeated * moved, gpu)
            recomputed += is_repeated
        waits.append(_waiting(config, architecture, layout, gpu, len(layers), recomputed))
    if rank == layout.pipeline - 1:
        forward[-1] += head / 3
        backward[-1] += head * 2 / 3
    if rank == 0:
        forward[0] += images[0]
        backward[0] += images[1]
    return _Rank(forward, backward, *zip(*waits, strict=True), *zip(*starts, strict=True))


def _beside_copy(seconds: float, copied: float, gpu: Hardware) -> float:
    """A layer's seconds with a copy to or from the host beside it that takes so long."""
    return max(seconds, copied) + gpu.beside_copies * min(seconds, copied)


def collective(gigabytes_per_second: float, size: float, ranks: int, latency: float) -> float:
    """Seconds of gathering or scattering ``size`` bytes over so many ranks; an all-reduce is two of these."""
    if ranks == 1:
        return 0.0
    return size * (ranks - 1) / ranks / (gigabytes_per_second * GIGA) + latency * MICRO


def _waiting(
    config: StageConfig, architecture: Architecture, layout: Layout, gpu: Hardware, layers: int, recomputed: int
) -> tuple[float, float]:
    """What so many layers wait for tensor- and context-parallel ranks in a forward and in a backward pass."""
    decoder, tensor, context = architecture.decoder, layout.tensor, layout.context
    hidden = 2 * decoder.hidden_size * config.sequence_length / context
    mode = config.recompute.mode
    # The MLP alone is one gather and one scatter; a whole layer two of each.
    again = {"none": 0, "selective": 2, "full": 4}[mode] * recomputed
    one = collective(gpu.link(tensor, layout.world_size), hidden, tensor, gpu.latency)
    keys = 2 * 2 * decoder.num_kv_heads * decoder.head_dim / tensor * config.sequence_length
    gather = collective(gpu.link(tensor * context, layout.world_size), keys, context, gpu.latency)
    repeated = recomputed if mode == "full" else 0
    return 4 * layers * one + layers * gather, (4 * layers + again) * one + (layers + repeated) * gather


def _message(config: StageConfig, architecture: Architecture, layout: Layout, gpu: Hardware) -> float:
    """Seconds in which hidden states come from one pipeline stage to the next."""
    hidden = 2 * architecture.decoder.hidden_size * config.sequence_length / layout.context
    size = hidden / (layout.tensor if layout.sequence else 1)
    return size / (gpu.link(layout.world_size, layout.world_size) * GIGA) + gpu.latency * MICRO


def _data_parallel(config: StageConfig, layout: Layout, gpu: Hardware, trained: float, work: _Rank) -> float:
    """Seconds of scattering gradients and gathering weights that nothing hides."""
    replicas = layout.optimizer_shards
    link = gpu.link(layout.tensor * replicas, layout.world_size)
    gradients = collective(link, 4 * trained, replicas, gpu.latency)
    weights = collective(link, config.precision.bytes_on(gpu=True) * trained, replicas, gpu.latency)
    if not config.parallel.overlap:
        return gradients + weights
    if config.optimizer.gradients != "float32":
        return gradients + max(0.0, weights - sum(work.forward))
    return max(0.0, gradients - sum(work.backward)) + max(0.0, weights - sum(work.forward))


def _optimizer(
    config: StageConfig, layout: Layout, gpu: Hardware, trained: float, of_states: float, on_host: float
) -> float:
    """Seconds of the update: of this rank's share of the state, and of the gradients' buffer, set to zero whole.

    Args:
        config: says in which form states and gradients are.
        layout: divides the state.
        gpu: rates.
        trained: parameters on this rank.
        of_states: bytes of the states of one of them, which are read and written.
        on_host: bytes of this rank's states on the host.
    """
    if not trained or not of_states:
        return 0.0
    here = trained / layout.optimizer_shards - on_host / of_states
    of_one = gpu.optimizer_bytes - ZEROED_BYTES - 2 * (MEASURED_FORM.bytes - of_states)
    of_one += CODES_BYTES if config.optimizer.moments == "int8" else 0.0
    traffic = of_one * here + ZEROED_BYTES * trained
    traffic += SUMS_ONCE_BYTES * trained if config.optimizer.gradients == "24bit" else 0.0
    return traffic / (gpu.copy_bandwidth * GIGA) + on_host / (gpu.host_bandwidth * GIGA)
