"""How a stage uses its machine: the layout over ranks, number formats, and what is computed again to save memory."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from megatron_apriel.config.choices import (
    Balanced,
    Compute,
    ComputeType,
    Dealing,
    Fp8Recipe,
    Fp8Weights,
    Inputs,
    Recompute,
)
from megatron_apriel.config.section import Section, Whole, raise_all
from megatron_apriel.errors import shown


def _split(value: Any) -> Any:
    if value == "balanced" or isinstance(value, list | tuple):
        return value
    raise ValueError(f"{shown(value)} is neither 'balanced' nor a list such as [13,12,12,11]; null is an even split")


# The tags are written in brackets so that findings are placed at the setting and not at a member of the union.
LayersPerStage = Annotated[
    Annotated[Balanced, Tag("(word)")] | Annotated[tuple[Annotated[Whole, Field(ge=1)], ...], Tag("(list)")],
    Discriminator(lambda value: "(word)" if isinstance(value, str) else "(list)"),
    BeforeValidator(_split),
]
"""Decoder layers of each virtual pipeline stage, or the word that asks to compute them."""


class ParallelSection(Section):
    """How the work is laid out over ranks; data parallelism takes what the others leave."""

    tensor: Annotated[Whole, Field(ge=1)] = 1
    """Ranks over which every decoder layer is split."""
    sequence: bool = False
    """Split the activations between tensor-parallel regions along the sequence."""
    pipeline: Annotated[Whole, Field(ge=1)] = 1
    """Ranks over which the stack of decoder layers is split."""
    virtual: Annotated[Whole, Field(ge=1)] = 1
    """Model chunks per pipeline rank (interleaved schedule) where above 1."""
    layers_per_stage: LayersPerStage | None = None
    """Decoder layers of each of the pipeline x virtual stages in order; `null`: as many on each; `balanced`: computed,
    with fewer layers beside the tower and the head. A dry run prints the numbers."""
    context: Annotated[Whole, Field(ge=1)] = 1
    """Ranks over which the tokens of a sequence are divided."""
    dealing: Dealing = "in_order"
    """Which of a step's sequences each data-parallel rank trains on: `in_order`, every d-th of d ranks; `evenly`, such
    that all have about as much to compute. The global batch is the same."""
    overlap: bool = True
    """Overlap gradient reduction and parameter gathering with computation."""
    tensor_overlap: bool = False
    """Overlap the gathers and scatters of tensor parallelism with the products that they stand beside (Transformer
    Engine's user buffers; the tensor-parallel GPUs of one host). For the buffers see `parallel/user_buffers.py`."""

    @model_validator(mode="after")
    def _consistent(self) -> ParallelSection:
        problems = []
        if self.virtual > 1 and self.pipeline == 1:
            problems.append(
                f"virtual={self.virtual} needs pipeline above 1; model chunks interleave over pipeline ranks"
            )
        if self.sequence and self.tensor == 1:
            problems.append("sequence=true needs tensor above 1; set sequence=false, or split the layers over ranks")
        if self.tensor_overlap and not self.sequence:
            problems.append(
                "tensor_overlap=true needs sequence=true: without it there are sums over ranks, and no gathers and"
                " scatters that could be divided; set both, or tensor_overlap=false"
            )
        raise_all(problems)
        return self


class PrecisionSection(Section):
    """Numbers that the model computes in."""

    compute: Compute = "auto"
    """Type of weights and activations; `auto`: bf16 on a GPU, fp32 on a CPU, where bf16 can take many times as long.
    Main gradients and optimizer state are fp32, unless `optimizer` says otherwise."""
    fp8: Fp8Recipe = "none"
    """Scaling recipe for the decoder's matrix products in 8 bits (Transformer Engine; Hopper or newer)."""
    fp8_weights: Fp8Weights = "kept"
    """With fp8: 8-bit copies of the weights are `kept` over the micro-batches of a step, 2 bytes a weight; or `remade`
    for every product, so that there are those of one layer at a time, for a little more time."""
    bf16_layers_at_start: Annotated[Whole, Field(ge=0)] = 0
    """With fp8: so many first decoder layers stay in bf16."""
    bf16_layers_at_end: Annotated[Whole, Field(ge=0)] = 0
    """With fp8: so many last decoder layers stay in bf16."""

    @model_validator(mode="after")
    def _consistent(self) -> PrecisionSection:
        problems = []
        if self.fp8 != "none" and self.compute == "fp32":
            problems.append(
                f"fp8={self.fp8} needs compute=bf16, not {self.compute}; what is not in 8 bits runs in bf16"
            )
        if self.fp8 == "none" and self.fp8_weights == "remade":
            problems.append("fp8_weights=remade has no meaning with fp8=none; set a recipe, or fp8_weights=kept")
        for name in ("bf16_layers_at_start", "bf16_layers_at_end"):
            if self.fp8 == "none" and (number := getattr(self, name)):
                problems.append(f"{name}={number} has no meaning with fp8=none; set a recipe, or {name}=0")
        if self.fp8 == "delayed" and (self.bf16_layers_at_start or self.bf16_layers_at_end):
            problems.append(
                f"fp8=delayed cannot keep layers in bf16 (bf16_layers_at_start={self.bf16_layers_at_start},"
                f" bf16_layers_at_end={self.bf16_layers_at_end}): it is one context around all layers; set both to 0,"
                " or fp8=tensorwise or blockwise"
            )
        raise_all(problems)
        return self

    def compute_on(self, gpu: bool) -> ComputeType:
        """The type that ``compute`` means on a GPU, or on a CPU."""
        if self.compute != "auto":
            return self.compute
        return "bf16" if gpu else "fp32"

    def bytes_on(self, gpu: bool) -> int:
        """Of a number of that type."""
        return 2 if self.compute_on(gpu) == "bf16" else 4

    def in_8_bits(self, layer: int, num_layers: int) -> bool:
        """Whether a decoder layer, counted from 0, runs in 8 bits."""
        kept_at_end = layer >= num_layers - self.bf16_layers_at_end
        return self.fp8 != "none" and layer >= self.bf16_layers_at_start and not kept_at_end


class RecomputeSection(Section):
    """Activations computed again in the backward pass instead of kept."""

    mode: Recompute = "none"
    """`selective`: the MLPs, whose activations are the widest; `full`: whole layers, tower included."""
    layers: Annotated[Whole, Field(ge=1)] | None = None
    """With `full`: how many layers of each pipeline chunk; `null`: all."""
    inputs: Inputs = "gpu"
    """With `full`: where what enters the decoder's layers waits for the backward pass, 2 bytes for each of a token's
    hidden numbers; `host`: in host memory, for long sequences, with copies beside the layers' work."""

    @model_validator(mode="after")
    def _consistent(self) -> RecomputeSection:
        problems = []
        if self.layers is not None and self.mode != "full":
            problems.append(f"layers={self.layers} has no meaning with mode={self.mode}; set mode=full, or layers=null")
        if self.inputs != "gpu" and self.mode != "full":
            problems.append(
                f"inputs={self.inputs} has no meaning with mode={self.mode}: only of layers that are recomputed as a"
                " whole it is their inputs that are kept; set mode=full, or inputs=gpu"
            )
        raise_all(problems)
        return self
