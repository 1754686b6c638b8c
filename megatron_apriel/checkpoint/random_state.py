"""The random states of a rank as tensors: Python's, NumPy's, torch's, CUDA's and Megatron's named ones.

They are kept as tensors and not as Python objects, so that reading a checkpoint never executes anything. A rank's
states belong to its place in the layout: on another layout they mean nothing and are not restored.
"""

from __future__ import annotations

import math
import random
from typing import Any

import numpy
import torch
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker
from torch import Tensor

from megatron_apriel.errors import CheckpointError

_MEGATRON = "megatron."


def random_states() -> dict[str, Tensor]:
    """This rank's random states by name; tensors on the CPU whose shapes do not depend on the states."""
    version, words, gauss = random.getstate()
    drawn: Any = numpy.random.get_state(legacy=False)
    states = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor([version, *words], dtype=torch.int64),
        "python_gauss": _optional(gauss),
        "numpy": torch.tensor([*drawn["state"]["key"].tolist(), drawn["state"]["pos"]], dtype=torch.int64),
        "numpy_gauss": _optional(drawn["gauss"] if drawn["has_gauss"] else None),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    for name, state in get_cuda_rng_tracker().get_states().items():
        states[_MEGATRON + name] = state.get_state() if isinstance(state, torch.Generator) else state
    return states


def restore_random_states(states: dict[str, Tensor]) -> None:
    """Continue from ``states``, as :func:`random_states` gave them on this rank.

    Raises:
        CheckpointError: no generator could have been in such a state.
    """
    try:
        _restore(states)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"the checkpoint's random states are of no generator: {error}.") from None


def _restore(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["torch"])
    version, *words, index = states["python"].tolist()
    random.setstate((version, (*_words(words), index), _value(states["python_gauss"])))
    *words, position = states["numpy"].tolist()
    key = _words(words)
    if not 0 <= position <= len(key):
        raise ValueError(f"NumPy's is at word {position} of {len(key)}")  # where NumPy would read without looking
    gauss = _value(states["numpy_gauss"])
    numpy.random.set_state(
        {
            "bit_generator": "MT19937",
            "state": {"key": numpy.array(key, dtype=numpy.uint32), "pos": position},
            "has_gauss": int(gauss is not None),
            "gauss": gauss or 0.0,
        }
    )
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    tracker = get_cuda_rng_tracker()
    current = tracker.get_states()
    for name, state in current.items():
        saved = states[_MEGATRON + name]
        if isinstance(state, torch.Generator):
            state.set_state(saved)
        else:
            current[name] = saved
    tracker.set_states(current)


def _words(numbers: list[int]) -> list[int]:
    if not all(0 <= number < 2**32 for number in numbers):
        raise ValueError("a word of it has more than 32 bits")
    return numbers


def _optional(value: float | None) -> Tensor:
    return torch.tensor([value is not None, value or 0.0], dtype=torch.float64)


def _value(pair: Tensor) -> float | None:
    present, value = pair.tolist()
    if present not in (0, 1) or not math.isfinite(value):
        raise ValueError(f"the number kept back is {value} (there: {present})")
    return value if present else None
