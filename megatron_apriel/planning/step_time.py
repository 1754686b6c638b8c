"""Predicted seconds of an optimizer step on a layout, from stated rates and shapes alone. No torch.

A step of ``m`` micro-batches takes::

    the pipeline's schedule with m micro-batches  +  gradients and parameters not hidden  +  optimizer

Without a pipeline, the schedule is ``m`` micro-batches one after the other; with one, ``pipeline_schedule.py`` follows
it pass by pass. A pass of a chunk is the work of its layers, of tower or head where it has them, and what it waits for:

* layers: matrix products by the tokens, attention by the documents' squared lengths, each at its own rate, shared out
  evenly over T tensor- and C context-parallel ranks. A backward pass is twice the forward pass; a frozen decoder above
  something that trains leaves out the products for the gradients of its weights. Recomputation adds forward passes: of
  whole layers (``full``) or of their MLPs (``selective``), also in a tower that trains;
* tensor parallelism: in each layer two all-gathers and two reduce-scatters forward and as many backward, of the
  ``2 h S/C`` bytes of the hidden states (an all-reduce moves what the two together do), all waited for;
* context parallelism: in each layer an all-gather of keys and values, and a reduce-scatter of their gradients;
* pipeline: hidden states and their gradients come one message after their pass has ended;
* layers' inputs on the host: a copy of each forward and one backward, which slow what runs beside them, and are
  waited for where they take longer than the layer;
* sums of gradients in 24 bits: traffic of the GPU's memory in each micro-batch, and reductions that nothing hides;
* the optimizer's update: traffic of the GPU's memory; of states on the host, between it and the GPU, both ways at once;
* data parallelism, once a step: float32 gradients are scattered and weights gathered over the replicas. With
  ``parallel.overlap`` the first hides behind the last micro-batch's backward pass and the second behind the first
  one's forward pass; only what is left over counts.

A collective of ``n`` ranks moves ``(n - 1) / n`` of the bytes over its slowest link and costs one latency. Groups whose
ranks all stand in one node have its fast links.

Not modelled: smaller matrices being slower than large ones, waiting for data, checkpoints, contention between groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_apriel.config.schema import StageConfig
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.flops import decoder_forward, model_flops, tower_forward
from megatron_apriel.parallel.balance import image_share, largest_image, recomputed_flops
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.planning.hardware import Hardware
from megatron_apriel.planning.memory import inputs_on_host, rank_memory, state_bytes
from megatron_apriel.planning.pipeline_schedule import pipeline_seconds

TERA, GIGA, MICRO = 1e12, 1e9, 1e-6
SUMS_BYTES = 14
"""A gradient in float32 is read and set to zero, its sum in three bytes read and written."""
SUMS_ONCE_BYTES = 48
"""What the norm of sums in 24 bits and setting them to zero take once a step, as memory traffic, beyond those in
float32. From 306 and 319 ms besides micro-batches of the whole model on one H200, 140 of them an update, 2026-11."""
CODES_BYTES = 20
"""What roots and scales of 8-bit moments on the GPU take in an update, as memory traffic. From those 140 ms."""


@dataclass(frozen=True)
class Workload:
    """What a sequence is taken to hold, since a plan has no data.

    Attributes:
        document_tokens: length of its documents, the last one shorter.
        image_tokens: how many of its tokens are patches of images.
    """

    document_tokens: int
    image_tokens: int

    @classmethod
    def of(cls, config: StageConfig, document_tokens: int | None = None, images: float | None = None) -> Workload:
        """One document a sequence and the stage's usual share of images, unless they are given."""
        share = image_share(config) if images is None else images
        length = config.sequence_length
        return cls(min(document_tokens or length, length), round(length * share))

    def squared_lengths(self, tokens: int) -> int:
        """Sum of squared lengths of the documents of a sequence."""
        whole, rest = divmod(tokens, self.document_tokens)
        return whole * self.document_tokens**2 + rest**2


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step, by what they go to; ``bubble`` and the rest add up to ``total``."""

    micro_batches: int
    compute: float
    communication: float
    """Waited for in all micro-batches of the slowest rank, and once a step for gradients and weights."""
    bubble: float
    optimizer: float
    flops: float
    """Of the whole global batch by the rule of :mod:`megatron_apriel.formats.flops`."""

    @property
    def total(self) -> float:
        return self.compute + self.communication + self.bubble + self.optimizer


@dataclass(frozen=True)
class _Rank:
    """Seconds of one micro-batch on a pipeline rank, by its chunks.

    Attributes:
        forward, backward: computation.
        waits_forward, waits_backward: for tensor- and context-parallel ranks.
    """

    forward: Sequence[float]
    backward: Sequence[float]
    waits_forward: Sequence[float]
    waits_backward: Sequence[float]

    @property
    def compute(self) -> float:
        return sum(self.forward) + sum(self.backward)

    @property
    def waiting(self) -> float:
        return sum(self.waits_forward) + sum(self.waits_backward)

    @property
    def whole_forward(self) -> list[float]:
        return [sum(pair) for pair in zip(self.forward, self.waits_forward, strict=True)]

    @property
    def whole_backward(self) -> list[float]:
        return [sum(pair) for pair in zip(self.backward, self.waits_backward, strict=True)]


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
    number = layout.micro_batches(config.sequences_per_step)
    ranks = [_rank(config, architecture, layout, gpu, workload, rank) for rank in range(layout.pipeline)]
    slowest = max(ranks, key=lambda rank: rank.compute + rank.waiting)
    busy, scheduled = number * (slowest.compute + slowest.waiting), 0.0
    if layout.pipeline > 1:
        passes = [rank.whole_forward for rank in ranks], [rank.whole_backward for rank in ranks]
        scheduled = pipeline_seconds(*passes, number, _message(config, architecture, layout, gpu))
    trained = [_trained_parameters(config, architecture, layout, rank) for rank in range(layout.pipeline)]
    states = [
        (
            state_bytes(config, architecture, layout, rank),
            rank_memory(config, architecture, layout, rank, gpu.available).host,
        )
        for rank in range(layout.pipeline)
    ]
    exposed, update = max(
        (
            (_data_parallel(config, layout, gpu, *rank), _optimizer(config, layout, gpu, rank[0], *states[place]))
            for place, rank in enumerate(zip(trained, ranks, strict=True))
        ),
        key=sum,
    )
    length = config.sequence_length
    text = model_flops(architecture, length, workload.squared_lengths(length), [], config.train)
    per_sequence = text + _image_flops(config, architecture, workload)
    return StepTime(
        micro_batches=number,
        compute=number * slowest.compute,
        communication=number * slowest.waiting + exposed,
        bubble=max(0.0, scheduled - busy),
        optimizer=update,
        flops=per_sequence * config.sequences_per_step,
    )


def _layers(layout: Layout, architecture: Architecture, rank: int) -> list[int]:
    num_layers = architecture.decoder.num_layers
    return [len(layout.layers_of(num_layers, rank, chunk)) for chunk in range(layout.virtual)]


def _rank(
    config: StageConfig,
    architecture: Architecture,
    layout: Layout,
    gpu: Hardware,
    workload: Workload,
    rank: int,
) -> _Rank:
    """One micro-batch, which is one sequence, on a pipeline rank."""
    num_layers, share = architecture.decoder.num_layers, layout.tensor * layout.context
    seconds = {fp8: _layer_seconds(config, architecture, gpu, workload, fp8) for fp8 in ("none", config.precision.fp8)}
    sums = _sums_seconds(config, architecture, gpu)
    forward, backward = [0.0] * layout.virtual, [0.0] * layout.virtual
    moved = inputs_on_host(config, architecture.decoder, layout, rank)[1] / (gpu.host_bandwidth * GIGA)
    waits: list[tuple[float, float]] = []
    for chunk in range(layout.virtual):
        layers, recomputed = layout.layers_of(num_layers, rank, chunk), 0
        for place, layer in enumerate(layers):
            in_8_bits = config.precision.in_8_bits(layer, num_layers)
            once, back, again = seconds[config.precision.fp8 if in_8_bits else "none"]
            is_repeated = place < (config.recompute.layers or len(layers))
            worked = (back + is_repeated * again) / share + sums / layout.tensor
            forward[chunk] += _beside_copy(once / share, is_repeated * moved, gpu)
            backward[chunk] += _beside_copy(worked, is_repeated * moved, gpu)
            recomputed += is_repeated
        waits.append(_waiting(config, architecture, layout, gpu, len(layers), recomputed))
    if rank == layout.pipeline - 1:
        head = _head_seconds(config, architecture, gpu) / share
        forward[-1] += head / 3
        backward[-1] += head * 2 / 3
    if rank == 0:
        images = _image_seconds(config, architecture, gpu, workload)
        forward[0] += images[0] / share
        backward[0] += images[1] / share
    waits_forward, waits_backward = zip(*waits, strict=True)
    return _Rank(forward, backward, waits_forward, waits_backward)


def _layer_seconds(
    config: StageConfig, architecture: Architecture, gpu: Hardware, workload: Workload, fp8: str
) -> tuple[float, float, float]:
    """A whole layer on one GPU: forward, backward, and the forward passes that are done again."""
    length, decoder = config.sequence_length, architecture.with_layers(1).decoder
    linear, attention = decoder_forward(decoder, length, workload.squared_lengths(length))
    linear -= 2 * length * decoder.embedding_parameters
    forward_rate, backward_rate = gpu.attention(workload.document_tokens)
    products = linear / (gpu.linear(fp8) * TERA)
    scores = attention / (forward_rate * TERA)
    forward, backward = products + scores, 0.0
    if config.train.decoder or config.train.projector or config.train.tower:
        passes = 2 if config.train.decoder else 1 + gpu.beside_products
        backward = passes * products + 2 * attention / (backward_rate * TERA)
    mlp = 3 * decoder.hidden_size * decoder.ffn_hidden_size / (decoder.layer_parameters - 2 * decoder.hidden_size)
    again = {"none": 0.0, "selective": mlp * products, "full": forward}[config.recompute.mode]
    if fp8 != "none" and config.precision.fp8_weights == "remade":
        copies = gpu.remade_bytes * (decoder.layer_parameters - 2 * decoder.hidden_size) / (gpu.copy_bandwidth * GIGA)
        # Backward too, be it in the forward pass that is done again.
        forward, backward = forward + copies, backward + copies
        again += {"none": 0.0, "selective": mlp * copies, "full": 0.0}[config.recompute.mode]
    return forward, backward, again


def _beside_copy(seconds: float, copied: float, gpu: Hardware) -> float:
    """A layer's seconds with a copy to or from the host beside it that takes so long."""
    return max(seconds, copied) + gpu.beside_copies * min(seconds, copied)


def _sums_seconds(config: StageConfig, architecture: Architecture, gpu: Hardware) -> float:
    """Adding the gradients of a whole layer's matrices to their sums in 24 bits, on one GPU."""
    if config.optimizer.gradients == "float32" or not config.train.decoder:
        return 0.0
    decoder = architecture.decoder
    return SUMS_BYTES * (decoder.layer_parameters - 2 * decoder.hidden_size) / (gpu.copy_bandwidth * GIGA)


def _head_seconds(config: StageConfig, architecture: Architecture, gpu: Hardware) -> float:
    """Head and loss on one GPU, forward and backward; a frozen head leaves out the gradient of its weights."""
    logits = config.sequence_length * architecture.decoder.vocab_size
    passes = 3 if config.train.decoder else 2
    products = passes * 2 * logits * architecture.decoder.hidden_size / (gpu.head * TERA)
    return products + gpu.loss_bytes * logits / (gpu.copy_bandwidth * GIGA)


def _image_seconds(
    config: StageConfig, architecture: Architecture, gpu: Hardware, workload: Workload
) -> tuple[float, float]:
    """Tower and projector on one GPU, forward and backward."""
    patches, size = workload.image_tokens, largest_image(architecture, workload.image_tokens)
    if architecture.tower is None or architecture.projector is None or not size:
        return 0.0, 0.0
    projector = architecture.projector
    linear, attention = tower_forward(architecture.tower, patches, patches * size)
    forward = linear + attention + 2 * patches * (projector.input_size + projector.output_size) * projector.output_size
    backward = _image_flops(config, architecture, workload) - forward
    if config.train.tower:
        backward += sum(recomputed_flops(architecture.tower, config.recompute.mode, patches, attention))
    return forward / (gpu.tower * TERA), backward / (gpu.tower * TERA)


def _image_flops(config: StageConfig, architecture: Architecture, workload: Workload) -> float:
    """Operations of tower and projector for a sequence: as many of the largest images as fill its image tokens."""
    size = largest_image(architecture, workload.image_tokens)
    one = model_flops(architecture, 0, 0, [size], config.train) if size else 0
    return one * workload.image_tokens / max(size, 1)


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


def _trained_parameters(config: StageConfig, architecture: Architecture, layout: Layout, rank: int) -> float:
    """Trained parameters on each rank of a pipeline stage."""
    decoder = architecture.decoder
    trained = 0.0
    if config.train.decoder:
        ends = (rank == 0) + (rank == layout.pipeline - 1)
        layers = sum(_layers(layout, architecture, rank))
        trained += (layers * decoder.layer_parameters + ends * decoder.embedding_parameters) / layout.tensor
    if rank == 0:
        for name in ("tower", "projector"):
            part = getattr(architecture, name)
            trained += part.parameters if part is not None and getattr(config.train, name) else 0
    return trained


def _data_parallel(config: StageConfig, layout: Layout, gpu: Hardware, trained: float, work: _Rank) -> float:
    """Seconds of scattering gradients and gathering weights that nothing hides."""
    weight = 2 if config.precision.compute_on(gpu=True) == "bf16" else 4
    replicas = layout.optimizer_shards
    link = gpu.link(layout.tensor * replicas, layout.world_size)
    gradients = collective(link, 4 * trained, replicas, gpu.latency)
    weights = collective(link, weight * trained, replicas, gpu.latency)
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
    zeroed, exact = 4.0, 10.0
    here = trained / layout.optimizer_shards - on_host / of_states
    more = CODES_BYTES if config.optimizer.moments == "int8" else 0.0
    traffic = (gpu.optimizer_bytes - zeroed - 2 * (exact - of_states) + more) * here + zeroed * trained
    traffic += SUMS_ONCE_BYTES * trained if config.optimizer.gradients == "24bit" else 0.0
    return traffic / (gpu.copy_bandwidth * GIGA) + on_host / (gpu.host_bandwidth * GIGA)
