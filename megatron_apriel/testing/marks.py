"""Marks for tests that need hardware or a library that is not everywhere; each skips with its reason.

Use as decorators, or as a module's ``pytestmark``::

    @needs_gpus(2)
    def test_two_gpus(): ...
"""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from megatron_apriel.quantities import counted


def needs_gpus(number: int) -> pytest.MarkDecorator:
    """Skips unless at least ``number`` CUDA devices are present."""
    present = torch.cuda.device_count()
    return pytest.mark.skipif(present < number, reason=f"needs {counted(number, 'CUDA device')}, found {present}")


needs_gpu = needs_gpus(1)
"""Skips unless a CUDA device is present."""

on_each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu])])
"""Runs with ``device`` as the CPU, and as the GPU where there is one."""

needs_transformer_engine = pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("transformer_engine") is None,
    reason="needs Transformer Engine and a CUDA device",
)
"""Skips unless Transformer Engine is installed and a CUDA device is present."""

needs_flash_attention = pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("flash_attn") is None or find_spec("flash_attn.cute") is None,
    reason="needs flash-attn-4 and a CUDA device",
)
"""Skips unless FlashAttention-4 is installed and a CUDA device is present."""
