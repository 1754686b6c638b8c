"""What the files beside two models' weights say, compared by what they mean.

Versions of the libraries write one tokenizer in several ways: merges as texts or pairs, defaults left out, settings of
images in one file or another. What text and images become must be the same where weights are averaged, and where a run
writes them beside what it trained; how a file is written need not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from megatron_apriel.errors import CheckpointError
from megatron_apriel.formats.json_files import parse_json
from megatron_apriel.formats.sidecars import chat_template, sha256_of, sidecar_files
from megatron_apriel.inputs import read_input
from megatron_apriel.terminal import note


@dataclass(frozen=True)
class Difference:
    """Something that is not alike beside two models.

    Attributes:
        kind: ``tokenizer``, ``chat template`` or ``processor``; empty where it is harmless.
        name: the file, or the kind where it is of several.
        only_in: the directory that alone has the file; None where both have it.
    """

    kind: str
    name: str
    only_in: Path | None = None

    def __str__(self) -> str:
        return f"{self.name} differs" if self.only_in is None else f"{self.name} is only in {self.only_in}"


class SidecarContents:
    """Tokenizer, template, processor and other files of a directory, as they were when this was made."""

    def __init__(self, directory: Path) -> None:
        """Raises CheckpointError if a file cannot be read."""
        self.directory = directory
        self.template = chat_template(directory)
        self._files = {file.relative_to(directory).as_posix(): file for file in sidecar_files(directory)}
        self._digests = {name: sha256_of(file) for name, file in self._files.items()}
        self._meanings: dict[str, str | None] = {}

    def remember(self) -> SidecarContents:
        """Read what every file means now, because it may be another when it is compared; returns itself."""
        for name in self._files:
            self._meaning(name)
        return self

    def differences(self, other: SidecarContents, same_files: bool = False) -> Iterator[Difference]:
        """What is not alike.

        Args:
            other: what is compared with this.
            same_files: whether both are of the same files. Otherwise a file that only one has is harmless, because a
                tokenizer may be in one file or in several.
        """
        if self.template != other.template and (same_files or None not in (self.template, other.template)):
            yield Difference("chat template", "the template")
        for name in sorted(self._digests.keys() | other._digests.keys()):
            holders = [one for one in (self, other) if name in one._digests]
            kind, both = _row(name)[0], len(holders) == 2
            if both and self._digests[name] == other._digests[name]:
                continue
            if both and kind:
                meanings = [one._meaning(name) for one in holders]
                if None in meanings or meanings[0] != meanings[1]:
                    yield Difference(kind, name)
            elif "template" not in name:
                yield Difference(kind if same_files else "", name, None if both else holders[0].directory)

    def _meaning(self, name: str) -> str | None:
        """A digest of what a file means; None where it has no meaning but its bytes, or cannot be read."""
        if name not in self._meanings:
            meaning, said = _row(name)[1], None
            if meaning is not None:
                try:
                    value = meaning(parse_json(read_input(self._files[name])))
                    said = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
                except (OSError, ValueError, RecursionError, AttributeError, KeyError, TypeError):
                    said = None
            self._meanings[name] = said
        return self._meanings[name]


@dataclass(frozen=True)
class KeptSidecars:
    """A run's own copy of the files beside its weights, and what they said when it began.

    Attributes:
        directory: of the copy.
        began: what was in it; None on ranks that do not write.
    """

    directory: Path
    began: SidecarContents | None = None

    @classmethod
    def now(cls, directory: Path) -> KeptSidecars:
        """Of files as they are."""
        return cls(directory, SidecarContents(directory).remember())

    def checked(self) -> Path:
        """The directory, whose files say what the run trained with; names harmless changes.

        Raises:
            CheckpointError: tokenizer, template or processor were changed since the run began.
        """
        if self.began is None or not self.directory.is_dir():
            return self.directory
        for found in self.began.differences(SidecarContents(self.directory), same_files=True):
            if not found.kind:
                note(f"note: {found.name} in {self.directory} was changed since the run began")
                continue
            raise CheckpointError(
                f"the {found.kind} in {self.directory} is not the one that the run trained with: {found.name} was"
                " changed since it began.",
                "A checkpoint would be served otherwise than it was trained.",
                "Start the same command again: it takes the files of the newest checkpoint, or of init_from.",
            )
        return self.directory


def _tokenizer(said: Any) -> Any:
    """Versions write merges as texts or pairs, and leave defaults out."""
    model = said["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges") or ()]
    flags = ("special", "single_word", "lstrip", "rstrip", *(("normalized",) if said.get("normalizer") else ()))
    added = {
        token["content"]: (token["id"], [name for name in flags if token.get(name)])
        for token in said.get("added_tokens") or ()
    }
    steps = [said.get(name) for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder")]
    ways = {name: value for name, value in model.items() if name not in ("type", "vocab", "merges") and value}
    return model.get("type"), model["vocab"], merges, added, steps, ways


def _special_tokens(said: Any) -> Any:
    return {name: token.get("content") if isinstance(token, dict) else token for name, token in said.items()}


def _processor(said: Any) -> Any:
    """Settings of the image processor; its class is named for how it computes, and nulls are defaults."""
    own = said.get("image_processor") if isinstance(said.get("image_processor"), dict) else {}
    settings = {
        name: value for name, value in {**said, **own}.items() if name not in _NO_SETTINGS and value is not None
    }
    kind = str(settings.pop("image_processor_type", "")).removesuffix("Fast").removesuffix("Pil")
    return settings, kind


_NO_SETTINGS = frozenset({
    "auto_map", "chat_template", "data_format", "default_to_square", "device", "disable_grouping", "image_processor",
    "processor_class", "transformers_version",
})  # fmt: skip
_COMPARED: tuple[tuple[str, str, Callable[[Any], Any] | None], ...] = (
    ("tokenizer.json", "tokenizer", _tokenizer),
    ("tekken.json", "tokenizer", lambda said: {name: value for name, value in said.items() if name != "version"}),
    ("vocab.json", "tokenizer", lambda said: said),
    ("added_tokens.json", "tokenizer", lambda said: said),
    ("special_tokens_map.json", "tokenizer", _special_tokens),
    ("tokenizer.model*", "tokenizer", None),
    ("*processor_config.json", "processor", _processor),
)
"""Pattern of a file's name, what it is of, and what of its JSON has a meaning (None: its bytes). Others are named."""


def _row(name: str) -> tuple[str, Callable[[Any], Any] | None]:
    return next((row[1:] for row in _COMPARED if fnmatch(name, row[0])), ("", None))
