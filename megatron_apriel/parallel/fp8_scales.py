"""Delayed scaling's memory of the largest values, which Transformer Engine has in one place for all of a process.

A layer enters its values there at its first pass in 8 bits, with the process group that they are reduced over, and
nothing takes them out again. Every step of a later model would still reduce and update those of the models before it,
over groups that may be gone.
"""

from __future__ import annotations

import sys


def forget_scales() -> None:
    """Forget the values of all models that there were; nothing where Transformer Engine is not used."""
    quantization = sys.modules.get("transformer_engine.pytorch.quantization")
    if quantization is not None:
        quantization.FP8GlobalStateManager.reset()
