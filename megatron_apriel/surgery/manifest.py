"""``surgery.json``: how a result of this room was made, with the history of what it was made from.

Each manifest holds those of its inputs, under ``made_by``. Averages of averages would make that deeper and larger than
any reader takes; so of the oldest ones only the place is kept.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megatron_apriel import __version__
from megatron_apriel.formats.json_files import MOST_BYTES, read_json, write_json

MANIFEST = "surgery.json"
"""Written beside the weights of every result of this room."""


_GENERATIONS = 10
"""Of history at most; each lies some three lists and objects deep."""
_LEFT_OUT = f"left out: see {MANIFEST} there"


def write_manifest(directory: Path, operation: str, **fields: Any) -> None:
    """Record what made the directory: operation, version, time, and whatever ``fields`` say."""
    made_by = {"version": __version__, "created": datetime.now(UTC).isoformat(timespec="seconds")}
    manifest = {"operation": operation, **made_by, **fields}
    for generations in range(_GENERATIONS, -1, -1):
        write_json(directory / MANIFEST, _with_history(manifest, generations))
        if (directory / MANIFEST).stat().st_size <= MOST_BYTES // 2:
            return


def _with_history(value: Any, generations: int) -> Any:
    """A part of a manifest with so many generations of the manifests in it."""
    if isinstance(value, list):
        return [_with_history(part, generations) for part in value]
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, part in value.items():
        is_history = key == "made_by"
        kept[key] = _LEFT_OUT if is_history and not generations else _with_history(part, generations - is_history)
    return kept


def earlier_manifest(directory: Path) -> Any:
    """The manifest of an input that was itself made here, or None: so that a result keeps its history.

    Raises CheckpointError for one that cannot be read.
    """
    file = directory / MANIFEST
    # A distance from a mean of zeros is infinite.
    return read_json(file, finite=False) if os.path.lexists(file) else None
