"""Which kernel does what, how long a step's kernels took, and the least that a device could take. Pure: no torch.

Kernels are recognised by their names, the only thing that a trace says of them; the first pattern that fits decides. A
name that no pattern knows is ``unknown`` and is listed, so that a new kernel cannot hide in a sum.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.flops import decoder_forward

UNKNOWN, GAPS = "unknown", "gaps"
GAPS_KEPT = 12
"""How many of the longest gaps an inventory keeps."""
PATTERNS = (
    ("attention", r"sdpa|fmha|flash|attention|thd_|fused_attn|cudnn::fusion"),
    ("optimizer", r"multi_tensor|adam|l2norm|scalefunctor"),
    ("loss", r"cross_entropy|softmax|nll_loss|_statistics_kernel|_gradient_kernel"),
    ("rotary", r"rotary|rope"),
    ("activation", r"swiglu|silu|gated|dact|gelu"),
    ("norms", r"rms_?norm|layer_?norm|ln_fwd|ln_bwd|_norm_|normalization"),
    ("matrix products", r"gemm|nvjet|xmma|wgmma|splitk|cublas|matmul|gemv"),
    ("copies and other", r"at::native"),
    ("quantisation", r"quantize|cast_transpose|transpose|amax|fp8|cast|scaling|swizzle"),
    ("copies and other", r"memcpy|memset|copy|elementwise|reduce|cat|fill|index|embedding|scatter|gather|sort|scan"
     r"|distribution|nccl|userbuffers|triton_"),
)  # fmt: skip
"""Group -> names (any case) that belong to it, in order."""

COMMUNICATION = re.compile(r"nccl|userbuffers|memcpy ptop")
"""Names (any case) of what moves numbers between GPUs, or waits for another one."""

KINDS_OF_COMMUNICATION = (
    ("all-gather", r"allgather"),
    ("reduce-scatter", r"reducescatter"),
    ("all-reduce", r"allreduce"),
    ("message", r"sendrecv"),
    ("user buffers", r"userbuffers|memcpy ptop"),
)
"""Kind -> names (any case) of communication that are of it, in order; all else is ``other``."""

FP8_PRODUCTS, BF16_PRODUCTS = 1351e12, 707e12
ATTENTION_FORWARD, ATTENTION_BACKWARD = 636e12, 587e12
BANDWIDTH = 4.26e12
"""Ceilings of one H200, measured: matrix products at this model's shapes (operations/s; 8 bits with fast accumulation),
FlashAttention-4 at its best length (backward counted as 2.5 times forward), and a copy (bytes/s)."""


def group_of(kernel: str) -> str:
    """The group of a kernel's name."""
    lowered = kernel.lower()
    return next((group for group, pattern in PATTERNS if re.search(pattern, lowered)), UNKNOWN)


@dataclass
class Inventory:
    """Milliseconds of a step by group, and of each kernel.

    Attributes:
        span_ms: from the first kernel's start to the last one's end.
        groups: time in which a group's kernels ran; kernels on several streams at once count each.
        kernels: per group, name -> (milliseconds, launches).
        longest_gaps: milliseconds, and the kernels before and after; the longest first.
    """

    span_ms: float
    groups: dict[str, float]
    kernels: dict[str, dict[str, tuple[float, int]]] = field(default_factory=dict)
    longest_gaps: list[tuple[float, str, str]] = field(default_factory=list)

    def biggest(self, group: str, count: int) -> list[tuple[str, float, int]]:
        """The ``count`` kernels of a group that took longest: name, milliseconds, launches."""
        named = self.kernels.get(group, {}).items()
        return sorted(((name, ms, n) for name, (ms, n) in named), key=lambda row: -row[1])[:count]


def inventory(events: Iterable[Mapping[str, Any]]) -> Inventory:
    """From the events of a Chrome trace (microseconds); whatever did not run on the device is passed over."""
    ran = sorted(
        (event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")),
        key=lambda event: event["ts"],
    )
    groups: defaultdict[str, float] = defaultdict(float)
    kernels: defaultdict[str, dict[str, tuple[float, int]]] = defaultdict(dict)
    gaps: list[tuple[float, str, str]] = []
    end, last = (ran[0]["ts"], ran[0]["name"]) if ran else (0.0, "")
    for event in ran:
        group, ms = group_of(event["name"]), event["dur"] / 1e3
        groups[group] += ms
        before, launches = kernels[group].get(event["name"], (0.0, 0))
        kernels[group][event["name"]] = (before + ms, launches + 1)
        if event["ts"] > end:
            gaps.append(((event["ts"] - end) / 1e3, last, event["name"]))
        if event["ts"] + event["dur"] > end:
            end, last = event["ts"] + event["dur"], event["name"]
    groups[GAPS] = sum(gap for gap, _, _ in gaps)
    longest = sorted(gaps, key=lambda gap: -gap[0])[:GAPS_KEPT]
    return Inventory((end - ran[0]["ts"]) / 1e3 if ran else 0.0, dict(groups), dict(kernels), longest)


@dataclass(frozen=True)
class Occupancy:
    """What a device did from the first kernel of a step to the last; the three parts add up to ``span_ms``.

    Attributes:
        computing_ms: at least one kernel that computes ran.
        communicating_ms: only communication ran: it, and waiting for other ranks, that nothing hides.
        idle_ms: no kernel ran.
    """

    span_ms: float
    computing_ms: float
    communicating_ms: float
    idle_ms: float


def occupancy(events: Iterable[Mapping[str, Any]]) -> Occupancy:
    """From the events of a Chrome trace (microseconds) of one device."""
    ran = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    everything = [(event["ts"], event["ts"] + event["dur"]) for event in ran]
    computing = [
        span for span, event in zip(everything, ran, strict=True) if not COMMUNICATION.search(event["name"].lower())
    ]  # fmt: skip
    span = (max(end for _, end in everything) - min(start for start, _ in everything)) / 1e3 if ran else 0.0
    busy, computed = _covered_ms(everything), _covered_ms(computing)
    return Occupancy(span, computed, busy - computed, span - busy)


@dataclass(frozen=True)
class Division:
    """What a device's kernels in a step were for.

    Attributes:
        kernels: how many ran.
        computing: group -> milliseconds of its kernels; those that run at once count each.
        waiting: kind of communication -> milliseconds in which it ran and nothing computed.
    """

    kernels: int
    computing: Mapping[str, float]
    waiting: Mapping[str, float]


def division(events: Iterable[Mapping[str, Any]]) -> Division:
    """From the events of a Chrome trace (microseconds) of one device."""
    ran = [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    groups: defaultdict[str, float] = defaultdict(float)
    computing: list[tuple[float, float]] = []
    by_kind: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    for event in ran:
        name, span = event["name"].lower(), (event["ts"], event["ts"] + event["dur"])
        if COMMUNICATION.search(name):
            kinds = (kind for kind, pattern in KINDS_OF_COMMUNICATION if re.search(pattern, name))
            by_kind[next(kinds, "other")].append(span)
        else:
            groups[group_of(name)] += event["dur"] / 1e3
            computing.append(span)
    covered = _covered_ms(computing)
    waiting = {kind: _covered_ms([*computing, *spans]) - covered for kind, spans in by_kind.items()}
    return Division(len(ran), dict(groups), waiting)


def _covered_ms(spans: Iterable[tuple[float, float]]) -> float:
    """Milliseconds in which at least one of the spans (microseconds) lasts."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(stop - max(start, end), 0.0)
        end = max(end, stop)
    return total / 1e3


def least_ms(
    architecture: Architecture, tokens: int, sum_squared_lengths: int, micro_batches: int, fp8: bool
) -> dict[str, float]:
    """Milliseconds below which no step can be on this device, by group; a text model with everything trained.

    Products and attention by their operations. The others by the bytes that must move if every kernel reads its inputs
    and writes its outputs once, in bf16, per token and layer (h hidden, f feed-forward, q and k query and key widths)::

        norms         2 x (read and write h forward; read 2h, write h backward)
        activation    read 2f, write f forward; read 3f, write 2f backward
        rotary        read and write q + k, forward and backward
        quantisation  read 2 bytes, write 2 of 1 byte (as it is and transposed), of each product's input and gradient
        loss          logits: read twice, written once
        optimizer     per parameter 34 bytes: gradient twice, master weight and moments read and written, weight
    """
    decoder = architecture.decoder
    linear, attention = decoder_forward(decoder, tokens, sum_squared_lengths)
    head = 2 * tokens * decoder.embedding_parameters
    h, f, layers = decoder.hidden_size, decoder.ffn_hidden_size, decoder.num_layers
    q, k = decoder.num_heads * decoder.head_dim, decoder.num_kv_heads * decoder.head_dim
    everywhere = tokens * layers / BANDWIDTH
    products = 3 * (linear - head) / (FP8_PRODUCTS if fp8 else BF16_PRODUCTS) + 3 * head / BF16_PRODUCTS
    seconds = {
        "matrix products": products,
        "attention": attention / ATTENTION_FORWARD + 2.5 * attention / ATTENTION_BACKWARD,
        "norms": 2 * 2 * 5 * h * everywhere,
        "activation": 2 * 8 * f * everywhere,
        "rotary": 2 * 4 * (q + k) * everywhere,
        "quantisation": (4 * ((h + q + h + f) + (q + 2 * k + h + 2 * f + h)) * everywhere) if fp8 else 0.0,
        "loss": 2 * 3 * tokens * decoder.vocab_size / BANDWIDTH,
    }
    found = {group: 1e3 * micro_batches * value for group, value in seconds.items()}
    return found | {"optimizer": 1e3 * 34 * decoder.parameters / BANDWIDTH}
