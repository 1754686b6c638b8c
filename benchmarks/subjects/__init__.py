"""Who is measured: this project's step and its peers, each behind the same two functions.

A subject's name is ``FAMILY-PRECISION``, as in ``ours-delayed``, or ``FAMILY-PRECISION+RECOMPUTATION``, as in
``ours-bf16+full``; ``+8bit`` before that is an optimizer in 8 bits. A family is a module here that offers ``opened``;
it is imported in the process that measures it, and in no other.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from benchmarks.cases import Case
from megatron_apriel.batch import Batch
from megatron_apriel.formats.architecture import Architecture

SUBJECTS = {
    "ours-bf16": "megatron_apriel, bf16",
    "ours-delayed": "megatron_apriel, FP8 delayed",
    "ours-tensorwise": "megatron_apriel, FP8 tensorwise",
    "ours-blockwise": "megatron_apriel, FP8 blockwise",
    "ours-bf16+selective": "megatron_apriel, bf16, MLPs recomputed",
    "ours-bf16+full": "megatron_apriel, bf16, layers recomputed",
    "ours-tensorwise+selective": "megatron_apriel, FP8 tensorwise, MLPs recomputed",
    "ours-tensorwise+full": "megatron_apriel, FP8 tensorwise, layers recomputed",
    "megatron-bf16": "megatron-core GPTModel + Transformer Engine, bf16",
    "megatron-delayed": "megatron-core GPTModel + Transformer Engine, FP8 delayed",
    "megatron-tensorwise": "megatron-core GPTModel + Transformer Engine, FP8 tensorwise",
    "liger-bf16": "transformers + Liger, bf16",
    "liger-float8": "transformers + Liger + torchao float8 + compile",
    "liger-float8+8bit": "the same with torchao's AdamW in 8 bits",
    "liger-float8+8bit+16": "the same with AdamW in 8 bits, 16 layers recomputed",
    "liger-float8+8bit+full": "the same with AdamW in 8 bits, layers recomputed",
}
"""Name on the command line -> name in a table."""

USUAL = [name for name in SUBJECTS if "+" not in name]
"""What is measured where nobody says otherwise."""


class NotPossible(Exception):
    """A subject cannot run a case at all; the message says why. No failure of the measurement."""


class Subject(Protocol):
    """A model with its optimizer, ready to train."""

    def step(self, batches: Sequence[Batch]) -> float:
        """One optimizer step over the batches, which are on the device; returns the mean loss of a token."""

    def memory(self) -> dict[str, int]:
        """Bytes of ``weights``, ``main gradients`` and ``optimizer state``; to be asked after a step."""


@runtime_checkable
class Updated(Protocol):
    """A subject whose update can be timed alone."""

    def update_seconds(self, with_norm: bool = False) -> float:
        """Duration of an update; with gradients set to zero and their norm where asked for."""


class Family(Protocol):
    """A module of this package."""

    def opened(self, architecture: Architecture, case: Case, precision: str) -> AbstractContextManager[Subject]: ...


def family(subject: str) -> Family:
    """The module that runs a subject."""
    module: Family = importlib.import_module(f"benchmarks.subjects.{subject.partition('-')[0]}")  # type: ignore[assignment]
    return module


def bytes_of(tensors: object) -> int:
    """Bytes of the different storages among tensors, however many views each has."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}  # type: ignore[attr-defined]
    return sum(storages.values())
