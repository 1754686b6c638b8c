"""What the processor files of a model directory say about images, checked against what training does with them.

Training resizes an image so that its longer side fits, with bicubic interpolation, scales it to 0..1, normalises by
CLIP's mean and standard deviation, and cuts it into the tower's patches, one token each. A server does what the files
say. Where that is something else, it would show the model other pixels than it was trained on, so it is refused.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from megatron_apriel.errors import DataError, printable, shown
from megatron_apriel.formats.architecture import Architecture, TowerArchitecture
from megatron_apriel.inputs import read_input

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's, of pixels in 0..1; what Pixtral was trained with."""

_CHANNELS = 3
_FILES = ("processor_config.json", "preprocessor_config.json")
_TEKKEN, _TEKKEN_PARTS = "tekken.json", ("image", "multimodal")
"""Mistral's tokenizer, which servers of its form resize images by; the second is the older name of that part."""
_SWITCHES = {
    "do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True,
    "do_center_crop": False, "do_reduce_labels": False, "do_flip_channel_order": False, "do_thumbnail": False,
    "antialias": True, "keep_aspect_ratio": True,
}  # fmt: skip
"""What training does and does not do."""
_BICUBIC = (3, "bicubic", "BICUBIC")
_HARMLESS = frozenset({
    "_processor_class", "_valid_processor_keys", "auto_map", "chat_template", "crop_size", "data_format",
    "default_to_square", "device", "disable_grouping", "do_pad", "image_processor", "image_seq_length",
    "input_data_format", "num_additional_image_tokens", "pad_size", "return_tensors", "tokenizer",
    "valid_processor_keys", "video_processor", "vision_feature_select_strategy",
})  # fmt: skip
"""Settings that change no pixel and no token."""
_TOKENS = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}
"""What an image becomes in training."""


def longest_side(directory: str | Path, architecture: Architecture) -> int | None:
    """Longest side of a resized image by the directory's processor files; by Mistral's tokenizer if they do not say.

    Returns None for a model without a tower.

    Raises:
        DataError: the tower takes other images than coloured ones; a file cannot be read, says anything else than
            training does, does not fit the tower, or contradicts the other one.
    """
    tower = architecture.tower
    if tower is None:
        return None
    if tower.channels != _CHANNELS:
        raise DataError(
            f"{printable(directory)}: the vision tower's num_channels is {tower.channels}.",
            "Images are made into red, green and blue.",
            f"Give a model with num_channels={_CHANNELS}.",
        )
    sides: dict[Path, int] = {}
    for file, settings in _settings(Path(directory)):
        if (side := _checked(file, settings, tower)) is not None:
            sides[file] = side
    if len(set(sides.values())) > 1:
        said = " and ".join(f"{printable(file.name)} {side}" for file, side in sides.items())
        raise DataError(
            f"{printable(directory)} gives two sizes of images: {said}.",
            "Versions of transformers differ in which of the two files they read.",
            "Remove the file that is out of date.",
        )
    return next(iter(sides.values()), None) or tekken_side(Path(directory), tower)


def tekken_side(directory: Path, tower: TowerArchitecture) -> int:
    """Longest side of a resized image by Mistral's tokenizer; the tower's own limit where that says none, or more.

    Raises:
        DataError: the file cannot be read, or says of images what training does otherwise.
    """
    file = directory / _TEKKEN
    if not file.is_file():
        return tower.image_size
    try:
        whole = json.loads(read_input(file))
        given = list(next((whole[name] for name in _TEKKEN_PARTS if whole.get(name)), dict[str, Any]()).items())
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{file} is not a valid JSON object: {error}.", fix="Copy the file again.") from None
    side = tower.image_size
    for name, value in given:
        if name == "max_image_size":
            if type(value) is not int or value < tower.patch_size:
                _refuse(file, name, value, f"an image has at least one patch of {tower.patch_size} pixels")
            side = min(side, value)
        elif name == "image_patch_size":
            if value != tower.patch_size:
                _refuse(file, name, value, f"the vision tower's patch_size is {tower.patch_size}")
        elif name == "spatial_merge_size":
            if value != 1:
                _refuse(file, name, value, "every patch is a token in training")
        elif value:
            _refuse(file, name, value, "what it changes is not known here")
    return side


def check_image_tokens(directory: Path) -> None:
    """Raise DataError if the directory's processor files make other tokens of an image than training does."""
    for file, settings in _settings(directory):
        for name in _TOKENS:
            if settings.get(name) is not None:
                _check_token(file, name, settings[name])


def _settings(directory: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The settings of the image processor in each file that has some.

    transformers 5 writes them into the first file, under a key; earlier versions into the second.
    """
    found = []
    for name in _FILES:
        file = directory / name
        if not file.exists():
            continue
        try:
            whole = json.loads(read_input(file))
            own = whole.get("image_processor")
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise DataError(f"{file} is not a valid JSON object: {error}.", fix="Copy the file again.") from None
        if own is not None and not isinstance(own, dict):
            _refuse(file, "image_processor", own, "its settings are expected there")
        found += [(file, part) for part in (whole, own) if part]
    return found


def _checked(file: Path, settings: dict[str, Any], tower: TowerArchitecture) -> int | None:
    """The longest side that some settings give, or None. Raises DataError for what training does otherwise."""
    for name, value in settings.items():
        if value is None or name in _HARMLESS:
            continue
        if name in _SWITCHES:
            if value is not _SWITCHES[name]:
                _refuse(file, name, value, f"it is {str(_SWITCHES[name]).lower()} in training")
        elif name in _TOKENS:
            _check_token(file, name, value)
        elif name == "processor_class":
            if value != "PixtralProcessor":
                _refuse(file, name, value, "training makes the tokens that PixtralProcessor makes of an image")
        elif name in ("image_mean", "image_std"):
            expected = MEAN if name == "image_mean" else STD
            if not _close(value, expected):
                _refuse(file, name, value, f"training normalises by {list(expected)}")
        elif name == "rescale_factor":
            if not _close([value], (1 / 255,)):
                _refuse(file, name, value, "training scales by 1/255")
        elif name == "resample":
            if value not in _BICUBIC:
                _refuse(file, name, value, "training resizes by bicubic interpolation, which is 3")
        elif name == "spatial_merge_size":
            if value != 1:
                _refuse(file, name, value, "every patch is a token in training")
        elif name == "patch_size":
            sides = [*value.values()] if isinstance(value, dict) else value if isinstance(value, list) else [value]
            if not sides or any(side != tower.patch_size for side in sides):
                _refuse(file, name, value, f"the vision tower's patch_size is {tower.patch_size}")
        elif name == "size":
            if not isinstance(value, dict) or {key for key, side in value.items() if side} - {"longest_edge"}:
                _refuse(file, name, value, "training makes the longer side fit, which is longest_edge alone")
        elif name in ("image_processor_type", "feature_extractor_type"):
            if not str(value).startswith("PixtralImageProcessor"):
                _refuse(file, name, value, "training does what PixtralImageProcessor does")
        elif value:
            _refuse(file, name, value, "what it changes is not known here")
    side = (settings.get("size") or {}).get("longest_edge")
    if side is None:
        return None
    if type(side) is not int or not tower.patch_size <= side <= tower.image_size:
        raise DataError(
            f"{file}: longest_edge={shown(side)} does not fit the vision tower's image_size={tower.image_size} and "
            f"patch_size={tower.patch_size}.",
            "The tower has rotary positions for images up to its own size only, cut into its own patches.",
            f"Set longest_edge between {tower.patch_size} and {tower.image_size}, or remove the file.",
        )
    return side


def _check_token(file: Path, name: str, value: Any) -> None:
    if _content(value) != _TOKENS[name]:
        _refuse(file, name, value, f"an image is made of {', '.join(_TOKENS.values())} in training")


def _content(token: Any) -> Any:
    """The text of a token, which may be written with its settings."""
    return token.get("content") if isinstance(token, dict) else token


def _close(values: Any, expected: tuple[float, ...]) -> bool:
    """Whether a list is equal to the numbers as far as files write them out."""
    if not isinstance(values, list) or len(values) != len(expected):
        return False
    numbers = all(type(value) in (int, float) for value in values)
    return numbers and all(math.isclose(*pair, rel_tol=1e-3) for pair in zip(values, expected, strict=True))


def _refuse(file: Path, name: str, value: Any, why: str) -> NoReturn:
    raise DataError(
        f"{printable(file)}: {name}={shown(value)} is not followed in training: {why}.",
        "A server that follows it shows the model other pixels than it was trained on.",
        f"Correct {name} if the model was trained otherwise, or remove it.",
    )
