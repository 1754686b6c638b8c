"""What lies beside the weights: which files belong to a model, checked and copied.

The config, which says what the weights mean, is written anew by whoever writes weights. Tokenizer, processor, template
and licence files are copied as they are, byte for byte.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_apriel.errors import CheckpointError, printable
from megatron_apriel.formats.json_files import read_json, write_json
from megatron_apriel.formats.word_pattern import correct_directory
from megatron_apriel.inputs import open_input, read_input
from megatron_apriel.outputs import followed
from megatron_apriel.terminal import note

CONFIG, PARAMS = "config.json", "params.json"
"""What a model is, in the Hugging Face form and in Mistral's."""

GENERATION = "generation_config.json"

SIDECARS = (
    GENERATION,
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
)
"""Copied where present, never demanded."""
FURTHER_TEMPLATES = "additional_chat_templates"
"""Folder of chat templates with names: ``tool_use`` is taken where there are tools."""
MISTRAL_SENTENCEPIECE = ("tokenizer.model.v*", "tokenizer.mm.model.v*")
"""Patterns of sentencepiece models that Mistral's tools read, by the version in their name; transformers does not."""
SENTENCEPIECE = ("tokenizer.model", *MISTRAL_SENTENCEPIECE)
_TEXTS = ("*SYSTEM_PROMPT*.txt", "LICEN[CS]E*", "NOTICE*", "USE_POLICY*")
"""Patterns of texts that go with a model, in capitals or not."""

_POINTER = b"version https://git-lfs.github.com/spec/"
"""How a file begins that stands for one that Git LFS did not fetch."""
MOST_SIDECAR_BYTES = 2**30
"""Of one such file; a tokenizer has some tens of MB."""


def sidecar_files(directory: Path) -> list[Path]:
    """The tokenizer, processor and template files that ``directory`` has.

    Raises:
        CheckpointError: one is a link to nothing, as in a cache that was not downloaded whole, a pointer of Git LFS, a
            pipe or a device, or larger than any such file.
    """
    files = [directory / name for name in SIDECARS]
    for pattern in (*SENTENCEPIECE, f"{FURTHER_TEMPLATES}/*.jinja"):
        files += sorted(directory.glob(pattern))
    for pattern in _TEXTS:
        files += sorted(directory.glob(pattern, case_sensitive=False))
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
                size, begins = os.fstat(stream.fileno()).st_size, stream.read(len(_POINTER))
        except OSError as error:
            raise CheckpointError(f"{printable(file)} cannot be read: {error.strerror}.") from None
        if begins == _POINTER:
            raise CheckpointError(
                f"{printable(file)} is a pointer of Git LFS, not the file itself.",
                "The result would lack it.",
                "Fetch it, in the directory that was cloned: git lfs pull",
            )
        if size > MOST_SIDECAR_BYTES:
            raise CheckpointError(
                f"{printable(file)} has {size:,} bytes.",
                f"Files beside the weights have at most {MOST_SIDECAR_BYTES:,}.",
                "Remove it if the model does not need it.",
            )
        found.append(file)
    return found


def missing_readers(directory: Path, tower: bool) -> str:
    """``tokenizer``, ``processor`` or both, where transformers cannot ask a model without them; else an empty text.

    Args:
        directory: of the model.
        tower: whether it reads images. A ``tekken.json`` is a tokenizer and a processor.
    """
    if (directory / "tekken.json").exists():
        return ""
    tokenizer = any((directory / name).exists() for name in ("tokenizer.json", "tokenizer.model"))
    processor = any((directory / name).exists() for name in ("processor_config.json", "preprocessor_config.json"))
    lacking = {"tokenizer": not tokenizer, "processor": tower and not processor}
    return " and ".join(name for name, missing in lacking.items() if missing)


def chat_template(directory: Path) -> Any:
    """The chat template that transformers finds in a directory, without white space around it; None if there is none.

    A text, or a list of named ones. Raises CheckpointError if a file that may hold it cannot be read.
    """
    return next((template for _, template in _templates(directory)), None)


def chat_templates(directory: Path) -> dict[str, str]:
    """All chat templates of a directory by name, without white space around them.

    That of most conversations is ``default``; transformers takes ``tool_use`` where there are tools.

    Raises:
        CheckpointError: as :func:`chat_template`.
    """
    found = chat_template(directory)
    if isinstance(found, list):
        found = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
    named = found if isinstance(found, dict) else {"default": found} if found is not None else {}
    for file in sorted((directory / FURTHER_TEMPLATES).glob("*.jinja")):
        named[file.stem] = _template_text(file)
    return {name: text.strip() for name, text in named.items() if isinstance(name, str) and isinstance(text, str)}


def _template_text(file: Path) -> str:
    try:
        return read_input(file).decode("utf-8").strip()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{printable(file)} cannot be read: {error}.") from None


def _name_other_templates(directory: Path) -> None:
    """Say so where files beside the weights hold another chat template than the one that transformers finds.

    Raises CheckpointError as :func:`chat_template`.
    """
    found = list(_templates(directory))
    others = [name for name, template in found if template != found[0][1]]
    if others:
        names = " and ".join([found[0][0], *others])
        note(
            f"note: {names} in {directory} hold different chat templates; transformers reads the first, others may not"
        )


def _templates(directory: Path) -> Iterator[tuple[str, Any]]:
    file = directory / "chat_template.jinja"
    if file.is_file():
        yield file.name, _template_text(file)
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        if (directory / name).is_file():
            template = read_json(directory / name).get("chat_template")
            if template:
                yield name, template.strip() if isinstance(template, str) else template


def check_sidecars(directory: Path) -> None:
    """Raise CheckpointError for files beside the weights that could not be read when a result is to be completed.

    Says so where they hold different chat templates.
    """
    sidecar_files(directory)
    _name_other_templates(directory)
    if (directory / GENERATION).exists():
        read_json(directory / GENERATION)


def write_sidecars(
    directory: Path, given: Path, config: Mapping[str, Any], config_name: str = CONFIG, correct_words: bool = False
) -> list[str]:
    """Write a model's config and copy the files of :func:`sidecar_files` beside its weights.

    Names links out of ``given`` on standard error.

    Args:
        directory: of the weights; made if it is not there.
        given: directory whose files are copied.
        config: to be written.
        config_name: ``CONFIG`` or ``PARAMS``.
        correct_words: give a tokenizer with a faulty word pattern the right one.

    Returns:
        Names of all that was written.
    """
    directory.mkdir(exist_ok=True)
    write_json(directory / config_name, config)
    written = [config_name]
    for file in sidecar_files(given):
        target = directory / file.relative_to(given)
        target.parent.mkdir(exist_ok=True)
        with open_input(file) as stream, target.open("wb") as copy:
            shutil.copyfileobj(stream, copy)
        written.append(str(file.relative_to(given)))
    name_links(given)
    if correct_words:
        correct_directory(directory)
    return written


@functools.cache
def name_links(given: Path) -> None:
    """Say once that files of a model are links to somewhere else: what lies there goes into a result.

    A download cache lays out whole models that way, so one line is for all of them.
    """
    inside = given.resolve()
    files = [*sidecar_files(given), *(given / name for name in (CONFIG, PARAMS))]
    files += sorted(given.glob("*.safetensors"))
    outside = [file for file in files if not followed(file).is_relative_to(inside)]
    if outside:
        first = f"{outside[0].relative_to(given)} -> {followed(outside[0])}"
        lead = "1 file is a link that leads" if len(outside) == 1 else f"{len(outside):,} files are links that lead"
        note(f"note: {lead} out of {given}, and the contents were copied: {first}{' and others' * (len(outside) > 1)}")


def sha256_of(file: Path) -> str:
    """SHA-256 of a file, in constant memory."""
    with open_input(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
