"""Weights on disk, of any kind, read slice by slice under one set of names.

A :class:`WeightSource` answers for a weight's dtype and reads a rectangle of it. Whatever the files call the weight and
in whatever order they keep its rows, it is asked for by its legacy Hugging Face name and comes back in Hugging Face's
order. Opening one accounts for every tensor in the files and every weight of the architecture: nothing can be missing,
left over, of another shape or of a dtype that needs decoding, without an error that names it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from megatron_apriel.architecture import Architecture
from megatron_apriel.checkpoint.forms import INDEX, Kind, recognise
from megatron_apriel.checkpoint.names import Resolution, Weight, resolve, weights
from megatron_apriel.errors import CheckpointError

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Dtypes of weights that are read, as safetensors calls them; others hold quantised numbers."""


class WeightSource(Protocol):
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


def open_source(path: str | Path, architecture: Architecture) -> WeightSource:
    """Open the checkpoint at ``path``, of whatever kind, as weights of ``architecture``.

    Raises:
        CheckpointError: missing, left over, damaged or misshapen tensors, by name.
    """
    path = Path(path)
    kind = recognise(path)
    if kind is Kind.MEGATRON:
        from megatron_apriel.checkpoint.reader import DistributedWeights

        return DistributedWeights(path, architecture)
    return SafetensorsWeights(path, architecture, weight_files(path, kind))


def weight_files(path: Path, kind: Kind) -> list[Path]:
    """The safetensors files of a checkpoint. Raises CheckpointError if there are none or an index names absent ones."""
    if kind is Kind.MISTRAL:
        return sorted(path.glob("consolidated*.safetensors"))
    index, single = path / INDEX, path / "model.safetensors"
    if not index.exists():
        if single.exists():
            return [single]
        pickled = sorted(file.name for file in path.glob("*.bin"))
        raise CheckpointError(
            f"{path} has neither {single.name} nor {index.name}"
            + (f", only {', '.join(pickled[:3])}." if pickled else "."),
            "Weights are read from safetensors only: a pickle can run anybody's code." if pickled else "",
            "Save the model again with transformers' save_pretrained(safe_serialization=True)." if pickled else "",
        )
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is damaged: {error!r}.", "It must map tensor names to file names.") from None
    if bad := [name for name in names if not isinstance(name, str) or Path(name).name != name]:
        raise CheckpointError(f"{index} names {bad[0]!r}, which is not a file beside it.")
    if absent := [name for name in names if not (path / name).is_file()]:
        raise CheckpointError(
            f"{path}: {len(absent)} of the {len(names)} files that {index.name} names are missing: {listed(absent)}.",
            fix="Copy or download the directory again, whole.",
        )
    return [path / name for name in names]


def listed(names: Iterable[str], most: int = 5) -> str:
    """The first few of ``names``, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


class SafetensorsWeights:
    """A Hugging Face directory, or Mistral's own form, through memory-mapped safetensors files."""

    def __init__(self, path: Path, architecture: Architecture, files: list[Path]) -> None:
        self._files = [_opened(file) for file in files]
        self._place: dict[str, tuple[Any, str]] = {}
        for handle, file in zip(self._files, files, strict=True):
            for stored in handle.keys():  # noqa: SIM118 - a handle is not iterable
                if stored in self._place:
                    raise CheckpointError(f"{path}: tensor {stored} is in two files, {file.name} and another.")
                self._place[stored] = (handle, file.name)
        _check_index(path, self._place)
        resolution = resolve(self._place, architecture, str(path))
        check_complete(resolution, path)
        self.description = f"{len(files)} safetensors file{'s' if len(files) > 1 else ''}, {resolution.form}"
        self.table = weights(architecture)
        self.skipped = resolution.skipped + resolution.buffers
        self.bytes_read = 0
        self._stored = resolution.stored
        self._permuted = resolution.form is resolution.form.MISTRAL
        self.dtypes = {name: self._checked_dtype(weight, path) for name, weight in self.table.items()}

    def read(self, name: str, start: int, stop: int, columns: tuple[int, int] | None = None) -> Tensor:
        head = self.table[name].interleaved_head if self._permuted else 0
        if not head:
            return self._rectangle(name, start, stop, columns)
        # Rows change places inside a head only: read whole heads, put them in order, cut.
        first = start - start % head
        rows = self._rectangle(name, first, stop + -stop % head, columns)
        ordered = rows.view(-1, head // 2, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)
        return ordered[start - first : stop - first]

    def _rectangle(self, name: str, start: int, stop: int, columns: tuple[int, int] | None) -> Tensor:
        stored = self._stored[name]
        handle, file = self._place[stored]
        try:
            view = handle.get_slice(stored)
            rows: Tensor = view[start:stop] if columns is None else view[start:stop, columns[0] : columns[1]]
        except (SafetensorError, OSError, RuntimeError) as error:
            raise CheckpointError(f"{file}: cannot read {stored}: {error}.") from error
        self.bytes_read += rows.numel() * rows.element_size()
        return rows.reshape(rows.shape[0], -1) if rows.dim() > 2 else rows

    def _checked_dtype(self, weight: Weight, path: Path) -> torch.dtype:
        stored = self._stored[weight.name]
        handle, file = self._place[stored]
        view = handle.get_slice(stored)
        shape, dtype = tuple(view.get_shape()), view.get_dtype()
        if shape != weight.shape:
            raise CheckpointError(
                f"{path / file}: {stored} has shape {list(shape)}, the architecture says {list(weight.shape)}.",
                "Configuration and weights are not of the same model.",
            )
        if dtype not in DTYPES:
            raise CheckpointError(
                f"{path / file}: {stored} is stored as {dtype}.",
                "Quantised weights cannot be trained further.",
                f"Give a checkpoint in one of {', '.join(DTYPES)}.",
            )
        return DTYPES[dtype]


def check_complete(resolution: Resolution, path: Path) -> None:
    """Raise CheckpointError, by name, if a weight is missing or a tensor is left over."""
    problems = []
    if resolution.missing:
        problems.append(f"{len(resolution.missing)} missing ({listed(resolution.missing)})")
    if resolution.unexpected:
        problems.append(f"{len(resolution.unexpected)} left over ({listed(resolution.unexpected)})")
    if problems:
        raise CheckpointError(
            f"{path}: its tensors are not those of the architecture: {'; '.join(problems)}.",
            f"The names are spelled as {resolution.form}; {len(resolution.stored)} agree.",
            "Give the directory's own config.json and a whole set of files.",
        )


def _opened(file: Path) -> Any:
    try:
        return safe_open(str(file), framework="pt", device="cpu").__enter__()
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} is not a whole safetensors file: {error}.",
            f"It has {file.stat().st_size if file.exists() else 0} bytes; a copy or download may have been cut off.",
            "Copy or download it again.",
        ) from None


def _check_index(path: Path, place: Mapping[str, tuple[Any, str]]) -> None:
    index = path / INDEX
    if not index.exists() or not any(file.startswith("model") for _, file in place.values()):
        return
    mapped = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    wrong = [name for name, file in mapped.items() if name not in place or place[name][1] != file]
    if wrong or len(mapped) != len(place):
        wrong += [name for name in place if name not in mapped]
        raise CheckpointError(
            f"{index} and the headers of its files disagree on {len(wrong)} tensors: {listed(wrong)}.",
            fix="Copy or download the directory again, whole.",
        )
