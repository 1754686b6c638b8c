"""What lies beside the weights: tokenizer, processor and template files."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from pathlib import Path

from megatron_apriel.errors import CheckpointError, printable
from megatron_apriel.inputs import open_input
from megatron_apriel.terminal import note

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


MOST_SIDECAR_BYTES = 2**30
"""Of one such file; a tokenizer has some tens of MB."""


def sidecar_files(source: Path) -> list[Path]:
    """The tokenizer, processor and template files that ``source`` has.

    Raises:
        CheckpointError: one is a link to nothing, as in a cache that was not downloaded whole, a pipe or a device, or
            larger than any such file.
    """
    files = [source / name for name in SIDECARS]
    files += sorted(source.glob("tokenizer.model*"))
    files += sorted(source.glob("additional_chat_templates/*.jinja"))
    found = []
    for file in files:
        if file.is_symlink() and not file.exists():
            raise CheckpointError(
                f"{printable(file)} is a link to {printable(file.readlink())}, which is not there.",
                "The result would lack it.",
                "Download the checkpoint again, or remove the link if the file is not needed.",
            )
        if not file.exists() or file.is_dir():
            continue
        try:
            with open_input(file) as stream:
                size = os.fstat(stream.fileno()).st_size
        except OSError as error:
            raise CheckpointError(f"{printable(file)} cannot be read: {error.strerror}.") from None
        if size > MOST_SIDECAR_BYTES:
            raise CheckpointError(
                f"{printable(file)} has {size:,} bytes.",
                f"Files beside the weights have at most {MOST_SIDECAR_BYTES:,}.",
                "Remove it if the model does not need it.",
            )
        found.append(file)
    return found


def copy_sidecars(source: Path, destination: Path) -> list[str]:
    """Copy the files of :func:`sidecar_files`; returns their names. Names links out of ``source`` on standard error."""
    copied = []
    for file in sidecar_files(source):
        target = destination / file.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        with open_input(file) as stream, target.open("wb") as copy:
            shutil.copyfileobj(stream, copy)
        copied.append(str(file.relative_to(source)))
    name_links(source)
    return copied


@functools.cache
def name_links(source: Path) -> None:
    """Say once that files of a model are links to somewhere else: what lies there goes into a result.

    A download cache lays out whole models that way, so one line is for all of them.
    """
    inside = source.resolve()
    files = [*sidecar_files(source), *(source / name for name in ("config.json", "params.json"))]
    files += sorted(source.glob("*.safetensors"))
    outside = [file for file in files if not file.resolve().is_relative_to(inside)]
    if outside:
        first = f"{outside[0].relative_to(source)} -> {outside[0].resolve()}"
        lead = "1 file is a link that leads" if len(outside) == 1 else f"{len(outside):,} files are links that lead"
        note(f"note: {lead} out of {source}, and the contents were copied: {first}{' and others' * (len(outside) > 1)}")


def sha256_of(file: Path) -> str:
    """SHA-256 of a file, in constant memory."""
    with open_input(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
