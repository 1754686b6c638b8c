"""Held-out data: the same sequences every time, dealt out over ranks."""

from __future__ import annotations

import pytest
from loader_cases import LENGTH, MODEL, assert_same, stage

from megatron_apriel.batch import IGNORED_LABEL
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.data.loading.loader import ValidationLoader
from megatron_apriel.errors import ConfigError
from megatron_apriel.parallel.data_place import DataPlace


def held_out(corpora, sequences: int, **changes) -> StageConfig:
    sources = [{"corpus": corpora[name].path} for name in ("text", "pictures")]
    return stage(corpora, validation={"corpora": sources, "sequences": sequences}, **changes)


@pytest.mark.parametrize("data_size", [1, 2, 3, 4])
def test_held_out_sequences_are_dealt_out_and_filled_up(corpora, data_size):
    config = held_out(corpora, 5)
    with ValidationLoader(config, MODEL) as loader:
        expected = list(loader)
    assert [batch.source for batch in expected] == [0] * 5 + [1] * 5
    ranks = []
    for rank in range(data_size):
        with ValidationLoader(config, MODEL, DataPlace(data_rank=rank, data_size=data_size)) as loader:
            ranks.append(list(loader))
            assert len(ranks[-1]) == loader.micro_batches == -(-10 // data_size)
    dealt = [batch for micro in zip(*ranks, strict=True) for batch in micro]
    for one, two in zip(dealt, expected, strict=False):
        assert_same(one, two)
    for filler in dealt[10:]:
        assert filler.num_loss_tokens == 0 and (filler.labels_S == IGNORED_LABEL).all()
        assert filler.images.num_patches == 0 and filler.cu_seqlens.tolist() == [0, LENGTH]


def test_held_out_sequences_are_the_same_every_time_and_for_every_seed(corpora):
    with ValidationLoader(held_out(corpora, 4), MODEL) as loader:
        first = list(loader)
        next(iter(loader))  # a pass left in the middle
        again = list(loader)
    with ValidationLoader(held_out(corpora, 4, seed=99), MODEL) as loader:
        other_seed = list(loader)
    for one, two, three in zip(first, again, other_seed, strict=True):
        assert_same(one, two)
        assert_same(one, three)


def test_a_small_held_out_corpus_gives_what_it_has(corpora):
    with ValidationLoader(held_out(corpora, 10**6), MODEL, DataPlace(with_images=False)) as loader:
        samples = [(batch.source, sample) for batch in loader for sample in batch.samples]
    assert sorted(samples) == [(0, n) for n in range(120)] + [(1, n) for n in range(60)]


def test_validation_needs_a_section(corpora):
    with pytest.raises(ConfigError, match="no validation section"):
        ValidationLoader(stage(corpora), MODEL)
