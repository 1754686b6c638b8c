"""``surgery.json``: how a result of this room was made, with the history of what it was made from."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megatron_apriel import __version__
from megatron_apriel.formats.json_files import read_json, write_json

MANIFEST = "surgery.json"
"""Written beside the weights of every result of this room."""


def write_manifest(directory: Path, operation: str, **fields: Any) -> None:
    """Record what made the directory: operation, version, time, and whatever ``fields`` say."""
    made_by = {"version": __version__, "created": datetime.now(UTC).isoformat(timespec="seconds")}
    write_json(directory / MANIFEST, {"operation": operation, **made_by, **fields})


def earlier_manifest(directory: Path) -> Any:
    """The manifest of an input that was itself made here, or None: so that a result keeps its whole history.

    Raises CheckpointError for one that cannot be read.
    """
    file = directory / MANIFEST
    # A distance from a mean of zeros is infinite.
    return read_json(file, finite=False) if os.path.lexists(file) else None
