"""``run.json`` and ``hf/``: what lies in a distributed checkpoint beside the shards. No torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_apriel.checkpoint.forms import CONFIG, RUN_FILE, SIDECAR_DIRECTORY
from megatron_apriel.errors import CheckpointError
from megatron_apriel.surgery.sidecars import copy_sidecars, sha256_of, write_json

FORMAT = 1
SHARD_SUFFIX = ".distcp"
"""Of the files with weights and optimizer state, as torch names them."""


def write_sidecars(checkpoint: Path, config: dict[str, object], source: Path) -> None:
    """Put ``config`` and the tokenizer and processor files of ``source`` into a distributed checkpoint."""
    directory = checkpoint / SIDECAR_DIRECTORY
    directory.mkdir()
    write_json(directory / CONFIG, config)
    copy_sidecars(source, directory)


def write_run_file(checkpoint: Path, record: dict[str, Any]) -> None:
    """Write ``run.json``, the last file to be written: ``record``, plain, and the size of every file that is there.

    Of all but the shards, whose pieces have checksums of their own, the SHA-256 too.
    """
    files = {str(file.relative_to(checkpoint)): file for file in sorted(checkpoint.rglob("*")) if file.is_file()}
    sizes = {name: file.stat().st_size for name, file in files.items()}
    digests = {name: sha256_of(file) for name, file in files.items() if not name.endswith(SHARD_SUFFIX)}
    write_json(checkpoint / RUN_FILE, {"format": FORMAT, **record, "files": sizes, "sha256": digests})


def read_run_file(path: Path) -> dict[str, Any]:
    """``run.json`` of a checkpoint whose files all have the sizes and the digests that it records.

    Raises:
        CheckpointError: naming the file that is missing, changed, damaged or of another size.
    """
    file = path / RUN_FILE
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        known, sizes = record["format"], {str(name): int(size) for name, size in record["files"].items()}
        digests = {str(name): str(digest) for name, digest in record.get("sha256", {}).items()}
        if unlisted := digests.keys() - sizes.keys():
            raise ValueError(f"digests of files that it does not list: {sorted(unlisted)}")
    except FileNotFoundError:
        raise CheckpointError(
            f"{file} does not exist." if path.is_dir() else f"{path} does not exist.",
            "A run's checkpoint has one; it is written last.",
        ) from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{file} is damaged: {error!r}.") from None
    if known != FORMAT:
        raise CheckpointError(f"{file} is of format {known!r}; this version of the project reads {FORMAT}.")
    for name, size in sizes.items():
        found = (path / name).stat().st_size if (path / name).is_file() else None
        if found != size:
            state = "is missing" if found is None else f"has {found:,} bytes"
            raise CheckpointError(f"{path / name} {state}; {size:,} were written.", "The checkpoint is damaged.")
    for name, digest in digests.items():
        if sha256_of(path / name) != digest:
            raise CheckpointError(f"{path / name} was changed after it was written.", "Its SHA-256 is another.")
    return record
