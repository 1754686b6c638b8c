"""The ids of [IMG_BREAK] and [IMG_END], which Mistral's ``params.json`` names and a Hugging Face config does not.

Pixtral-12B's are 12 and 13, Pixtral-Large's 14 and 15: they are the tokenizer's to say.
"""

from __future__ import annotations

from pathlib import Path

from megatron_apriel.data.corpus.processor_files import check_image_tokens
from megatron_apriel.data.corpus.tokens import TOKENIZER_FILES, TokenTable, load_tokenizer
from megatron_apriel.errors import CheckpointError, printable
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.mistral_params import read_params


def break_and_end_ids(directory: Path, architecture: Architecture) -> tuple[int, int] | None:
    """What the tokenizer in a model's directory gives to the two.

    Returns:
        None for a model without a tower, and for a directory without a tokenizer.

    Raises:
        DataError: the tokenizer cannot be read, lacks them, or gives [IMG] another id than the model; or the processor
            makes other tokens of an image.
        CheckpointError: a ``params.json`` beside it says otherwise.
    """
    if architecture.tower is None or not any((directory / name).is_file() for name in TOKENIZER_FILES):
        return None
    images = TokenTable(load_tokenizer(directory), architecture, origin=f"the tokenizer in {directory}").images
    if images is None:
        return None
    check_image_tokens(directory)
    found, params = (images.break_token_id, images.end_token_id), directory / "params.json"
    vision = read_params(params).vision_encoder if params.is_file() else None
    if vision is not None:
        for name, said, id_ in zip(
            ("image_break_token_id", "image_end_token_id"),
            (vision.image_break_token_id, vision.image_end_token_id),
            found,
            strict=True,
        ):
            if said not in (None, id_):
                raise CheckpointError(
                    f"{printable(params)}: vision_encoder: {name}={said}, and the tokenizer beside it says {id_}.",
                    "The tower's rows would be closed by a token that the model was not trained with.",
                    "Take both files from one release.",
                )
    return found
