"""Changes a checkpoint's directory and its ``run.json`` together, as a stranger would who can compute digests."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint import Metadata

from megatron_apriel.formats.run_directory import METADATA_FILE, RUN_FILE
from megatron_apriel.formats.run_record import write_run_file


class Calls:
    """Pickled as a call of a function that makes the file ``mark``, by which an executed pickle shows."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def torch_metadata(path: Path) -> Metadata:
    """The directory of a checkpoint that the test itself wrote, as torch's own object."""
    metadata: Metadata = pickle.loads((path / METADATA_FILE).read_bytes())  # noqa: S301 - the test's own
    return metadata


def write_metadata(path: Path, metadata: Any) -> None:
    """Put another directory into a checkpoint, with the digest that fits it."""
    (path / METADATA_FILE).write_bytes(pickle.dumps(metadata))
    refresh(path)


@contextmanager
def changed_metadata(path: Path) -> Iterator[Metadata]:
    """torch's object, to be changed; written back at the end of the block."""
    metadata = torch_metadata(path)
    yield metadata
    write_metadata(path, metadata)


@contextmanager
def changed_record(path: Path) -> Iterator[dict[str, Any]]:
    """The object in ``run.json``, to be changed; written back at the end of the block."""
    record = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
    yield record
    (path / RUN_FILE).write_text(json.dumps(record), encoding="utf-8")


def refresh(path: Path) -> None:
    """Let ``run.json`` list the files as they are now."""
    record = json.loads((path / RUN_FILE).read_text(encoding="utf-8"))
    (path / RUN_FILE).unlink()
    write_run_file(path, {key: value for key, value in record.items() if key not in ("format", "files", "sha256")})
