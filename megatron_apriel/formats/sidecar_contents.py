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
from megatron_apriel.formats.sidecars import SENTENCEPIECE, chat_templates, sha256_of, sidecar_files
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
        if self.only_in is not None:
            return f"{self.name} is only in {self.only_in}"
        return f"{self.name} {'differ' if ' and ' in self.name else 'differs'}"


class SidecarContents:
    """Tokenizer, template, processor and other files of a directory, as they were when this was made."""

    def __init__(self, directory: Path) -> None:
        """Raises CheckpointError if a file cannot be read."""
        self.directory = directory
        self.templates = chat_templates(directory)
        self._files = {file.relative_to(directory).as_posix(): file for file in sidecar_files(directory)}
        self._digests = {name: sha256_of(file) for name, file in self._files.items()}
        self._meanings: dict[str, str | None] = {}
        self._objects: dict[str, dict[str, Any]] = {}

    def remember(self) -> SidecarContents:
        """Read what every file means now, because it may be another when it is compared; returns itself."""
        for name in self._files:
            self._meaning(name)
        for name in (*_ENDS, *_PROCESSORS):
            self._said(name)
        return self

    def differences(self, other: SidecarContents, same_files: bool = False) -> Iterator[Difference]:
        """What is not alike.

        Args:
            other: what is compared with this.
            same_files: whether both are of the same files. Otherwise a file that only one has is harmless, because a
                tokenizer may be in one file or in several.
        """
        yield from self._other_templates(other, same_files)
        names = self._digests.keys() | other._digests.keys()
        processors = names & {*_PROCESSORS}
        if not same_files and all(processors & one._digests.keys() for one in (self, other)):
            # Versions of transformers write their settings into one of two files, or into both.
            names -= processors
            if self._processor() != other._processor():
                differing = (name for name in processors if self._digests.get(name) != other._digests.get(name))
                yield Difference("processor", " and ".join(sorted(differing)))
        for name in sorted(names):
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
        for name in ("bos_token", "eos_token"):
            ours, theirs = (one._end(name) for one in (self, other))
            if ours != theirs and None not in (ours, theirs):
                yield Difference("tokenizer", name)

    def _other_templates(self, other: SidecarContents, same_files: bool) -> Iterator[Difference]:
        for name in sorted(self.templates.keys() | other.templates.keys()):
            holders = [one for one in (self, other) if name in one.templates]
            called = "the template" if name == "default" else f"the template {name}"
            if len(holders) == 1:
                yield Difference("chat template" if same_files else "", called, holders[0].directory)
            elif self.templates[name] != other.templates[name]:
                yield Difference("chat template", called)

    def _end(self, name: str) -> Any:
        """The token with which a text begins or ends, by whichever file says it first."""
        for file in _ENDS:
            token = self._said(file).get(name)
            if token is not None:
                return token.get("content") if isinstance(token, dict) else token
        return None

    def _processor(self) -> Any:
        """What images become, by all files that say it."""
        said: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for name in _PROCESSORS:
            whole = self._said(name)
            inside = whole.get("image_processor")
            said |= {key: value for key, value in whole.items() if value is not None}
            own |= inside if isinstance(inside, dict) else {}
        return _processor({**said, "image_processor": own})

    def _said(self, name: str) -> dict[str, Any]:
        """The JSON object in a file, as it was when this was made; empty where there is none or it is damaged."""
        if name not in self._objects:
            self._objects[name] = {}
            if name in self._files:
                try:
                    value = parse_json(read_input(self._files[name]))
                except (OSError, ValueError, RecursionError):
                    value = {"unreadable": self._digests[name]}
                self._objects[name] = value if isinstance(value, dict) else {"unreadable": self._digests[name]}
        return self._objects[name]

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
        name: _spelled(name, value)
        for name, value in {**said, **own}.items()
        if name not in _NO_SETTINGS and value is not None
    }
    kind = str(settings.pop("image_processor_type", "")).removesuffix("Fast").removesuffix("Pil")
    if kind in ("", "PixtralImageProcessor"):
        settings = {**_PIXTRAL, **settings}
    return {name: value for name, value in settings.items() if value not in _OFF or name in _PIXTRAL}, kind


def _spelled(name: str, value: Any) -> Any:
    """A setting in the one of its spellings that is compared."""
    if isinstance(value, dict) and "content" in value:
        return value["content"]
    if name == "resample":
        return _FILTERS.get(str(value).lower(), value)
    if name == "patch_size":
        sides = [*value.values()] if isinstance(value, dict) else value if isinstance(value, list) else [value]
        return sides[0] if sides and all(side == sides[0] for side in sides) else value
    if name == "size" and isinstance(value, dict):
        return {key: side for key, side in value.items() if side}
    if isinstance(value, float):
        return float(f"{value:.4g}")
    return [_spelled("", one) for one in value] if isinstance(value, list) else value


_FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
"""Pillow's numbers of ways to resize."""
_OFF: tuple[Any, ...] = (False, "", [], {})
_PIXTRAL = {
    "do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True, "resample": 3,
    "rescale_factor": 0.003922, "image_mean": [0.4815, 0.4578, 0.4082], "image_std": [0.2686, 0.2613, 0.2758],
    "patch_size": 16, "size": {"longest_edge": 1024}, "spatial_merge_size": 1, "image_token": "[IMG]",
    "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]",
}  # fmt: skip
"""What transformers' processor does where its files do not say otherwise, numbers to four digits."""
_NO_SETTINGS = frozenset({
    "_valid_processor_keys", "auto_map", "chat_template", "crop_size", "data_format", "default_to_square", "device",
    "disable_grouping", "do_pad", "feature_extractor_type", "image_processor", "input_data_format", "pad_size",
    "processor_class", "return_tensors", "transformers_version", "valid_processor_keys",
})  # fmt: skip
_ENDS = ("tokenizer_config.json", "special_tokens_map.json")
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")
_COMPARED: tuple[tuple[str, str, Callable[[Any], Any] | None], ...] = (
    ("tokenizer.json", "tokenizer", _tokenizer),
    ("tekken.json", "tokenizer", lambda said: {name: value for name, value in said.items() if name != "version"}),
    ("vocab.json", "tokenizer", lambda said: said),
    ("added_tokens.json", "tokenizer", lambda said: said),
    ("special_tokens_map.json", "tokenizer", _special_tokens),
    *((pattern, "tokenizer", None) for pattern in SENTENCEPIECE),
    ("*processor_config.json", "processor", _processor),
)
"""Pattern of a file's name, what it is of, and what of its JSON has a meaning (None: its bytes). Others are named."""


def _row(name: str) -> tuple[str, Callable[[Any], Any] | None]:
    return next((row[1:] for row in _COMPARED if fnmatch(name, row[0])), ("", None))
