"""What the tests of checkpoints that a stranger wrote share: names, and changes to a directory of pieces."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    Metadata,
    MetadataIndex,
)

from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.testing.changed_checkpoints import (
    changed_metadata,
)

TINY = Architecture.from_preset("tiny")
WEIGHT = "decoder.layers.1.mlp.linear_fc2.weight"
SHARD = "__0_0.distcp"


def entry(metadata: Metadata, key: str = WEIGHT) -> Any:
    return metadata.state_dict_metadata[key]


def place(metadata: Metadata, key: str = WEIGHT) -> Any:
    return next(place for index, place in metadata.storage_data.items() if index.fqn == key)


def index_of(metadata: Metadata, key: str = WEIGHT) -> MetadataIndex:
    return next(index for index in metadata.storage_data if index.fqn == key)


def rewrite(path: Path, key: str, data: bytes) -> None:
    """Put other bytes under ``key``, at the file's end."""
    with changed_metadata(path) as metadata:
        info = place(metadata, key)
        with (path / SHARD).open("ab") as file:
            info.offset, info.length = file.tell(), len(data)
            file.write(data)


def saved(value: Any) -> bytes:
    data = io.BytesIO()
    torch.save(value, data)
    return data.getvalue()
