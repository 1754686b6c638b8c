"""Whether the numbers in a distributed checkpoint are those that were written.

torch writes every piece of a tensor as a ZIP archive of its own, with a CRC-32 of the numbers, and does not look at it
when it reads. The sizes of files show truncation only; a disk or a copy that changed bytes would go unseen.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Container
from pathlib import Path

import torch.distributed as dist

from megatron_apriel.checkpoint.file_window import Window
from megatron_apriel.checkpoint.metadata import Contents, Extent
from megatron_apriel.errors import CheckpointError
from megatron_apriel.inputs import open_input
from megatron_apriel.parallel.agreement import alike
from megatron_apriel.progress import progress


def changed(path: Path, what: str, fix: str | None = None) -> CheckpointError:
    """That the checkpoint at ``path`` is not what was written: ``what`` is wrong in it.

    Without a ``fix`` the advice is for the run that would resume from it.
    """
    return CheckpointError(
        f"{path} could not be read: {what}.",
        "Its files have the sizes that they were written with: bytes in them have changed, or the disk fails.",
        fix or f"Remove or rename {path} to resume from the checkpoint before it.",
    )


def verify_together(directory: Path, contents: Contents) -> None:
    """Read every piece once, each rank its part of them, and compare the checksums; collective.

    Raises:
        CheckpointError: on the rank that found a piece to be damaged, naming it.
        AprielError: on all others then.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    alike(lambda: verify(directory, contents, rank, ranks))


def verify(
    directory: Path, contents: Contents, share: int = 0, shares: int = 1, keys: Container[str] | None = None
) -> None:
    """Compare the checksums of every ``shares``-th piece, beginning with number ``share``.

    Args:
        directory, contents: the checkpoint and what is where in it.
        share, shares: which of how many parts of the work is done.
        keys: of the tensors to look at; None for all that there are.

    Raises:
        CheckpointError: a piece is damaged.
    """
    pieces = [
        (piece.extent, key)
        for key, tensor in contents.tensors.items()
        if keys is None or key in keys
        for piece in tensor.pieces
    ]
    mine = sorted(pieces, key=lambda piece: (piece[0].file, piece[0].offset))[share::shares]
    with progress("checking the checkpoint", sum(place.length for place, _ in mine), "byte") as step:
        for place, key in mine:
            if damage := _damage(directory, place):
                what = f"{key} in {place.file} is damaged ({damage})"
                raise changed(directory, what, None if keys is None else "Take another checkpoint of the run.")
            step(place.length)


def _damage(directory: Path, place: Extent) -> str | None:
    """What is wrong with the archive at a place of a file; None if its numbers are those that its checksums say."""
    try:
        with (
            open_input(directory / place.file) as file,
            zipfile.ZipFile(io.BufferedReader(Window(file, place.offset, place.length), 1 << 20)) as archive,
        ):
            members = archive.infolist()
            if min(member.header_offset for member in members):
                return "the archive does not begin there"  # ZIP is read from its end, and may be another piece
            # Compressed or named several times, a few bytes could be read for hours.
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                return "a member is compressed, which torch does not do"
            if sum(member.file_size for member in members) > place.length:
                return "its members are longer than the archive"
            damaged = archive.testzip()
    except Exception as error:  # a damaged archive raises whatever its bytes happen to ask for; a bad disk OSError
        return f"{type(error).__name__}: {error}"
    return None if damaged is None else f"{damaged} does not fit its checksum"
