"""What the processor files of a model directory say about image sizes, checked against its vision tower."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_apriel.architecture import Architecture
from megatron_apriel.errors import DataError
from megatron_apriel.inputs import read_input


def longest_side(directory: str | Path, architecture: Architecture) -> int | None:
    """Longest side of a resized image by the directory's processor files; the tower's own limit if they do not say.

    Returns None for a model without a tower.

    Raises:
        DataError: a file cannot be read, its size exceeds what the tower has positions for, or its patches differ.
    """
    tower = architecture.tower
    if tower is None:
        return None
    # transformers 5 writes the image processor's settings into the first file, earlier versions into the second.
    for name, key in (("processor_config.json", "image_processor"), ("preprocessor_config.json", None)):
        file = Path(directory) / name
        if not file.exists():
            continue
        try:
            settings = json.loads(read_input(file))
            settings = settings.get(key) if key else settings
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise DataError(f"{file} is not a valid JSON object: {error}.", fix="Copy the file again.") from None
        if not settings:
            continue
        patch = settings.get("patch_size", tower.patch_size)
        patch = patch.get("height") if isinstance(patch, dict) else patch
        side = (settings.get("size") or {}).get("longest_edge", tower.image_size)
        if patch != tower.patch_size or not isinstance(side, int) or not tower.patch_size <= side <= tower.image_size:
            raise DataError(
                f"{file}: longest_edge={side} and patch_size={patch} do not fit the vision tower's "
                f"image_size={tower.image_size} and patch_size={tower.patch_size}.",
                "The tower has rotary positions for images up to its own size only, cut into its own patches.",
                f"Set longest_edge between {tower.patch_size} and {tower.image_size}, or remove the file.",
            )
        return side
    return tower.image_size
