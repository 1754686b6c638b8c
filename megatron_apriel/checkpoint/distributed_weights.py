"""The weights of a run's distributed checkpoint under Hugging Face's names, without a GPU, a process group or a model.

The optimizer's state and the random states lie in the same files under keys of their own; their numbers are not read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from torch import Tensor

from megatron_apriel.checkpoint.accepted_entries import check_common_state, check_contents
from megatron_apriel.checkpoint.metadata import read_metadata
from megatron_apriel.checkpoint.piece_reader import PieceReader
from megatron_apriel.checkpoint.tensor_bytes import SAFETENSORS_NAMES
from megatron_apriel.checkpoint.verify import verify
from megatron_apriel.errors import CheckpointError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.kinds import architecture_of, sidecar_directory
from megatron_apriel.formats.megatron_parameters import parameters
from megatron_apriel.formats.run_record import read_run_file
from megatron_apriel.formats.tensor_files import TensorSpec
from megatron_apriel.formats.tensor_names import Form, weights
from megatron_apriel.quantities import counted


@dataclass(frozen=True)
class _Run:
    """Rows ``start`` to ``stop`` of a weight are rows ``row``... of parameter ``key``."""

    start: int
    stop: int
    key: str
    row: int


class DistributedWeights:
    """A run's distributed checkpoint as a :class:`~megatron_apriel.checkpoint.weights.Weights`."""

    def __init__(self, path: Path, architecture: Architecture) -> None:
        self._path, self._contents = path, read_metadata(path)
        check_contents(path, self._contents, architecture)
        self._reader = PieceReader(path, self._contents)
        check_common_state(path, self._reader)
        self._expected = expected = parameters(architecture)
        self._runs: dict[str, list[_Run]] = defaultdict(list)
        for key, parameter in expected.items():
            for piece, row in parameter.pieces_between(0, parameter.shape[0]):
                self._runs[piece.weight].append(_Run(piece.start, piece.stop, key, row))
        self.table = weights(architecture)
        tensors = self._contents.tensors
        self.dtypes = {name: tensors[runs[0].key].dtype for name, runs in self._runs.items()}
        self.skipped: tuple[str, ...] = ()
        files = {piece.extent.file for key in expected for piece in tensors[key].pieces}
        self.description = f"distributed checkpoint, {counted(len(files), 'file')}"
        self.bytes_read = 0

    def verify(self, share: int = 0, shares: int = 1) -> None:
        verify(self._path, self._contents, share, shares, self._expected)

    def read(self, name: str, start: int, stop: int, columns: tuple[int, int] | None = None) -> Tensor:
        weight = self.table[name]
        first, last = columns or (0, weight.matrix[1])
        result = torch.empty(stop - start, last - first, dtype=self.dtypes[name])
        filled = 0
        for run in self._runs[name]:
            low, high = max(start, run.start), min(stop, run.stop)
            if low < high:
                target = result[low - start : high - start]
                filled += self._reader.fill(target, run.key, (run.row + low - run.start, first))
        self.bytes_read = self._reader.bytes_read
        if filled != result.numel():
            raise CheckpointError(f"{self._path}: {name} is not whole: {result.numel() - filled} numbers are nowhere.")
        return result[:, 0] if len(weight.shape) == 1 else result


class DistributedCheckpointReader:
    """A run's distributed checkpoint as tensors of Hugging Face's names and shapes, in NumPy's arrays.

    Implements ``TensorReader`` of :mod:`megatron_apriel.surgery.average_inputs`. Not for several threads at a time.

    Args:
        path: a directory ``OUTPUT/checkpoints/step_00000500``; its files are verified by size, its weights by checksum.

    Attributes:
        sidecars: directory with config, tokenizer and processor files.

    Raises:
        CheckpointError: damaged, incomplete or of another model than its config says.
    """

    def __init__(self, path: str | Path) -> None:
        read_run_file(Path(path))
        self.sidecars = sidecar_directory(path)
        architecture = architecture_of(path)
        form = Form.TEXT_ONLY if architecture.tower is None else Form.LEGACY
        self._weights = DistributedWeights(Path(path), architecture)
        self._weights.verify()
        self._names = {weight.stored_as(form): name for name, weight in self._weights.table.items()}
        self.tensors: Mapping[str, TensorSpec] = {
            stored: TensorSpec(stored, SAFETENSORS_NAMES[self._weights.dtypes[name]], self._weights.table[name].shape)
            for stored, name in self._names.items()
        }

    def read(self, name: str, start_row: int, stop_row: int) -> numpy.ndarray:
        """Rows ``start_row`` to ``stop_row`` of a tensor as a flat array; bfloat16 as its bits in uint16."""
        rows = self._weights.read(self._names[name], start_row, stop_row).reshape(-1)
        array: numpy.ndarray = (rows.view(torch.uint16) if rows.dtype == torch.bfloat16 else rows).numpy()
        return array
