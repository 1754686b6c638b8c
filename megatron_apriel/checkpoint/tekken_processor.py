"""Tokenizer and processor for transformers, from Mistral's ``tekken.json``.

Mistral's own form carries one file for text and images alike; a Hugging Face directory wants a tokenizer in its own
format and the image processor's sizes. transformers does the conversion.
"""

from __future__ import annotations

from pathlib import Path

from megatron_apriel.errors import CheckpointError
from megatron_apriel.formats.architecture import Architecture


def write_processor(tekken: Path, architecture: Architecture, directory: Path) -> None:
    """Write the tokenizer of ``tekken``, and the image processor if the model has a tower, into ``directory``.

    Raises:
        CheckpointError: ``tekken`` is damaged.
    """
    from transformers import PixtralImageProcessor, PixtralProcessor
    from transformers.integrations.mistral import convert_tekken_tokenizer

    try:
        tokenizer, tower = convert_tekken_tokenizer(str(tekken)), architecture.tower
    except Exception as error:  # whatever its contents happen to raise
        raise CheckpointError(
            f"{tekken} cannot be made into a tokenizer: {error!r}.",
            "transformers reads it as Mistral's Tekken file.",
            "Download it again, or move it away to convert the weights without a tokenizer.",
        ) from error
    if tower is None:
        tokenizer.save_pretrained(directory)
        return
    images = PixtralImageProcessor(
        size={"longest_edge": tower.image_size}, patch_size={"height": tower.patch_size, "width": tower.patch_size}
    )
    PixtralProcessor(image_processor=images, tokenizer=tokenizer, patch_size=tower.patch_size).save_pretrained(
        directory
    )
