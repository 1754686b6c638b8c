"""Averaging checkpoints: the mean of several models' weights, as a new model.

The published recipe averages three times: six checkpoints of stage 1, three of CPT-1, and the two last runs. All of
them are equal means; weights are possible. What "mean" is, to the last bit, is said in ``mean.py``.

Inputs are Hugging Face directories or a run's own distributed checkpoints: whatever offers a ``TensorReader``. The
result is always a Hugging Face directory. Tensors are read in pieces, of which only a few are in memory at a time, so
that 15 billion parameters average in the memory that is allowed. Reading goes on in one thread (readers need not
allow more), arithmetic in others, hashing and writing in lanes: none of them holds the interpreter while it works.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megatron_apriel.errors import CheckpointError, ConfigError
from megatron_apriel.formats.sidecars import CONFIG, check_sidecars, sha256_of, write_sidecars
from megatron_apriel.formats.tensor_files import FLOATS, TensorSpec
from megatron_apriel.formats.tensor_names import component_of
from megatron_apriel.formats.word_pattern import name_word_fault
from megatron_apriel.outputs import check_space, whole_directory
from megatron_apriel.progress import progress
from megatron_apriel.surgery.average_inputs import AverageInput, DirectoryReader, check_agreement
from megatron_apriel.surgery.manifest import earlier_manifest, write_manifest
from megatron_apriel.surgery.mean import BLOCK, STORAGE, BlockMean, Raw, to_float64
from megatron_apriel.surgery.reused_memory import ReusedMemory
from megatron_apriel.surgery.shards import Room, Shard, plan_shards, write_tensors

FILE_BYTES = 5 * 10**9
"""Most bytes of tensors in a file of the result; a tensor that has more has one of its own."""
_LARGEST_PIECE = 1 << 20
"""Elements read at once at most; more is hardly faster."""

_MARGIN_BYTES = 48 << 20
"""Kept free of ``max_memory`` for arithmetic blocks, lanes, allocator and headers."""


@dataclass(frozen=True)
class AveragePlan:
    """All that will be computed, checked before anything is.

    Attributes:
        inputs: two or more checkpoints that agree in everything but their numbers.
        weights: adding up to 1, or None for the equal mean.
        shards: the files of the result.
        piece_bytes: bytes of one input's piece.
        workers: threads for arithmetic.
        histories: of each input, what made it, where that was done here.
    """

    inputs: tuple[AverageInput, ...]
    weights: tuple[float, ...] | None
    shards: tuple[Shard, ...]
    piece_bytes: int
    workers: int
    histories: tuple[Any, ...]

    @property
    def size(self) -> int:
        """Bytes of the result's tensors."""
        return sum(shard.size for shard in self.shards)

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Of the result, in the order of its files."""
        return tuple(tensor for shard in self.shards for tensor in shard.tensors)


@dataclass
class Distances:
    """Squared distances of the inputs from the mean, gathered per component.

    Attributes:
        squares: per component, one sum of squared differences per input.
        norms: per component, the mean's sum of squares.
    """

    squares: dict[str, np.ndarray] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)

    def add(self, component: str, squares: np.ndarray, norm: float) -> None:
        """Take in one piece."""
        self.squares[component] = self.squares.get(component, 0) + squares
        self.norms[component] = self.norms.get(component, 0.0) + norm

    def relative(self) -> dict[str, list[float]]:
        """Per component, each input's L2 distance from the mean divided by the mean's norm."""
        return {
            component: [
                math.sqrt(square / self.norms[component]) if self.norms[component] else (math.inf if square else 0.0)
                for square in squares
            ]
            for component, squares in self.squares.items()
        }


def plan_average(
    inputs: Sequence[AverageInput],
    weights: tuple[float, ...] | None = None,
    *,
    max_memory: int = 2 * 10**9,
) -> AveragePlan:
    """Check that the inputs can be averaged, and cut the work to the memory allowed.

    Args:
        inputs: at least one.
        weights: as ``mean.normalised`` gives them.
        max_memory: bytes that the whole process may hold, its program included.

    Raises:
        CheckpointError: tensors or configs that disagree, by name; dtypes that cannot be averaged; a file beside the
            weights that cannot be read.
        ConfigError: too little memory.
    """
    check_agreement(inputs)
    check_sidecars(inputs[0].sidecars)
    name_word_fault(inputs[0].sidecars)
    tensors = list(inputs[0].reader.tensors.values())
    shards = plan_shards(tensors, FILE_BYTES)
    workers = min(4, os.cpu_count() or 1)
    piece_bytes = _piece_bytes(tensors, len(inputs), workers, max_memory)
    histories = tuple(earlier_manifest(given.sidecars) for given in inputs)
    return AveragePlan(tuple(inputs), weights, tuple(shards), piece_bytes, workers, histories)


def _resident_bytes() -> int:
    """Memory that the process holds now; what no plan can save."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    except OSError:
        return 100 << 20
    return pages * os.sysconf("SC_PAGE_SIZE")


def _piece_bytes(tensors: Sequence[TensorSpec], inputs: int, workers: int, max_memory: int) -> int:
    """Bytes of one input's piece, so that all that is in flight fits: every input's, and the result, per worker.

    One more, since a lane holds a piece of any size.
    """
    pieces = (inputs + 1) * (workers + 2) + 1
    fixed = _resident_bytes() + _MARGIN_BYTES
    allowed = (max_memory - fixed) // pieces
    row = max(spec.size // max(spec.rows, 1) for spec in tensors)
    smallest = max(row, 1 << 16)
    if allowed < smallest:
        raise ConfigError(
            f"--max-memory {max_memory:,} is too little to average {inputs} checkpoints.",
            f"The program takes {fixed:,} bytes, and {pieces} pieces of {smallest:,} bytes (at least a row) the rest.",
            f"Give {-(-(fixed + smallest * pieces) // 10**6)}MB or more.",
        )
    return allowed


@dataclass(frozen=True)
class _Piece:
    """Rows of one tensor of the result, and how far the inputs lie from them."""

    spec: TensorSpec
    start_row: int
    stop_row: int
    values: Raw
    squares: np.ndarray
    norm: float


class _Arithmetic(threading.local):
    """Each thread's arrays for arithmetic, used again from piece to piece."""

    def __init__(self, plan: AveragePlan) -> None:
        self._plan = plan
        self._made: dict[str, BlockMean] = {}

    def blocks(self, dtype: str) -> BlockMean:
        if dtype not in self._made:
            self._made[dtype] = BlockMean(dtype, self._plan.weights, len(self._plan.inputs))
        return self._made[dtype]


def _row_ranges(spec: TensorSpec, piece_bytes: int) -> Iterator[tuple[int, int]]:
    limit = min(piece_bytes, _LARGEST_PIECE * STORAGE[spec.dtype].itemsize)
    rows = max(1, limit // max(spec.size // max(spec.rows, 1), 1))
    for start in range(0, spec.rows if spec.size else 0, rows):
        yield start, min(start + rows, spec.rows)


def _computed(plan: AveragePlan, pool: ThreadPoolExecutor, arithmetic: _Arithmetic) -> Generator[_Piece]:
    """The mean of every planned tensor, piece by piece, in order; a few pieces are computed ahead."""
    waiting: deque[Future[_Piece]] = deque()
    memory = ReusedMemory()
    try:
        for spec in plan.tensors:
            for start, stop in _row_ranges(spec, plan.piece_bytes):
                raws = [_read(given, spec, start, stop) for given in plan.inputs]
                values = np.frombuffer(memory(raws[0].nbytes), raws[0].dtype)
                waiting.append(pool.submit(_combine, plan, arithmetic, spec, start, stop, raws, values))
                del raws, values
                if len(waiting) > plan.workers:
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _read(given: AverageInput, spec: TensorSpec, start: int, stop: int) -> Raw:
    array = np.ascontiguousarray(given.reader.read(spec.name, start, stop)).reshape(-1)
    expected = spec.elements // max(spec.rows, 1) * (stop - start)
    if array.dtype != STORAGE[spec.dtype] or array.size != expected:
        raise TypeError(
            f"{given.label}: {spec.name} came as {array.size} of {array.dtype}, not {expected} {spec.dtype}"
        )
    return array


def _combine(
    plan: AveragePlan,
    arithmetic: _Arithmetic,
    spec: TensorSpec,
    start: int,
    stop: int,
    raws: list[Raw],
    values: Raw,
) -> _Piece:
    """Compute some rows of the mean into ``values``."""
    squares, norm = np.zeros(len(raws)), 0.0
    if spec.dtype not in FLOATS:
        for given, raw in zip(plan.inputs, raws, strict=True):
            if not np.array_equal(raw, raws[0]):
                place = int(np.nonzero(raw != raws[0])[0][0])
                raise CheckpointError(
                    f"{spec.name}{_index(spec, start, place)} is {raws[0][place]} in {plan.inputs[0].label} "
                    f"and {raw[place]} in {given.label}.",
                    f"Tensors of whole numbers ({spec.dtype}) have no mean; they must be the same in all inputs.",
                )
        return _Piece(spec, start, stop, raws[0], squares, norm)
    blocks = arithmetic.blocks(spec.dtype)
    for begin in range(0, values.size, BLOCK):
        block = slice(begin, begin + BLOCK)
        parts, result = [raw[block] for raw in raws], values[block]
        blocks.mean(parts, result)
        distances, size = blocks.squares(parts, result)
        if not math.isfinite(size):  # where one number is not finite, the mean is not
            for given, part in zip(plan.inputs, parts, strict=True):
                _check_finite(given, spec, start, begin, part)
        squares += distances
        norm += size
    return _Piece(spec, start, stop, values, squares, norm)


def _check_finite(given: AverageInput, spec: TensorSpec, start: int, begin: int, raw: Raw) -> None:
    finite = (raw & 0x7F80) != 0x7F80 if spec.dtype == "BF16" else np.isfinite(raw)
    if not finite.all():
        place = int(np.nonzero(~finite)[0][0])
        value = to_float64(raw[place : place + 1], spec.dtype)[0]
        raise CheckpointError(
            f"{spec.name}{_index(spec, start, begin + place)} is {value} in {given.label}.",
            "One such number makes the mean useless.",
            "Leave this checkpoint out, and look at what the run did before it.",
        )


def _index(spec: TensorSpec, start_row: int, place: int) -> str:
    """``[3, 17]``: the index of an element, given its place after the beginning of a row."""
    if not spec.shape:
        return ""
    place += start_row * (spec.elements // max(spec.rows, 1))
    return str([int(number) for number in np.unravel_index(place, spec.shape)])


def average(plan: AveragePlan, destination: str | Path, *, overwrite: bool = False, verify: bool = False) -> Distances:
    """Write the mean; the destination is whole or as it was.

    Args:
        plan: from :func:`plan_average`.
        destination: directory to be made.
        overwrite: replace an earlier result there.
        verify: also compute everything again and compare with what was written, before it is put in place.

    Returns:
        How far each input lies from the mean.

    Raises:
        CheckpointError: NaN or infinity in an input, by name and index; whole-number tensors that differ.
        OutputError: the destination is refused, or the disk is full.
    """
    distances, arithmetic = Distances(), _Arithmetic(plan)
    first = plan.inputs[0]
    inputs = [given.label for given in plan.inputs]
    with (
        whole_directory(destination, overwrite, CONFIG, inputs) as partial,
        ThreadPoolExecutor(plan.workers) as pool,
    ):
        check_space(destination, plan.size)
        with (
            progress("averaging", plan.size, "byte") as step,
            closing(_computed(plan, pool, arithmetic)) as pieces,
        ):

            def contents(spec: TensorSpec, room: Room) -> Iterator[memoryview]:
                for _ in _row_ranges(spec, plan.piece_bytes):
                    piece = next(pieces)
                    distances.add(component_of(spec.name), piece.squares, piece.norm)
                    yield memoryview(piece.values)

            hashes = write_tensors(partial, plan.shards, contents, step=step)
        for name in write_sidecars(partial, first.sidecars, first.config):
            hashes[name] = sha256_of(partial / name)
        write_manifest(partial, "average", **_manifest(plan, distances, hashes))
        if verify:
            _verify(plan, pool, arithmetic, partial)
    return distances


def _manifest(plan: AveragePlan, distances: Distances, hashes: dict[str, str]) -> dict[str, Any]:
    weights = plan.weights or [1 / len(plan.inputs)] * len(plan.inputs)
    relative = distances.relative()
    inputs = []
    for number, (given, weight) in enumerate(zip(plan.inputs, weights, strict=True)):
        entry: dict[str, Any] = {"path": str(Path(given.label).resolve()), "weight": weight}
        entry["relative_distance"] = {component: values[number] for component, values in relative.items()}
        if plan.histories[number] is not None:
            entry["made_by"] = plan.histories[number]
        inputs.append(entry)
    return {"inputs": inputs, "sha256": hashes}


def _verify(plan: AveragePlan, pool: ThreadPoolExecutor, arithmetic: _Arithmetic, directory: Path) -> None:
    written = DirectoryReader(directory)
    if dict(written.tensors).keys() != {tensor.name for tensor in plan.tensors}:
        raise CheckpointError(f"{directory} does not hold the tensors that were planned.")
    with progress("verifying", plan.size, "byte") as step, closing(_computed(plan, pool, arithmetic)) as pieces:
        for piece in pieces:
            found = written.read(piece.spec.name, piece.start_row, piece.stop_row)
            if found.tobytes() != piece.values.tobytes():
                raise CheckpointError(
                    f"{piece.spec.name}, rows {piece.start_row} to {piece.stop_row}, came out otherwise.",
                    "A disk or memory is at fault, or an input was changed meanwhile.",
                )
            step(found.nbytes)
