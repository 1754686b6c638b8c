"""Weights on disk, of any kind, read slice by slice under one set of names.

A :class:`Weights` answers for a weight's dtype and reads a rectangle of it. Whatever the files call the weight and
in whatever order they keep its rows, it is asked for by its legacy Hugging Face name and comes back in Hugging Face's
order. Opening one accounts for every tensor in the files and every weight of the architecture: nothing can be missing,
left over, of another shape or of a dtype that needs decoding, without an error that names it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_apriel.checkpoint.distributed_weights import DistributedWeights
from megatron_apriel.checkpoint.tensor_bytes import DTYPES
from megatron_apriel.errors import CheckpointError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.kinds import Kind, recognise
from megatron_apriel.formats.run_record import read_run_file
from megatron_apriel.formats.tensor_accounts import open_accounted
from megatron_apriel.formats.tensor_files import TensorEntry
from megatron_apriel.formats.tensor_names import Form, Weight, halves_from_pairs, weights
from megatron_apriel.quantities import counted


class Weights(Protocol):
    """Weights that can be read by slices.

    Attributes:
        description: kind and form, for people.
        table: the weights that it holds, by legacy name, in the order of the computation.
        dtypes: of each.
        skipped: tensors in the files that the architecture has no use for and that were left out on purpose.
        bytes_read: so far, as stored.
    """

    description: str
    table: dict[str, Weight]
    dtypes: dict[str, torch.dtype]
    skipped: tuple[str, ...]
    bytes_read: int

    def read(self, name: str, start: int, stop: int, columns: tuple[int, int] | None = None) -> Tensor:
        """Rows ``start`` to ``stop`` of weight ``name`` seen as a matrix (a vector for a vector), on the CPU."""
        ...

    def verify(self, share: int = 0, shares: int = 1) -> None:
        """Compare one of ``shares`` parts of the weights with their checksums, where the files have any.

        Raises:
            CheckpointError: a weight is not what was written.
        """
        ...


def open_weights(path: str | Path, architecture: Architecture) -> Weights:
    """Open the checkpoint at ``path``, of whatever kind, as weights of ``architecture``.

    Raises:
        CheckpointError: missing, left over, damaged or misshapen tensors, by name.
    """
    path = Path(path)
    kind = recognise(path)
    if kind is Kind.MEGATRON:
        read_run_file(path)
        return DistributedWeights(path, architecture)
    return SafetensorsWeights(path, architecture, kind)


class SafetensorsWeights:
    """A Hugging Face directory, or Mistral's own form, through memory-mapped safetensors files."""

    def __init__(self, path: Path, architecture: Architecture, kind: Kind) -> None:
        directory, resolution = open_accounted(path, architecture, "consolidated" if kind is Kind.MISTRAL else "model")
        self._entries = {name: directory.entries[stored] for name, stored in resolution.stored.items()}
        self._permuted = resolution.form is Form.MISTRAL
        self._handles: dict[Path, Any] = {}
        self.description = f"{counted(len(directory.files), 'safetensors file')}, {resolution.form}"
        self.table = weights(architecture)
        self.skipped = resolution.skipped + resolution.buffers
        self.bytes_read = 0
        self.dtypes = {name: DTYPES[self._entries[name].dtype] for name in self.table}

    def read(self, name: str, start: int, stop: int, columns: tuple[int, int] | None = None) -> Tensor:
        head = self.table[name].interleaved_head if self._permuted else 0
        if not head:
            return self._rectangle(name, start, stop, columns)
        # Rows change places inside a head only: read whole heads, put them in order, cut.
        first = start - start % head
        rows = halves_from_pairs(self._rectangle(name, first, stop + -stop % head, columns), head)
        return rows[start - first : stop - first]

    def verify(self, share: int = 0, shares: int = 1) -> None:
        """Nothing to do: a safetensors file has no checksums, and its header was compared with its size."""

    def _rectangle(self, name: str, start: int, stop: int, columns: tuple[int, int] | None) -> Tensor:
        entry = self._entries[name]
        try:
            part = self._rows(entry, start, stop) if columns is None else self._columns(entry, start, stop, columns)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{entry.file}: cannot read {entry.name}: {error}.") from error
        self.bytes_read += part.numel() * part.element_size()
        return part

    def _rows(self, entry: TensorEntry, start: int, stop: int) -> Tensor:
        """Whole rows are read, not mapped: a mapped file counts as this process's memory once it has been looked at."""
        data = bytearray(entry.size // entry.rows * (stop - start))
        entry.read_into(memoryview(data), start, stop)
        rows = torch.frombuffer(data, dtype=DTYPES[entry.dtype]).view(stop - start, -1)
        return rows[:, 0] if len(entry.shape) == 1 else rows

    def _columns(self, entry: TensorEntry, start: int, stop: int, columns: tuple[int, int]) -> Tensor:
        if entry.file not in self._handles:
            self._handles[entry.file] = safe_open(str(entry.file), framework="pt", device="cpu").__enter__()
        part: Tensor = self._handles[entry.file].get_slice(entry.name)[start:stop, columns[0] : columns[1]]
        entry.check_unchanged()
        return part
