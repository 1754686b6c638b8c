"""Whether the numbers in a distributed checkpoint are those that were written.

torch writes every piece of a tensor as a ZIP archive of its own, with a CRC-32 of the numbers, and does not look at it
when it reads. The sizes of files tell of truncation only; a disk or a copy that changed bytes would go unseen.
"""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch.distributed as dist
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from megatron_apriel.checkpoint.agreement import alike
from megatron_apriel.errors import CheckpointError
from megatron_apriel.progress import progress


def changed(path: Path, what: str) -> CheckpointError:
    """That the checkpoint at ``path`` is not what was written: ``what`` is wrong in it."""
    return CheckpointError(
        f"{path} could not be read: {what}.",
        "Its files have the sizes that they were written with: bytes in them have changed, or the disk fails.",
        f"Remove or rename {path} to go on from the checkpoint before it.",
    )


def verify_together(directory: Path, metadata: Metadata) -> None:
    """Read every piece once, each rank its part of them, and compare the checksums; collective.

    Raises:
        CheckpointError: on the rank that found a piece to be damaged, naming it.
        AprielError: on all others then.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    alike(lambda: verify(directory, metadata, rank, ranks))


def verify(directory: Path, metadata: Metadata, share: int = 0, shares: int = 1) -> None:
    """Compare the checksums of every ``shares``-th piece, beginning with number ``share``.

    Raises:
        CheckpointError: a piece is damaged.
    """
    pieces = [
        (index, place)
        for index, place in metadata.storage_data.items()
        if not isinstance(metadata.state_dict_metadata[index.fqn], BytesStorageMetadata)
    ]
    mine = sorted(pieces, key=lambda piece: (piece[1].relative_path, piece[1].offset))[share::shares]
    with progress("checking the checkpoint", sum(place.length for _, place in mine), "bytes") as step:
        for index, place in mine:
            if not _is_whole(directory / place.relative_path, place.offset, place.length):
                raise changed(directory, f"{index.fqn} in {place.relative_path} is damaged")
            step(place.length)


def _is_whole(path: Path, offset: int, length: int) -> bool:
    """Whether the archive at a place of a file has the numbers that its checksums say."""
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(io.BufferedReader(_Piece(file, offset, length), 1 << 20)) as archive:
                return archive.testzip() is None
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError):
            return False


class _Piece(io.RawIOBase):
    """A run of bytes of a file as a file of its own."""

    def __init__(self, file: BinaryIO, offset: int, length: int) -> None:
        super().__init__()
        self._file, self._offset, self._length, self._place = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._length}[whence]
        return self._place

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._offset + self._place)
        read = self._file.readinto(memoryview(buffer)[: max(self._length - self._place, 0)])  # type: ignore[attr-defined]
        self._place += read
        return int(read)
