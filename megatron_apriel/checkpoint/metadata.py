"""The directory of a distributed checkpoint (``.metadata``), read without trusting it.

torch keeps in ``.metadata`` which tensors there are, in which pieces, and where in which file each piece lies. The file
is a Python pickle, and a pickle may call any function when it is read. Checkpoints are passed from hand to hand, so it
is read here with an unpickler that knows only the dozen plain classes that such a directory is made of, *before*
torch or Megatron open it with the ordinary one.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, TensorStorageMetadata

from megatron_apriel.errors import CheckpointError

METADATA = ".metadata"

_PLAIN_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "Metadata",
        "TensorStorageMetadata",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "TensorProperties",
        "MetadataIndex",
        "StorageMeta",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"PosixPath", "PurePosixPath"},
    "pathlib._local": {"PosixPath", "PurePosixPath"},
    "collections": {"OrderedDict"},
}


class _PlainUnpickler(pickle.Unpickler):
    """Knows the classes of a checkpoint's directory and dtypes, and nothing that does anything."""

    def find_class(self, module: str, name: str) -> Any:
        is_dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_dtype or name in _PLAIN_CLASSES.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def read_metadata(directory: Path) -> Metadata:
    """Read and check ``.metadata`` of a distributed checkpoint.

    Raises:
        CheckpointError: absent, damaged, asking for more than plain data, or pointing outside of the directory or past
            the end of a file.
    """
    file = directory / METADATA
    try:
        with file.open("rb") as stream:
            metadata = _PlainUnpickler(stream).load()
    except FileNotFoundError:
        raise CheckpointError(
            f"{file} does not exist.", "Without it nothing says what is where in the files.", _ANOTHER
        ) from None
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to ask for
        raise CheckpointError(
            f"{file} cannot be read: {error}.", "It must hold plain data, written by torch.distributed.checkpoint."
        ) from None
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, Mapping):
        raise CheckpointError(f"{file} is not the directory of a distributed checkpoint.")
    _check_places(directory, metadata)
    return metadata


_ANOTHER = "Take another checkpoint of the run."


def _check_places(directory: Path, metadata: Metadata) -> None:
    sizes: dict[str, int] = {}
    for index, place in metadata.storage_data.items():
        name = place.relative_path
        if Path(name).name != name:
            raise CheckpointError(f"{directory}: its directory points to {name!r}, which is not a file in it.")
        if name not in sizes:
            path = directory / name
            if not path.is_file():
                raise CheckpointError(f"{path} is missing; {index.fqn} lies in it.", fix=_ANOTHER)
            sizes[name] = path.stat().st_size
        if place.offset < 0 or place.offset + place.length > sizes[name]:
            raise CheckpointError(
                f"{directory / name} has {sizes[name]} bytes; {index.fqn} should lie at {place.offset} to "
                f"{place.offset + place.length}.",
                "The file was cut off.",
                _ANOTHER,
            )
        if getattr(place, "transform_descriptors", None):
            raise CheckpointError(f"{directory / name}: {index.fqn} is compressed, which is not supported.")


def tensors_in(metadata: Metadata) -> dict[str, TensorStorageMetadata]:
    """The tensors of a checkpoint by key, without Megatron's own objects."""
    return {
        key: entry for key, entry in metadata.state_dict_metadata.items() if not isinstance(entry, BytesStorageMetadata)
    }
