"""What lies beside the weights: tokenizer and processor files, the config, and a manifest of how a result was made."""

from __future__ import annotations

import hashlib
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from megatron_apriel import __version__
from megatron_apriel.errors import CheckpointError
from megatron_apriel.inputs import open_input

MANIFEST = "surgery.json"
"""Written beside the weights of every result of this room."""

SIDECARS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tekken.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "SYSTEM_PROMPT.txt",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
)
"""Copied where present, never demanded. Sentencepiece models (``tokenizer.model*``) and further templates come too."""


def sidecar_files(source: Path) -> list[Path]:
    """The tokenizer, processor and template files that ``source`` has.

    Raises:
        CheckpointError: one is a link to nothing, as in a cache that was not downloaded whole.
    """
    files = [source / name for name in SIDECARS]
    files += sorted(source.glob("tokenizer.model*"))
    files += sorted(source.glob("additional_chat_templates/*.jinja"))
    for file in files:
        if file.is_symlink() and not file.exists():
            raise CheckpointError(
                f"{file} is a link to {file.readlink()}, which is not there.",
                "The result would lack it.",
                "Download the checkpoint again, or remove the link if the file is not needed.",
            )
    return [file for file in files if file.is_file()]


def copy_sidecars(source: Path, destination: Path) -> list[str]:
    """Copy the files of :func:`sidecar_files`; returns their names."""
    copied = []
    for file in sidecar_files(source):
        target = destination / file.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(file, target)
        copied.append(str(file.relative_to(source)))
    return copied


def write_json(file: Path, value: Any) -> None:
    """Write an object as people read it: indented, in its own order, letters as they are."""
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_manifest(directory: Path, operation: str, **fields: Any) -> None:
    """Record what made the directory: operation, version, time, and whatever ``fields`` say."""
    made_by = {"version": __version__, "created": datetime.now(UTC).isoformat(timespec="seconds")}
    write_json(directory / MANIFEST, {"operation": operation, **made_by, **fields})


def earlier_manifest(directory: Path) -> Any:
    """The manifest of an input that was itself made here, or None: so that a result keeps its whole history."""
    file = directory / MANIFEST
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError):
        return None


def sha256_of(file: Path) -> str:
    """SHA-256 of a file, in constant memory."""
    with open_input(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
