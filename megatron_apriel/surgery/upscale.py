"""Depth upscaling: a deeper decoder made of copies of its own layers, as bytes.

No tensor is understood here. A layer's tensors are byte ranges of the given model's files; the result consists of the
same ranges in a new order under new layer numbers, some of them more than once. So it takes constant memory at any
size, needs neither torch nor a GPU, and cannot change a number.

Two ways for a copy to start. ``copy``: with its original's weights; the model then computes another function, from
which training recovers. ``identity``: the two matrices that write into the residual stream, attention's output and
the MLP's second, are zero. Such a layer adds exactly 0 to its input, so the deeper model gives the given one's logits
bit for bit, and the copy's other weights still get useful starts: the zero matrices receive gradients at once.

The result is planned completely before the first byte is written, and checked against the given model's own headers
after the last: by reading the result's headers anew and asking, for each given tensor, whether it is there as often as
the map says.
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
from megatron_apriel.formats.tensor_files import PIECE_BYTES, TensorDirectory, TensorEntry, TensorSpec
from megatron_apriel.outputs import check_space, whole_directory
from megatron_apriel.progress import progress
from megatron_apriel.surgery.lanes import Lane, hashing_crew
from megatron_apriel.surgery.layer_maps import LayerMap
from megatron_apriel.surgery.manifest import earlier_manifest, write_manifest
from megatron_apriel.surgery.models import GivenModel
from megatron_apriel.surgery.shards import Room, Shard, plan_shards, write_tensors

Initialisation = Literal["copy", "identity"]


@dataclass(frozen=True)
class Origin:
    """Where a tensor of the result comes from.

    Attributes:
        entry: the given tensor.
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
        model: the one that is made deeper.
        layers: which of its layers each layer is made of.
        initialisation: how copies start.
        shards: the files of the result.
        origins: by name of the result's tensors.
        history: what made the model, where that was done here.
    """

    model: GivenModel
    layers: LayerMap
    initialisation: Initialisation
    shards: tuple[Shard, ...]
    origins: dict[str, Origin]
    history: Any

    @property
    def size(self) -> int:
        """Bytes of the result's tensors."""
        return sum(shard.size for shard in self.shards)


def plan_upscale(
    model: GivenModel, layers: LayerMap, initialisation: Initialisation = "copy", max_shard_size: int | None = None
) -> UpscalePlan:
    """Decide every tensor and every file of the result.

    Tensors stay in the order of the given files, each followed by its copies, so that these are read once from
    beginning to end.

    Args:
        model: as opened.
        layers: the map, from the layers of ``model``.
        initialisation: ``copy`` or ``identity``.
        max_shard_size: bytes per file; None for a single file, which readers of Mistral's form expect.
    """
    check_sidecars(model.tensors.path)
    tensors: list[TensorSpec] = []
    origins: dict[str, Origin] = {}
    places = layers.places
    for entry in model.tensors.entries.values():
        place = model.names.split(entry.name)
        if place is None:
            names, zeroed = [entry.name], False
        else:
            layer, rest = place
            names = [model.names.join(number, rest) for number in places[layer]]
            zeroed = initialisation == "identity" and rest in model.names.residual_outputs
        for position, name in enumerate(names):
            tensors.append(TensorSpec(name, entry.dtype, entry.shape))
            origins[name] = Origin(entry, first=position == 0, zero=zeroed and position > 0)
    shards = plan_shards(tensors, max_shard_size, model.tensors.base)
    history = earlier_manifest(model.tensors.path)
    return UpscalePlan(model, layers, initialisation, tuple(shards), origins, history)


def upscale(
    plan: UpscalePlan,
    destination: str | Path,
    *,
    overwrite: bool = False,
    verify: bool = False,
    correct_words: bool = False,
) -> None:
    """Write the planned result; the destination is whole or as it was.

    Args:
        plan: from :func:`plan_upscale`.
        destination: directory to be made.
        overwrite: replace an earlier result there.
        verify: also read the result again and compare every byte with its original before the result is put in place.
        correct_words: write a tokenizer with a faulty word pattern with the right one.

    Raises:
        CheckpointError: the given model changed meanwhile, or the result is not what was planned.
        OutputError: the destination is refused, or the disk is full.
    """
    model = plan.model
    marker = model.config_file.name
    with whole_directory(destination, overwrite, marker, [model.tensors.path]) as partial:
        check_space(destination, plan.size)
        with progress("upscaling", plan.size, "byte") as step, hashing_crew() as crew, Lane(crew) as hashing:
            contents = _ReadBytes(plan, hashing)
            written = write_tensors(partial, plan.shards, contents, base=model.tensors.base, step=step, crew=crew)
        config = model.config_with_layers(len(plan.layers.originals))
        for name in write_sidecars(partial, model.tensors.path, config, marker, correct_words):
            written[name] = sha256_of(partial / name)
        write_manifest(partial, "upscale", **_manifest(plan, contents.file_hashes(), written))
        check_upscaled(plan, partial)
        if verify:
            verify_upscaled(plan, partial)


class _ReadBytes:
    """Gives each planned tensor its bytes, and hashes the given files while reading them for the first time.

    The plan keeps the order of the given files, so that the first reads, one after the other, are whole files.

    Args:
        plan: what is to be written.
        hashing: where what is read is hashed.
    """

    def __init__(self, plan: UpscalePlan, hashing: Lane) -> None:
        self._origins = plan.origins
        self._hashing = hashing
        first: dict[Path, TensorEntry] = {}
        for entry in plan.model.tensors.entries.values():
            first.setdefault(entry.file, entry)
        self._digests = {file: hashlib.sha256(entry.preceding()) for file, entry in first.items()}

    def __call__(self, tensor: TensorSpec, room: Room) -> Iterator[memoryview]:
        origin = self._origins[tensor.name]
        if origin.zero:
            yield from _zeros(tensor.size)
            return
        for piece in origin.entry.pieces(memory=room):
            if origin.first:
                self._hashing.put(self._digests[origin.entry.file].update, piece)
            yield piece

    def file_hashes(self) -> dict[str, str]:
        """SHA-256 by file name; right once every tensor has been read and the lane is empty."""
        return {file.name: digest.hexdigest() for file, digest in self._digests.items()}


def _zeros(size: int) -> Iterator[memoryview]:
    zeros = memoryview(bytes(min(size, PIECE_BYTES)))
    while size:
        piece = zeros[: min(size, PIECE_BYTES)]
        yield piece
        size -= len(piece)


def _manifest(plan: UpscalePlan, hashes: dict[str, str], written: dict[str, str]) -> dict[str, Any]:
    path = plan.model.tensors.path
    model: dict[str, Any] = {"path": str(path.resolve()), "layers": plan.model.num_layers, "sha256": hashes}
    if plan.history is not None:
        model["made_by"] = plan.history
    return {
        "source": model,
        "map": {"name": plan.layers.name, "source_layers": list(plan.layers.originals)},
        "initialisation": plan.initialisation,
        "sha256": written,
    }


def check_upscaled(plan: UpscalePlan, directory: Path) -> None:
    """Read the result's headers anew and count each given tensor's copies in it.

    Raises CheckpointError if one is missing, too many, or of another dtype or shape, or if the result's config does
    not fit its tensors.
    """
    model, originals = plan.model, plan.layers.originals
    result = TensorDirectory.open(directory, model.tensors.base)
    found, places = Counter[str](), plan.layers.places
    for name, entry in result.entries.items():
        place = model.names.split(name)
        origin = name if place is None else model.names.join(originals[place[0]], place[1])
        expected = model.tensors.entries.get(origin)
        if expected is None or (expected.dtype, expected.shape) != (entry.dtype, entry.shape):
            raise CheckpointError(f"the result's {name} is not the model's {origin}; it was not kept.")
        found[origin] += 1
    for name in model.tensors.entries:
        place = model.names.split(name)
        wanted = 1 if place is None else len(places[place[0]])
        if found[name] != wanted:
            raise CheckpointError(f"the result holds {name} {found[name]} times instead of {wanted}; it was not kept.")
    GivenModel.of(result)


def verify_upscaled(plan: UpscalePlan, directory: Path) -> None:
    """Read the result again and compare every byte with its original; CheckpointError at the first difference."""
    result = TensorDirectory.open(directory, plan.model.tensors.base)
    with progress("verifying", plan.size, "byte") as step:
        for name, origin in plan.origins.items():
            written = result.entries[name].pieces()
            wanted = _zeros(origin.entry.size) if origin.zero else origin.entry.pieces()
            wanted_name = "zero" if origin.zero else f"the model's {origin.entry.name}"
            position = 0
            for ours, theirs in zip(written, wanted, strict=True):
                if ours != theirs:
                    raise CheckpointError(
                        f"{name} differs from {wanted_name} near byte {position:,}.",
                        "It was written otherwise: a disk or memory at fault, or the model was changed meanwhile.",
                    )
                position += len(ours)
                step(len(ours))
