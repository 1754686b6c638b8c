"""Loads weights of any kind straight into the sharded model: every rank reads just its own slices.

No rank ever holds the whole model. A tensor-parallel rank reads its run of rows (or columns) of each tensor from the
memory-mapped file, a pipeline rank its own layers, and what is read goes into the parameter where it stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from megatron_apriel.checkpoint.parameter_shards import Place, check_all_owned, owned_parameters
from megatron_apriel.checkpoint.weights import open_weights
from megatron_apriel.errors import listed, printable
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.parallel.agreement import alike
from megatron_apriel.quantities import counted


@dataclass
class LoadReport:
    """What was loaded into this rank; ``str()`` of it is for the log.

    Attributes:
        path, description: where from, and in what form.
        tensors: tensors of the whole checkpoint that were accounted for.
        parameters, elements: of this rank's model that were filled.
        bytes_read: by this rank, as stored.
        casts: how many slices went from a stored dtype to another, by (stored, loaded).
        skipped: tensors left out on purpose: a tower's where the model is text-only, tables of rotary frequencies.
    """

    path: Path
    description: str
    tensors: int
    skipped: tuple[str, ...]
    parameters: int = 0
    elements: int = 0
    bytes_read: int = 0
    casts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [
            f"loaded {counted(self.tensors, 'tensor')} from {printable(self.path)} ({self.description}); this rank "
            f"filled {counted(self.parameters, 'parameter')} with {counted(self.elements, 'number')} and read "
            f"{counted(self.bytes_read, 'byte')}"
        ]
        lines += [
            f"  {counted(count, 'slice')} cast from {stored} to {loaded}"
            for (stored, loaded), count in self.casts.items()
        ]
        if self.skipped:
            without = counted(len(self.skipped), "tensor has", "tensors have")
            lines.append(f"  {without} no place in this model: {listed(self.skipped, 3)}")
        return "\n".join(lines)


@torch.no_grad()
def load_weights(chunks: Sequence[nn.Module], checkpoint: str | Path, architecture: Architecture) -> LoadReport:
    """Fill this rank's model chunks from ``checkpoint``; collective where there are several ranks.

    Args:
        chunks: this rank's model, before or after freezing, not wrapped.
        checkpoint: a Hugging Face directory, Mistral's own form, or a run's distributed checkpoint (its weights only).
        architecture: of the model. Where it is text-only, a LLaVA checkpoint's decoder is taken.

    Raises:
        CheckpointError: a tensor or parameter that is missing, left over, misshapen, quantised or damaged, by name.
    """
    report, filled = alike(lambda: _fill(chunks, checkpoint, architecture))
    check_all_owned(filled, architecture)
    return report


def _fill(
    chunks: Sequence[nn.Module], checkpoint: str | Path, architecture: Architecture
) -> tuple[LoadReport, set[str]]:
    """Read this rank's slices; returns the report and the keys of what was filled. No communication."""
    place, weights = Place.current(), open_weights(checkpoint, architecture)
    together = dist.is_initialized()
    weights.verify(*((dist.get_rank(), dist.get_world_size()) if together else ()))
    report = LoadReport(Path(checkpoint), weights.description, len(weights.table), weights.skipped)
    filled = set()
    for parameter, tensor in owned_parameters(chunks, architecture, place):
        row = 0
        for piece in parameter.shard(place.tensor, place.tensor_size):
            rows = weights.read(piece.weight, piece.start, piece.stop, piece.columns)
            tensor[row : row + rows.shape[0]].copy_(rows)
            row += rows.shape[0]
            if rows.dtype != tensor.dtype:
                report.casts[str(rows.dtype).removeprefix("torch."), str(tensor.dtype).removeprefix("torch.")] += 1
        filled.add(parameter.key)
        report.elements += tensor.numel()
    report.parameters, report.bytes_read = len(filled), weights.bytes_read
    return report, filled
