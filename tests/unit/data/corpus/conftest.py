"""A small corpus with images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megatron_apriel.data.corpus.on_disk import Corpus
from megatron_apriel.testing.corpora import random_pixels, write_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    generator = np.random.default_rng(0)
    pictures = [random_pixels(generator, *size) for size in ((9, 13), (40, 50), (1, 100))]
    return write_corpus(tmp_path / "corpus", [5, [3, pictures[0], 4], [pictures[1], 7, pictures[2]], 1])
