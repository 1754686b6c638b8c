"""Tokenizer and processor for transformers, from Mistral's ``tekken.json``.

transformers prefers a ``tekken.json`` to the tokenizer and chat template beside it where a model is text-only, and
renders another format than the model was trained on.

Mistral's own form carries one file for text and images alike; a Hugging Face directory wants a tokenizer in its own
format and the image processor's sizes. transformers does the conversion.
"""

from __future__ import annotations

from pathlib import Path

from megatron_apriel.data.corpus.processor_files import longest_side
from megatron_apriel.errors import CheckpointError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.hf_directory import set_tokenizer_class
from megatron_apriel.formats.word_pattern import TOKENIZER_FILE

TEKKEN = "tekken.json"


def settle_tekken(directory: Path, architecture: Architecture) -> None:
    """Make the tokenizer of a written Hugging Face directory one that transformers reads beside its chat template.

    Where there is only a ``tekken.json``, tokenizer and processor are made of it. Beside a text-only model it is then
    taken away.

    Raises:
        CheckpointError: ``tekken.json`` is damaged.
    """
    tekken = directory / TEKKEN
    if not tekken.is_file():
        return
    if not (directory / TOKENIZER_FILE).exists():
        write_processor(tekken, architecture, directory)
        set_tokenizer_class(directory)
    if architecture.tower is None:
        tekken.unlink()


def write_processor(tekken: Path, architecture: Architecture, directory: Path) -> None:
    """Write the tokenizer of ``tekken``, and the image processor if the model has a tower, into ``directory``.

    Raises:
        CheckpointError: ``tekken`` is damaged.
        DataError: it says of images what the tower does not do.
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
        size={"longest_edge": longest_side(tekken.parent, architecture)},
        patch_size={"height": tower.patch_size, "width": tower.patch_size},
    )
    PixtralProcessor(image_processor=images, tokenizer=tokenizer, patch_size=tower.patch_size).save_pretrained(
        directory
    )
