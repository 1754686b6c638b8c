"""Putting a finished checkpoint in place: everything flushed to disk, then one rename. No torch."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from megatron_apriel.formats.run_directory import former_of
from megatron_apriel.formats.run_record import write_run_file


def publish(partial: Path, path: Path, record: dict[str, Any]) -> None:
    """Write ``run.json`` with the sizes of all files, flush everything to disk and give it its name."""
    write_run_file(partial, record)
    for entry in [*partial.rglob("*"), partial]:
        flush(entry)
    if path.exists():
        # Saved again at the same step, after a resume: the same state, so that which of the two stays is no matter.
        former = former_of(path)
        path.rename(former)
        partial.rename(path)
        shutil.rmtree(former, ignore_errors=True)
    else:
        partial.rename(path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Wait until a file or directory is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
