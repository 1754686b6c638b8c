"""Depth upscaling: a deeper decoder made of copies of its own layers, as bytes.

No tensor is understood here. A layer's tensors are byte ranges of the source's files; the result consists of the same
ranges in a new order under new layer numbers, some of them more than once. So it takes constant memory at any size,
needs neither torch nor a GPU, and cannot change a number.

Two ways for a copy to start. ``copy``: with its source's weights; the model then computes another function, from
which training recovers. ``identity``: the two matrices that write into the residual stream, attention's output and
the MLP's second, are zero. Such a layer adds exactly 0 to its input, so the deeper model gives the source's logits bit
for bit, and the copy's other weights still get useful starts: the zero matrices receive gradients at once.

The result is planned completely before the first byte is written, and checked against the source's own headers after
the last: by reading the result's headers anew and asking, for each source tensor, whether it is there as often as the
map says.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megatron_apriel.errors import CheckpointError
from megatron_apriel.formats.sidecars import check_sidecars, sha256_of, write_sidecars
from megatron_apriel.formats.tensor_files import CHUNK_BYTES, TensorDirectory, TensorEntry, TensorSpec
from megatron_apriel.outputs import check_space, whole_directory
from megatron_apriel.progress import progress
from megatron_apriel.surgery.lanes import Lane
from megatron_apriel.surgery.layer_maps import LayerMap
from megatron_apriel.surgery.manifest import earlier_manifest, write_manifest
from megatron_apriel.surgery.models import GivenModel
from megatron_apriel.surgery.shards import Shard, plan_shards, write_tensors

Initialisation = Literal["copy", "identity"]


@dataclass(frozen=True)
class Origin:
    """Where a tensor of the result comes from.

    Attributes:
        entry: the source tensor.
        first: whether this is the first place in the result that reads it.
        zero: whether zeros stand in for its bytes.
    """

    entry: TensorEntry
    first: bool
    zero: bool


@dataclass(frozen=True)
class UpscalePlan:
    """All that will be written, known before anything is.

    Attributes:
        source: the model that is made deeper.
        layers: which source layer each layer comes from.
        initialisation: how copies start.
        shards: the files of the result.
        origins: by name of the result's tensors.
    """

    source: GivenModel
    layers: LayerMap
    initialisation: Initialisation
    shards: tuple[Shard, ...]
    origins: dict[str, Origin]

    @property
    def size(self) -> int:
        """Bytes of the result's tensors."""
        return sum(shard.size for shard in self.shards)


def plan_upscale(
    source: GivenModel, layers: LayerMap, initialisation: Initialisation = "copy", max_shard_size: int | None = None
) -> UpscalePlan:
    """Decide every tensor and every file of the result.

    Tensors stay in the order of the source's files, each followed by its copies, so that the source is read once from
    beginning to end.

    Args:
        source: as opened.
        layers: the map; its source layers are those of ``source``.
        initialisation: ``copy`` or ``identity``.
        max_shard_size: bytes per file; None for a single file, which readers of Mistral's form expect.
    """
    check_sidecars(source.tensors.path)
    tensors: list[TensorSpec] = []
    origins: dict[str, Origin] = {}
    places = layers.places
    for entry in source.tensors.entries.values():
        place = source.names.split(entry.name)
        if place is None:
            names, zeroed = [entry.name], False
        else:
            layer, rest = place
            names = [source.names.join(number, rest) for number in places[layer]]
            zeroed = initialisation == "identity" and rest in source.names.residual_outputs
        for position, name in enumerate(names):
            tensors.append(TensorSpec(name, entry.dtype, entry.shape))
            origins[name] = Origin(entry, first=position == 0, zero=zeroed and position > 0)
    shards = plan_shards(tensors, max_shard_size, source.tensors.base)
    return UpscalePlan(source, layers, initialisation, tuple(shards), origins)


def upscale(plan: UpscalePlan, destination: str | Path, *, overwrite: bool = False, verify: bool = False) -> None:
    """Write the planned result; the destination is whole or as it was.

    Args:
        plan: from :func:`plan_upscale`.
        destination: directory to be made.
        overwrite: replace an earlier result there.
        verify: also read the result again and compare every byte with its source before the result is put in place.

    Raises:
        CheckpointError: the source changed meanwhile, or the result is not what was planned.
        OutputError: the destination is refused, or the disk is full.
    """
    source = plan.source
    marker = source.config_file.name
    with whole_directory(destination, overwrite, marker, [source.tensors.path]) as partial:
        check_space(destination, plan.size)
        with progress("upscaling", plan.size, "bytes") as step, Lane("hashing the source") as hashing:
            contents = _SourceBytes(plan, hashing)
            written = write_tensors(partial, plan.shards, contents, base=source.tensors.base, step=step)
        config = source.config_with_layers(len(plan.layers.sources))
        for name in write_sidecars(partial, source.tensors.path, config, marker):
            written[name] = sha256_of(partial / name)
        write_manifest(partial, "upscale", **_manifest(plan, contents.file_hashes(), written))
        check_upscaled(plan, partial)
        if verify:
            verify_upscaled(plan, partial)


class _SourceBytes:
    """Gives each planned tensor its bytes, and hashes the source's files while reading them for the first time.

    The plan keeps the order of the source's files, so that the first reads, one after the other, are whole files.

    Args:
        plan: what is to be written.
        hashing: where the source is hashed.
    """

    def __init__(self, plan: UpscalePlan, hashing: Lane) -> None:
        self._origins = plan.origins
        self._hashing = hashing
        self._digests = {file: hashlib.sha256() for file in plan.source.tensors.files}
        headers: dict[Path, int] = {}
        for entry in plan.source.tensors.entries.values():
            headers[entry.file] = min(entry.offset, headers.get(entry.file, entry.offset))
        for file, length in headers.items():
            with file.open("rb") as stream:
                self._digests[file].update(stream.read(length))

    def __call__(self, tensor: TensorSpec) -> Iterator[memoryview]:
        origin = self._origins[tensor.name]
        if origin.zero:
            yield from _zeros(tensor.size)
            return
        for chunk in origin.entry.chunks():
            piece = memoryview(chunk)
            if origin.first:
                self._hashing.put(self._digests[origin.entry.file].update, piece)
            yield piece

    def file_hashes(self) -> dict[str, str]:
        """SHA-256 by file name; right once every tensor has been read and the lane is empty."""
        return {file.name: digest.hexdigest() for file, digest in self._digests.items()}


def _zeros(size: int) -> Iterator[memoryview]:
    zeros = memoryview(bytes(min(size, CHUNK_BYTES)))
    while size:
        piece = zeros[: min(size, CHUNK_BYTES)]
        yield piece
        size -= len(piece)


def _manifest(plan: UpscalePlan, hashes: dict[str, str], written: dict[str, str]) -> dict[str, Any]:
    path = plan.source.tensors.path
    source: dict[str, Any] = {"path": str(path.resolve()), "layers": plan.source.num_layers, "sha256": hashes}
    if (earlier := earlier_manifest(path)) is not None:
        source["made_by"] = earlier
    return {
        "source": source,
        "map": {"name": plan.layers.name, "source_layers": list(plan.layers.sources)},
        "initialisation": plan.initialisation,
        "sha256": written,
    }


def check_upscaled(plan: UpscalePlan, directory: Path) -> None:
    """Read the result's headers anew and count each source tensor's copies in it.

    Raises CheckpointError if one is missing, too many, or of another dtype or shape, or if the result's config does
    not fit its tensors.
    """
    source, sources = plan.source, plan.layers.sources
    result = TensorDirectory.open(directory, source.tensors.base)
    found, places = Counter[str](), plan.layers.places
    for name, entry in result.entries.items():
        place = source.names.split(name)
        origin = name if place is None else source.names.join(sources[place[0]], place[1])
        expected = source.tensors.entries.get(origin)
        if expected is None or (expected.dtype, expected.shape) != (entry.dtype, entry.shape):
            raise CheckpointError(f"the result's {name} is not the source's {origin}; it was not kept.")
        found[origin] += 1
    for name in source.tensors.entries:
        place = source.names.split(name)
        wanted = 1 if place is None else len(places[place[0]])
        if found[name] != wanted:
            raise CheckpointError(f"the result holds {name} {found[name]} times instead of {wanted}; it was not kept.")
    GivenModel.open(directory)


def verify_upscaled(plan: UpscalePlan, directory: Path) -> None:
    """Read the result again and compare every byte with its source. Raises CheckpointError at the first difference."""
    result = TensorDirectory.open(directory, plan.source.tensors.base)
    with progress("verifying", plan.size, "bytes") as step:
        for name, origin in plan.origins.items():
            written = result.entries[name].chunks()
            wanted = _zeros(origin.entry.size) if origin.zero else origin.entry.chunks()
            wanted_name = "zero" if origin.zero else f"the source's {origin.entry.name}"
            position = 0
            for ours, theirs in zip(written, wanted, strict=True):
                if ours != theirs:
                    raise CheckpointError(
                        f"{name} differs from {wanted_name} near byte {position:,}.",
                        "It was written otherwise: a disk or memory at fault, or the source was changed meanwhile.",
                    )
                position += len(ours)
                step(len(ours))
