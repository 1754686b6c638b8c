"""What Transformer Engine remembers of the models of a process, so that one of them begins as the first did."""

from __future__ import annotations

import sys


def forget_scales() -> None:
    """Forget the largest values that were seen, which are in one place for all models; nothing where it is not used.

    With them go the process groups that they are reduced over, which may be gone already.
    """
    if "transformer_engine.pytorch" in sys.modules:
        from transformer_engine.pytorch.quantization import FP8GlobalStateManager

        FP8GlobalStateManager.reset()
