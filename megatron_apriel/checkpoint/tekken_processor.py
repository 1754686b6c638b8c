"""Tokenizer and processor for transformers, from Mistral's ``tekken.json``.

transformers prefers a ``tekken.json`` to the tokenizer and chat template beside it where a model is text-only, and
renders another format than the model was trained on.

Mistral's own form carries one file for text and images alike; a Hugging Face directory wants a tokenizer in its own
format and the image processor's sizes. transformers does the conversion.
"""

from __future__ import annotations

from base64 import b64decode
from pathlib import Path

from megatron_apriel.data.corpus.processor_files import longest_side
from megatron_apriel.errors import CheckpointError, printable, shown
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.formats.hf_directory import set_tokenizer_class
from megatron_apriel.formats.json_files import parse_json
from megatron_apriel.formats.word_pattern import TOKENIZER_FILE
from megatron_apriel.inputs import read_input
from megatron_apriel.quantities import counted

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


def check_same_vocabulary(directory: Path) -> None:
    """Compare the tokens of ``tekken.json`` with those of ``tokenizer.json``, where a directory has both.

    Mistral's tools read the one and transformers the other, by which the model was trained.

    Raises:
        CheckpointError: they give an id to different tokens, or one cannot be read.
    """
    tekken, table = directory / TEKKEN, directory / TOKENIZER_FILE
    if not (tekken.is_file() and table.is_file()):
        return
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()
    try:
        said, vocabulary = parse_json(read_input(tekken)), parse_json(read_input(table))["model"]["vocab"]
        first, stop = (said["config"][name] for name in ("default_num_special_tokens", "default_vocab_size"))
        ranks = said["vocab"][: stop - first]
        theirs = {
            first + rank["rank"]: "".join(letters[byte] for byte in b64decode(rank["token_bytes"])) for rank in ranks
        }
        ours = {id_: token for token, id_ in vocabulary.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{printable(tekken)} and {table.name} beside it cannot be compared: {error!r}.",
            "One of them is damaged, or is no tokenizer of bytes.",
            "Copy the files again, or remove the one that is not the model's.",
        ) from None
    different = [id_ for id_, token in theirs.items() if ours.get(id_) != token]
    if different:
        one = different[0]
        raise CheckpointError(
            f"{printable(tekken)}: token {one} is {shown(theirs[one])}, and {shown(ours.get(one))} by {table.name}"
            f" beside it ({counted(len(different), 'such token')}).",
            "Mistral's tools read the first, transformers the second: one of them is not the model's.",
            f"Take the {TEKKEN} of the model that training began from, or remove the one here.",
        )


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
