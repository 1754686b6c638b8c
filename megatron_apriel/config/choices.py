"""The values that the options of a stage allow, where these are few: one name for each set, wherever it travels."""

from __future__ import annotations

from typing import Literal, get_args

Decay = Literal["linear", "cosine", "constant"]
"""Shape of the learning rate after the warm-up."""
LossOn = Literal["all", "responses"]
"""Which tokens of a source are targets."""
LongDocuments = Literal["split", "truncate", "drop", "error"]
"""What happens to a document that is longer than the sequence."""
WithoutTargets = Literal["error", "drop"]
"""What happens to a document of which nothing is left that is a target."""
ImageDevice = Literal["auto", "cpu", "gpu"]
"""Where images are decoded."""
Damaged = Literal["error", "skip"]
"""What happens at a damaged image."""
Automatic = Literal["auto"]
"""A share is chosen by the program, not given."""
Balanced = Literal["balanced"]
"""Decoder layers of each pipeline stage are computed, not given."""
Moments = Literal["float32", "bfloat16", "int8"]
"""Form in which the optimizer keeps its two moments."""
Wide = Literal["float32", "24bit"]
"""Form of masters, and of sums of gradients."""
ComputeType = Literal["bf16", "fp32"]
"""Type of weights and activations."""
Compute = Literal["auto", ComputeType]
"""The same, or the one that suits the device."""
Fp8Recipe = Literal["none", "delayed", "tensorwise", "blockwise"]
"""Scaling of the decoder's matrix products in 8 bits."""
Fp8Weights = Literal["kept", "remade"]
"""How long 8-bit copies of weights live."""
Dealing = Literal["in_order", "evenly"]
"""Which of a step's sequences each data-parallel rank gets."""
Attention = Literal["auto", "flash", "cudnn"]
"""Attention's kernels on a GPU."""
Recompute = Literal["none", "selective", "full"]
"""Which activations are computed again in the backward pass."""
Inputs = Literal["gpu", "host"]
"""Where what enters recomputed layers waits for the backward pass."""
Kept = Literal["all", "last", "equispaced"]
"""Which checkpoints stay on disk."""
Wandb = Literal["off", "offline", "online"]
"""Whether Weights & Biases gets the figures."""

INPUTS: tuple[Inputs, ...] = get_args(Inputs)
"""From the one that costs nothing to the one that takes less of a GPU's memory."""
DEALINGS: tuple[Dealing, ...] = get_args(Dealing)
"""The plain one first."""
MOMENTS: tuple[Moments, ...] = get_args(Moments)
"""From the exact one to the smallest."""
RECOMPUTE: tuple[Recompute, ...] = get_args(Recompute)
"""From the fastest to the one that takes the least memory."""
FP8_RECIPES: tuple[Fp8Recipe, ...] = tuple(recipe for recipe in get_args(Fp8Recipe) if recipe != "none")
