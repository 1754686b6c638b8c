"""A few fixed prompts as batches, for text that a model in training continues one token at a time.

A prompt is a sequence of its own: its tokens, those that the model has added so far, and padding. It is as short as all
prompts of a run allow, and not as long as a training sequence. Each rank makes its part of it as of any other sequence:
its tokens under context parallelism, its share of the images, whose pixels are decoded once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from megatron_apriel.batch import IGNORED_LABEL, Batch, PackedImages
from megatron_apriel.config.output_sections import SamplePrompt
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.data.corpus.chat import encode_chat, encode_text
from megatron_apriel.data.corpus.image_size import Rounding, patch_grid
from megatron_apriel.data.corpus.stored_images import EncodedImage, encode_for_corpus
from megatron_apriel.data.corpus.tokens import TokenTable
from megatron_apriel.data.loading.assemble import ImageShare, SequenceContent, SequenceImage, make_batch
from megatron_apriel.data.loading.image_headers import ImageRequest
from megatron_apriel.data.loading.images import ImageDecoder
from megatron_apriel.data.raw.problems import BadRecord
from megatron_apriel.errors import ConfigError, printable
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.inputs import read_input
from megatron_apriel.parallel.checks import sequence_multiple
from megatron_apriel.parallel.data_place import DataPlace

_ALIGNED = 32
"""Tokens of a prompt's sequence on a rank are a multiple of this, and of what layout and FP8 recipe want besides."""


@dataclass(frozen=True)
class Prompt:
    """One prompt: its tokens, int32, and this rank's share of its images."""

    tokens: NDArray[np.int32]
    images: PackedImages


class Prompts:
    """The prompts of a stage's ``samples``, for one rank.

    Attributes:
        table: tokenizer and ids.
        prompts: in the order of the configuration.
        length: tokens of every prompt's sequence.
    """

    def __init__(
        self, config: StageConfig, architecture: Architecture, place: DataPlace, directory: Path, rounding: Rounding
    ) -> None:
        """Encode the prompts.

        Args:
            config: the stage, which has a ``samples`` section.
            architecture: of the model.
            place: this rank's part of the data.
            directory: with the model's tokenizer and processor files.
            rounding: of the corpora's patch grids.

        Raises:
            ConfigError: a prompt that cannot be encoded, an image that cannot be read, or one that does not fit.
            DataError: there is no tokenizer.
        """
        section = config.samples
        assert section is not None, "only a stage with samples has prompts"
        self._place = place
        self.table = TokenTable.from_directory(directory, rounding)
        tower = architecture.tower
        with ImageDecoder(tower.patch_size if tower else 1, threads=1, device="cpu") as decoder:
            share = ImageShare(
                place.share, place.shares, tower.patch_values if tower else 0, decoder if place.with_images else None
            )
            self.prompts = [
                self._encoded(number, prompt, section.chat, share) for number, prompt in enumerate(section.prompts)
            ]
        longest = max(len(prompt.tokens) for prompt in self.prompts) + section.max_tokens
        if longest > config.sequence_length:
            raise ConfigError(
                f"samples: the longest prompt and max_tokens={section.max_tokens} make {longest:,} tokens.",
                f"sequence_length is {config.sequence_length:,}.",
                "Give a shorter prompt, a smaller image, or a smaller samples.max_tokens.",
            )
        multiple = math.lcm(_ALIGNED * place.shares, sequence_multiple(config)[0])
        self.length = min(-(-longest // multiple) * multiple, config.sequence_length)

    def _encoded(self, number: int, prompt: SamplePrompt, chat: bool, share: ImageShare) -> Prompt:
        try:
            image = encode_for_corpus(read_input(prompt.image)) if prompt.image is not None else None
            grids = [self._grid(image)] if image is not None else []
            if chat:
                parts = [{"type": "image"}] * len(grids) + [{"type": "text", "text": prompt.text}]
                messages = [{"role": "user", "content": parts}]
                encoded = encode_chat(self.table, messages, grids=grids, generation_prompt=True)
                tokens = encoded.tokens
            else:
                encoded = encode_text(self.table, [*[None] * len(grids), prompt.text], grids)
                tokens = encoded.tokens[:-1]  # the end is the model's to say
        except (BadRecord, OSError) as error:
            raise ConfigError(
                f"samples.prompts.{number} cannot be used: {error}.", fix="Give another text or image, or leave it out."
            ) from None
        place = f"samples.prompts.{number}, {printable(prompt.image)}"
        images = [_request(image, *grids[0], encoded.image_starts[0], place)] if image is not None else []
        return Prompt(tokens, share.pack(tuple(images)))

    def _grid(self, image: EncodedImage) -> tuple[int, int]:
        rule = self.table.images
        if rule is None:
            raise BadRecord("it has an image, and the model has no vision tower")
        return patch_grid(image.height, image.width, rule.image_size, rule.patch_size, rule.rounding)

    def last_position(self, number: int, added: Sequence[int]) -> int:
        """Position in a prompt's sequence that predicts the token behind those that were added."""
        return len(self.prompts[number].tokens) + len(added) - 1

    def batch(self, number: int, added: Sequence[int]) -> Batch:
        """The batch of a prompt with the tokens that were added to it."""
        prompt = self.prompts[number]
        tokens = np.concatenate([prompt.tokens, np.array(added, dtype=np.int32)]).astype(np.int64)
        used, rest = len(tokens), self.length - len(tokens)
        content = SequenceContent(
            tokens_S=np.concatenate([tokens, np.full(rest, self.table.record.pad_id)]),
            labels_S=np.full(self.length, IGNORED_LABEL, dtype=np.int64),
            positions_S=np.concatenate([np.arange(used), np.arange(rest)]),
            cu_seqlens=np.array([0, used, self.length][: 3 if rest else 2], dtype=np.int32),
            samples=(),
            images=(),
        )
        return make_batch(content, prompt.images, number, number, self._place)


def _request(image: EncodedImage, rows: int, columns: int, start: int, place: str) -> SequenceImage:
    slots = start + np.arange(rows)[:, None] * (columns + 1) + np.arange(columns)
    data = np.frombuffer(image.data, dtype=np.uint8)
    return SequenceImage(ImageRequest(data, image.height, image.width, rows, columns, place), slots.reshape(-1))
