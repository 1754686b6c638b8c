"""Tensors as the bytes of files: names of dtypes, casting with a check, and the way back."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_apriel.errors import CheckpointError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Dtypes of weights that are read, as safetensors calls them; others hold quantised numbers."""
SAFETENSORS_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """``tensor`` in ``dtype``, rounded to nearest. Raises CheckpointError if a number overflows, naming ``name``."""
    result = tensor.to(dtype)
    if dtype != tensor.dtype and not torch.equal(result.isfinite(), tensor.isfinite()):
        raise CheckpointError(
            f"{name} has numbers that {str(dtype).removeprefix('torch.')} cannot hold.",
            f"The largest is {float(tensor[tensor.isfinite()].abs().max()):g}.",
            "Keep the stored dtype, or choose bfloat16 or float32.",
        )
    return result


def as_bytes(tensor: Tensor) -> memoryview:
    """The numbers of a tensor on the CPU, row by row, as stored."""
    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
