"""What a plan takes for granted about GPUs and the links between them: stated numbers, each with where it is from.

Rates of one layer's matrix products include everything that happens beside them in the layer (norms, activation,
rotary positions, quantisation, accumulation of gradients): they are what a whole layer reached in a training step.
``LayerTimes`` holds the measurement and :meth:`LayerTimes.rate` turns it into such a rate, so that a new measurement
changes one line. Any value can be replaced by a file or on the command line of ``tools/plan.py``. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, ValidationError

from megatron_apriel.config.explain import config_error
from megatron_apriel.config.section import Number, Section, Whole
from megatron_apriel.config.yaml_text import Location, parse_yaml, read_yaml
from megatron_apriel.errors import ConfigError, brief, printable
from megatron_apriel.formats.architecture import PRESETS
from megatron_apriel.formats.flops import decoder_forward

Positive = Annotated[Number, Field(ge=1e-6, le=1e9)]
"""No GPU is beyond these bounds; far beyond them seconds would be infinite, and all layouts the same."""
NotNegative = Annotated[Number, Field(ge=0, le=1e9)]


@dataclass(frozen=True)
class LayerTimes:
    """Milliseconds of one decoder layer, forward and backward, in whole steps of 8 micro-batches of one document.

    The steps include the optimizer, whose share of a layer is taken off again; so is attention, whose rate is known.
    """

    milliseconds: float
    tokens: int
    micro_batches: int
    attention_forward: float
    attention_backward: float
    optimizer_milliseconds: float
    """Of one optimizer step over the parameters of one layer."""

    def rate(self) -> float:
        """TFLOP/s of the layer's matrix products."""
        decoder = PRESETS["apriel-15b"].with_layers(1).decoder
        linear, attention = decoder_forward(decoder, self.tokens, self.tokens**2)
        linear -= 2 * self.tokens * decoder.embedding_parameters
        spent = attention / self.attention_forward + 2 * attention / self.attention_backward
        spent += self.optimizer_milliseconds / self.micro_batches * 1e9
        return 3 * linear / (self.milliseconds * 1e9 - spent)


class AttentionRate(NamedTuple):
    """Causal attention over documents of any length: every query costs as if it saw some keys more than it does.

    Those are the tiles that the causal mask and a document's end cut, what a kernel does once for each tile of queries,
    and the passes over queries and keys before and after the backward pass. A document of L tokens sees L / 2 keys a
    query, so its rate is ``peak / (1 + 2 extra / L)``.

    Attributes:
        peak: TFLOP/s of endless documents.
        extra: keys that a query costs more.
    """

    peak: float
    extra: float

    @classmethod
    def between(cls, at_8k: float, at_32k: float) -> AttentionRate:
        """From the rates of documents of 8192 and of 32768 tokens; none falls with the length."""
        ratio = min(max(at_32k / at_8k, 1.0), 2.0)
        lost = (ratio - 1) / (1 - ratio / 4)
        return cls(at_32k * (1 + lost / 4), lost * 8192 / 2)

    def seconds(self, flops_a_pair: float, pairs: float, queries: float) -> float:
        """Of so many queries with so many pairs of a query and a key that it sees."""
        return flops_a_pair * (pairs + self.extra * queries) / (self.peak * 1e12)


# Measured on one H200, 2026-11: slope between 4 and 8 layers, 8192 tokens, 8 micro-batches, the mean of two runs, 1 to
# 2% apart (benchmarks/results/step-h200-932e683-20261124-172527.md, step-h200-bfb25e9-20261125-205613.md), of blockwise
# the later one (step-h200-a53ad97-20261130-021114.md); FlashAttention-4 alone by benchmarks/attention.py, 2026-11-24.
_ATTENTION = {8192: (611.0, 426.0), 32768: (636.0, 470.0)}
# What those steps took once (optimizer, gradient norm, copies): 32 ms for 8 layers, embedding and head, 3.52 B
# parameters, the middle of the three precisions. Masters lay whole beside their weights then.
_OPTIMIZER_MS_PER_LAYER = 32 * 0.2726 / 3.523
_LAYER_MS = {"bf16": 24.9, "delayed": 16.2, "tensorwise": 17.0, "blockwise": 19.3}


def _linear(precision: str) -> float:
    times = LayerTimes(_LAYER_MS[precision], 8192, 8, *_ATTENTION[8192], _OPTIMIZER_MS_PER_LAYER)
    return round(times.rate(), 1)


class Hardware(Section):
    """GPUs and links; rates in TFLOP/s are those of one GPU, bandwidths in GB/s those of one GPU and direction."""

    name: str = "H200"
    """What the table's title says."""
    memory: Positive = 139.0
    """GiB of one GPU. Measured on one H200, 2026-11."""
    reserve: NotNegative = 6.0
    """GiB for CUDA, NCCL's buffers and the allocator's gaps. Assumption: commonly 3 to 6."""
    host_memory: NotNegative = 104.0
    """GiB of the host for each GPU that optimizer states and layers' inputs may take. Pinned beside one H200, of 126,
    2026-11."""
    host_bandwidth: Positive = 50.0
    """GB/s between GPU and host, both ways at once. From updates of the whole model on one H200, 49 to 51, 2026-11."""
    beside_copies: Annotated[Number, Field(ge=0, lt=1)] = 0.08
    """Share by which a GPU's work is slower while it copies from or to the host. Matrix products, with both at once,
    on one H200, 2026-11."""
    host_layer_bf16: NotNegative = 5.2
    """Milliseconds in which the host starts a layer's kernels, forward and backward: what a layer takes at least. From
    steps of 512 tokens and 8 layers on two H200, less 25 ms for what a step does once, 2026-11."""
    host_layer_fp8: NotNegative = 7.1
    """The same in FP8 delayed."""
    host_tensor_bf16: NotNegative = 1.5
    """How much longer with tensor parallelism. Of the same steps."""
    host_tensor_fp8: NotNegative = 4.0
    """The same in FP8 delayed."""
    host_context_bf16: NotNegative = 1.1
    """How much longer with context parallelism. Of the same steps."""
    host_context_fp8: NotNegative = 2.0
    """The same in FP8 delayed."""
    gpus_per_node: Annotated[Whole, Field(ge=1)] = 8
    """GPUs that the fast links join. Assumption: datasheet of common servers."""
    linear_bf16: Positive = _linear("bf16")
    """A layer's matrix products with all beside them. From 24.9 ms a layer on one H200, 2026-11."""
    linear_delayed: Positive = _linear("delayed")
    """The same in FP8 delayed. From 16.2 ms a layer on one H200, 2026-11."""
    linear_tensorwise: Positive = _linear("tensorwise")
    """The same in FP8 tensorwise. From 17.0 ms a layer on one H200, 2026-11."""
    linear_blockwise: Positive = _linear("blockwise")
    """The same in FP8 blockwise. From 19.3 ms a layer on one H200, one run, 2026-11."""
    beside_products: Annotated[Number, Field(ge=0, lt=1)] = 0.08
    """Share of those times that is not of products (norms, activation, rotary positions, quantisation): it does not
    fall where a frozen layer leaves out the gradients of its weights. Inventories of a step on one H200 give 0.06 in
    bf16 and 0.13 in FP8, 2026-11."""
    attention_8k_forward: Positive = _ATTENTION[8192][0]
    """Causal attention, counted half, documents of 8192 tokens. What shorter and longer ones take follows from this and
    the rate at 32768: each query costs some keys more than it sees. FlashAttention-4 on one H200, 2026-11."""
    attention_8k_backward: Positive = _ATTENTION[8192][1]
    """Its backward pass, counted twice the forward pass. FlashAttention-4 on one H200, 2026-11."""
    attention_32k_forward: Positive = _ATTENTION[32768][0]
    """Documents of 32768 tokens. FlashAttention-4 on one H200, 2026-11."""
    attention_32k_backward: Positive = _ATTENTION[32768][1]
    """Its backward pass, counted twice the forward pass. FlashAttention-4 on one H200, 2026-11."""
    head: Positive = 714.0
    """The head's three bf16 matrix products. From 46 ms for 8192 tokens on one H200, 2026-11."""
    tower: Positive = 600.0
    """Tower and projector, attention included. From steps of CPT-2's mix on one H200, 590 and above, 2026-11."""
    copy_bandwidth: Positive = 4260.0
    """GB/s of the GPU's own memory. Measured on one H200, 2026-11."""
    loss_bytes: NotNegative = 19.0
    """Memory traffic of the loss, and of the embedding with it, for each token and vocabulary entry. From what is left
    of 51 ms for embedding, head and loss beside the head's products, for 8192 tokens on one H200, 2026-11."""
    optimizer_bytes: NotNegative = 38.0
    """Memory traffic of a step for each trained parameter: 38.1 to 38.6 in updates of 2 to 8 layers with all states on
    one H200, 2026-11."""
    remade_bytes: NotNegative = 3.0
    """Memory traffic of making a weight's copies in 8 bits: read once, both written. Between the 0.4 and 4.4 that
    micro-batches of the whole model gave in tensorwise and delayed on one H200, 2026-11."""
    intra_node: Positive = 249.0
    """GB/s of collectives inside a node, beyond ``latency``. The line through all-gathers and reduce-scatters of 64 and
    256 MiB between two H200 with NVLink multicast off, 257 and 241, 2026-11; larger ones reach 270 in all."""
    inter_node: Positive = 50.0
    """GB/s between nodes. Assumption: 400 Gb/s for each GPU (datasheet)."""
    latency: NotNegative = 40.0
    """Microseconds of one collective or message beyond its bytes. Smallest collectives between two H200, 36 to 40;
    messages 100; 2026-11."""

    @property
    def available(self) -> float:
        """Bytes of a GPU that are left to the program."""
        return (self.memory - self.reserve) * 2**30

    def host_available(self, gpus: int, most: int | None) -> float:
        """Bytes of the host that the program may take beside each of a run's GPUs.

        Args:
            gpus: of the run.
            most: ``optimizer.host_memory``, for all GPUs of a machine.
        """
        room = self.host_memory * 2**30
        return room if most is None else min(room, most / min(gpus, self.gpus_per_node))

    def counted(self, gpus: int) -> str:
        """So many of them, as a table's title says it."""
        return f"{gpus} {self.name} with {self.available / 2**30:.1f} GiB each to use"

    def linear(self, precision: str) -> float:
        """TFLOP/s of a decoder layer's products under ``precision.fp8``; ``none`` is bf16."""
        return float(getattr(self, "linear_bf16" if precision == "none" else f"linear_{precision}"))

    def attention(self) -> tuple[AttentionRate, AttentionRate]:
        """How fast causal attention is, forward and backward: what its rates at two lengths say of all others."""
        return (
            AttentionRate.between(self.attention_8k_forward, self.attention_32k_forward),
            AttentionRate.between(self.attention_8k_backward, self.attention_32k_backward),
        )

    def link(self, span: int, world_size: int) -> float:
        """GB/s between ranks of a group that reaches over ``span`` neighbouring ranks out of all of them."""
        in_one_node = world_size <= self.gpus_per_node or self.gpus_per_node % span == 0
        return self.intra_node if in_one_node else self.inter_node


# H100: the same arithmetic units; memory by its datasheet, its bandwidth as much below it as the H200's was. Not
# measured: what is bound by memory inside a layer is slower there than these rates say.
KINDS: dict[str, Hardware] = {
    "h200": Hardware(),
    "h100": Hardware(name="H100", memory=79.6, copy_bandwidth=round(3350 * 4260 / 4800)),
}


_PRINTED = "tools/plan.py --print-hardware prints such a file."


def hardware(kind: str, file: Path | None = None, settings: Sequence[str] = ()) -> Hardware:
    """A kind of GPU with what a YAML file and ``name=value`` words replace. Raises ConfigError.

    Args:
        kind: a key of ``KINDS``.
        file: ``name: value`` lines; any of the names that ``tools/plan.py --print-hardware`` prints.
        settings: words of the command line; they win.
    """
    values: dict[Any, Any] = KINDS[kind].model_dump()
    lines: dict[Location, int] = {}
    origins: dict[Location, str] = {}
    if file is not None:
        given, lines = read_yaml(file, "Hardware is described by a YAML file of name: value lines.", _PRINTED)
        if not isinstance(given, dict):
            raise ConfigError(f"{printable(file)} holds no name: value lines.", fix=_PRINTED)
        values |= given
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {brief(setting)}: no value.", fix="Write name=value, as in --set inter_node=25.")
        values[name.strip()] = parse_yaml(text, f"--set {brief(setting)}")[0]
        origins[(name.strip(),)] = f"--set {setting}"
    try:
        gpu = Hardware.model_validate(values)
    except ValidationError as error:
        names = f"Names: {', '.join(Hardware.model_fields)}."
        raise config_error(error, printable(file or "hardware"), lines, origins, Hardware, names) from None
    if gpu.reserve >= gpu.memory:
        raise ConfigError(
            f"reserve={gpu.reserve:g} GiB leaves nothing of memory={gpu.memory:g} GiB.",
            "The reserve is what CUDA, NCCL and the allocator take of a GPU's memory.",
            f"Set reserve below {gpu.memory:g}, or memory above {gpu.reserve:g}.",
        )
    return gpu


def hardware_yaml(gpu: Hardware) -> str:
    """All numbers with their meaning and origin, as a file that :func:`hardware` reads."""
    lines = []
    for name, field in Hardware.model_fields.items():
        lines += [f"# {' '.join((field.description or '').split())}", f"{name}: {getattr(gpu, name)}"]
    return "\n".join(lines)
