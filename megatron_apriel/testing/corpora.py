"""Small corpora for the tests of this directory, written through the real writer."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from megatron_apriel.data.corpus.format import CorpusManifest, ImageRecord, StoredImage, TokenizerRecord, image_block
from megatron_apriel.data.corpus.image_size import patch_grid
from megatron_apriel.data.corpus.on_disk import Corpus, CorpusWriter

VOCAB = 4096
TOKENIZER = TokenizerRecord(sha256="0" * 64, vocab_size=VOCAB, bos_id=1, eos_id=2, pad_id=11)
IMAGES = ImageRecord(image_token_id=10, break_token_id=12, end_token_id=13, patch_size=4, image_size=32)

Item = int | np.ndarray | bytes
"""Of a document: a number of random text tokens, or an image as pixels (stored as PNG) or as encoded bytes."""


def encode(pixels: np.ndarray | Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def random_pixels(generator: np.random.Generator, height: int, width: int) -> np.ndarray:
    return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_corpus(
    directory: Path,
    documents: Sequence[Sequence[Item] | int],
    *,
    images: ImageRecord | None = IMAGES,
    tokenizer: TokenizerRecord = TOKENIZER,
    seed: int = 0,
    responses: bool | Callable[[int], np.ndarray] = True,
) -> Corpus:
    """Documents of random text and given images.

    The second half of each document is its response, if ``responses``; or what that gives for its number of tokens.
    """
    generator = np.random.default_rng(seed)
    directory.mkdir(parents=True, exist_ok=True)
    with CorpusWriter(directory, CorpusManifest(tokenizer=tokenizer, images=images)) as writer:
        for document in documents:
            parts: list[np.ndarray] = []
            stored: list[StoredImage] = []
            for item in [document] if isinstance(document, int) else document:
                start = sum(map(len, parts))
                if isinstance(item, int):
                    parts.append(generator.integers(20, tokenizer.vocab_size, item, dtype=np.int32))
                    continue
                assert images is not None
                data = item if isinstance(item, bytes) else encode(item)
                width, height = Image.open(io.BytesIO(data)).size
                grid = patch_grid(height, width, images.image_size, images.patch_size, images.rounding)
                parts.append(image_block(*grid, images))
                stored.append(StoredImage(data, height, width, *grid, start))
            tokens = np.concatenate(parts)
            half = np.arange(tokens.size) >= tokens.size // 2
            writer.add(tokens, half & responses if isinstance(responses, bool) else responses(tokens.size), stored)
        writer.close()
    return Corpus.open(directory)
