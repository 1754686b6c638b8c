"""Shards: which tensor goes into which file, and writing the files while their bytes come in.

Tensors are written one after the other, in the planned order, from wherever their bytes come: another file, arithmetic,
a GPU. Hashing and writing to disk (``direct_file.py``) go on in lanes (``lanes.py``) beside that, so that the whole
takes hardly longer than the slowest of them.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_apriel.errors import CheckpointError
from megatron_apriel.formats.tensor_files import Base, TensorSpec
from megatron_apriel.surgery.direct_file import direct_file
from megatron_apriel.surgery.lanes import Crew, Lane, hashing_crew

_SHARD_NAME = "{base}-{number:05}-of-{count:05}.safetensors"


@dataclass(frozen=True)
class Shard:
    """One file to be written, and what goes into it, in order."""

    file_name: str
    tensors: tuple[TensorSpec, ...]

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.size for tensor in self.tensors)


def plan_shards(tensors: Iterable[TensorSpec], max_shard_size: int | None, base: Base = "model") -> list[Shard]:
    """Fill files in the given order, each up to ``max_shard_size`` bytes (None: one file).

    A tensor larger than that gets a file of its own. Raises CheckpointError if a name is there twice, or there are no
    tensors.
    """
    groups: list[list[TensorSpec]] = []
    filled, names = 0, set[str]()
    for tensor in tensors:
        if tensor.name in names:
            raise CheckpointError(f"{tensor.name} would be written twice.")
        names.add(tensor.name)
        if not groups or (max_shard_size is not None and filled and filled + tensor.size > max_shard_size):
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.size
    if not groups:
        raise CheckpointError("there are no tensors to write.")
    if len(groups) == 1:
        return [Shard(f"{base}.safetensors", tuple(groups[0]))]
    return [
        Shard(_SHARD_NAME.format(base=base, number=number, count=len(groups)), tuple(group))
        for number, group in enumerate(groups, start=1)
    ]


Room = Callable[[int], memoryview]
"""Memory for the next piece, where it will be written from: up to so many bytes, often fewer."""
Contents = Callable[[TensorSpec, Room], Iterable[bytes | bytearray | memoryview]]
"""Gives a tensor's bytes, row-major and little-endian, in pieces of any size.

A piece that was put into the room is given before room is asked for again. One that lies elsewhere is copied.
"""


def write_tensors(
    directory: Path,
    shards: Sequence[Shard],
    contents: Contents,
    *,
    base: Base = "model",
    step: Callable[[int], None] | None = None,
    crew: Crew | None = None,
) -> dict[str, str]:
    """Write the planned files, and their index if there are several, tensor by tensor in the planned order.

    Args:
        directory: where; must exist, usually the partial directory of ``outputs.whole_directory``.
        shards: from :func:`plan_shards`.
        contents: called once per tensor, in order.
        base: as given to :func:`plan_shards`.
        step: called with the number of bytes that were given; a few of them may wait to be written.
        crew: who hashes; given where ``contents`` has lanes of the same crew.

    Returns:
        SHA-256 of each file, by name (the index included).

    Raises:
        CheckpointError: if ``contents`` gives more or fewer bytes than the tensor has.
        OSError: if the disk is full; ``whole_directory`` explains it.
    """
    hashes = {}
    with ExitStack() as own:
        hashing = own.enter_context(hashing_crew()) if crew is None else crew
        for shard in shards:
            hashes[shard.file_name] = _write_file(directory / shard.file_name, shard, contents, step, hashing)
    if len(shards) > 1:
        weight_map = {tensor.name: shard.file_name for shard in shards for tensor in shard.tensors}
        index = {"metadata": {"total_size": sum(shard.size for shard in shards)}, "weight_map": weight_map}
        text = json.dumps(index, indent=2, ensure_ascii=False) + "\n"
        (directory / f"{base}.safetensors.index.json").write_text(text, encoding="utf-8")
        hashes[f"{base}.safetensors.index.json"] = hashlib.sha256(text.encode()).hexdigest()
    return hashes


def _header(tensors: Sequence[TensorSpec]) -> bytes:
    # "format" says that the tensors follow torch's conventions; transformers refuses files without it.
    fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        offsets = [position, position + tensor.size]
        fields[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": offsets}
        position += tensor.size
    text = json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data are aligned for every dtype
    return struct.pack("<Q", len(text)) + text


def _write_file(file: Path, shard: Shard, contents: Contents, step: Callable[[int], None] | None, crew: Crew) -> str:
    digest, header = hashlib.sha256(), _header(shard.tensors)
    with direct_file(file, len(header) + shard.size) as result, Lane(crew) as hashing:

        def put(piece: bytes | bytearray | memoryview) -> int:
            view = memoryview(piece)
            if not view.nbytes:
                return 0  # a view with a zero in its shape cannot be cast
            view = view.cast("B")
            count = len(view)
            while len(view):
                taken = result.write(view)
                hashing.put(digest.update, taken)
                view = view[len(taken) :]
            return count

        put(header)
        for tensor in shard.tensors:
            given = 0
            for piece in contents(tensor, result.room):
                count = put(piece)
                given += count
                if step is not None:
                    step(count)
            if given != tensor.size:
                raise CheckpointError(
                    f"{tensor.name}: {given:,} bytes were given for {tensor.dtype} {list(tensor.shape)}, "
                    f"which takes {tensor.size:,}."
                )
    return digest.hexdigest()
