"""What the tests of the loaders share: a small model, a stage over two corpora, and batches to compare."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from megatron_apriel.batch import IGNORED_LABEL, Batch
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.data.corpus.on_disk import Corpus
from megatron_apriel.data.loading.loader import TrainingLoader
from megatron_apriel.formats.architecture import (
    Architecture,
    DecoderArchitecture,
    ProjectorArchitecture,
    TowerArchitecture,
)
from megatron_apriel.parallel.data_place import WHOLE, DataPlace
from megatron_apriel.testing.corpora import VOCAB, random_pixels

LENGTH = 256
DECODER = DecoderArchitecture(32, 2, 2, 1, 16, 64, VOCAB)
TOWER = TowerArchitecture(16, 1, 1, 16, 32, "silu", patch_size=4, image_size=32)
MODEL = Architecture(DECODER, TOWER, ProjectorArchitecture(16, 32), image_token_id=10)


def documents(seed: int, number: int, images: bool) -> list[list]:
    generator = np.random.default_rng(seed)
    result = []
    for _ in range(number):
        document: list = [int(generator.integers(2, 60))]
        for _ in range(int(generator.integers(0, 4)) if images else 0):
            document += [random_pixels(generator, *generator.integers(1, 50, 2)), int(generator.integers(1, 9))]
        result.append(document)
    return result


def stage(corpora, *, steps: int = 6, per_step: int = 4, sources: list | None = None, **changes) -> StageConfig:
    sources = sources or [
        {"corpus": corpora["text"].path, "weight": 0.4},
        {"corpus": corpora["pictures"].path, "weight": 0.6, "loss": "responses"},
    ]
    return StageConfig.model_validate(
        {
            "stage": "test",
            "init_from": "nowhere",
            "output": "nowhere",
            "train": {"decoder": 1.0},
            "sequence_length": LENGTH,
            "batch_tokens": per_step * LENGTH,
            "tokens": steps * per_step * LENGTH,
            "mixture": sources,
            "optimizer": {"peak": 1e-4},
            "images": {"device": "cpu", "threads": 1},
        }
        | changes
    )


def load(config: StageConfig, place: DataPlace = WHOLE, first_sequence: int = 0) -> list[Batch]:
    with TrainingLoader(config, MODEL, place, first_sequence=first_sequence) as loader:
        return list(loader)


def assert_same(first, second) -> None:
    for field in dataclasses.fields(first):
        one, two = getattr(first, field.name), getattr(second, field.name)
        if isinstance(one, torch.Tensor):
            assert one.dtype == two.dtype and torch.equal(one, two), field.name
        elif dataclasses.is_dataclass(one):
            assert_same(one, two)
        else:
            assert one == two, field.name


def slow_batch(corpus: Corpus, batch: Batch, responses_only: bool) -> None:
    """Check a batch token by token against its corpus."""
    tokens, labels, positions, slots = [], [], [], []
    for document in batch.samples:
        ids, flags = corpus.tokens(document).tolist(), corpus.responses(document).tolist()
        for place, token in enumerate(ids):
            if token == 10:
                slots.append(len(tokens))
            tokens.append(token)
            positions.append(place)
            scored = place + 1 < len(ids) and ids[place + 1] not in (10, 12, 13)
            scored = scored and (flags[place + 1] or not responses_only)
            labels.append(ids[place + 1] if scored else IGNORED_LABEL)
    lengths = [corpus.tokens(document).size for document in batch.samples]
    if missing := LENGTH - len(tokens):
        lengths.append(missing)
        tokens += [11] * missing
        labels += [IGNORED_LABEL] * missing
        positions += range(missing)
    assert batch.tokens_S.tolist() == tokens
    assert batch.labels_S.tolist() == labels
    assert batch.positions_S.tolist() == positions
    assert batch.cu_seqlens.tolist() == [0, *np.cumsum(lengths).tolist()]
    assert batch.max_document == max(lengths)
    assert batch.num_loss_tokens == sum(label != IGNORED_LABEL for label in labels)
    assert batch.images.slots_K.tolist() == slots
    assert (batch.tokens_S.dtype, batch.labels_S.dtype, batch.positions_S.dtype) == (torch.int64,) * 3
    assert batch.cu_seqlens.dtype == batch.images.cu_seqlens.dtype == torch.int32
