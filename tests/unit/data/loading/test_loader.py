"""Batches against a slow recomputation from the corpora; the same for any layout, and from any sequence on."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from loader_cases import LENGTH, MODEL, assert_same, load, slow_batch, stage

from megatron_apriel.batch import IGNORED_LABEL
from megatron_apriel.data.loading.image_headers import ImageRequest
from megatron_apriel.data.loading.images import ImageDecoder
from megatron_apriel.data.loading.loader import TrainingLoader
from megatron_apriel.parallel.data_place import DataPlace
from megatron_apriel.testing.batches import owned_positions
from megatron_apriel.testing.corpora import random_pixels, write_corpus


def test_batches_equal_a_slow_recomputation(corpora):
    batches = load(stage(corpora))
    assert [batch.sequence for batch in batches] == list(range(24))
    seen = Counter()
    with ImageDecoder(4, device="cpu", threads=1) as decoder:
        for batch in batches:
            corpus = corpora["pictures" if batch.source else "text"]
            slow_batch(corpus, batch, responses_only=batch.source == 1)
            seen[batch.source] += 1
            rows = [row for document in batch.samples for row in corpus.images(document)]
            assert batch.images.share_sizes == (sum(int(row["rows"] * row["columns"]) for row in rows),)
            if not rows:
                assert batch.images.patches_PC.shape == (0, 48) and batch.images.max_patches == 0
                continue
            sizes = [int(row["rows"] * row["columns"]) for row in rows]
            images = [
                ImageRequest(corpus.image_bytes(r), *(int(r[c]) for c in ("height", "width", "rows", "columns")), "")
                for r in rows
            ]
            assert torch.equal(batch.images.patches_PC, torch.cat([decoder.patches([image]) for image in images]))
            places = [(y, x) for row in rows for y in range(row["rows"]) for x in range(row["columns"])]
            assert list(zip(batch.images.rows_P.tolist(), batch.images.columns_P.tolist(), strict=True)) == places
            assert batch.images.cu_seqlens.tolist() == [0, *np.cumsum(sizes).tolist()]
            assert batch.images.max_patches == max(sizes)
    assert seen[0] > 5 and seen[1] > 5


def test_a_pass_over_a_corpus_sees_every_document_once(corpora):
    one = [{"corpus": corpora["pictures"].path, "weight": 1}]
    with TrainingLoader(stage(corpora, sources=one), MODEL) as loader:
        packs = loader._reader.sources[0].plan.num_packs
    batches = load(stage(corpora, sources=one, steps=packs, per_step=2))
    for epoch in (batches[:packs], batches[packs:]):
        assert sorted(s for batch in epoch for s in batch.samples) == list(range(60))
    assert [b.samples for b in batches[:packs]] != [b.samples for b in batches[packs:]]


@pytest.mark.parametrize("data_size", [2, 4])
def test_batches_are_the_same_for_any_number_of_data_ranks(corpora, data_size):
    config = stage(corpora)
    expected = load(config)
    ranks = [load(config, DataPlace(data_rank=rank, data_size=data_size)) for rank in range(data_size)]
    for sequence, batch in enumerate(expected):
        step, place = divmod(sequence, config.sequences_per_step)
        micro, rank = divmod(place, data_size)
        assert_same(ranks[rank][step * (config.sequences_per_step // data_size) + micro], batch)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("first", [4, 7, 23, 24])
def test_resuming_at_any_sequence_gives_the_rest(corpora, first, threads):
    config = stage(corpora)
    resumed = load(stage(corpora, images={"device": "cpu", "threads": threads}), first_sequence=first)
    expected = load(config)[first:]
    assert len(resumed) == len(expected)
    for one, two in zip(resumed, expected, strict=True):
        assert_same(one, two)


@pytest.mark.parametrize("shares", [2, 3])
def test_shares_together_hold_every_image_once(corpora, shares):
    config = stage(corpora, steps=3)
    whole = load(config)
    parts = [load(config, DataPlace(share=share, shares=shares)) for share in range(shares)]
    without = load(config, DataPlace(share=1, shares=shares, with_images=False))
    for number, batch in enumerate(whole):
        by_slot = dict(zip(batch.images.slots_K.tolist(), batch.images.patches_PC, strict=True))
        grid = zip(batch.images.rows_P.tolist(), batch.images.columns_P.tolist(), strict=True)
        place_of = dict(zip(batch.images.slots_K.tolist(), grid, strict=True))
        mine = [part[number] for part in parts]
        sizes = mine[0].images.share_sizes
        offsets = [0, *np.cumsum(sizes).tolist()]
        for share, part in enumerate(mine):
            assert torch.equal(part.images.slots_K, mine[0].images.slots_K) and part.images.share_sizes == sizes
            own = part.images.slots_K[offsets[share] : offsets[share + 1]].tolist()
            assert len(own) == len(part.images.patches_PC) == part.images.cu_seqlens[-1]
            for slot, patch, row, column in zip(
                own, part.images.patches_PC, part.images.rows_P, part.images.columns_P, strict=True
            ):
                assert torch.equal(by_slot.pop(slot), patch) and place_of[slot] == (row, column)
            assert torch.equal(part.tokens_S, batch.tokens_S)
        assert not by_slot
        bare = without[number].images
        assert torch.equal(bare.slots_K, mine[0].images.slots_K) and bare.share_sizes == sizes
        assert bare.patches_PC.shape == (0, 48) and bare.cu_seqlens.tolist() == [0] and bare.max_patches == 0


@pytest.mark.parametrize("contexts", [2, 4])
def test_context_parts_together_are_the_sequence(corpora, contexts):
    config = stage(corpora, steps=3)
    whole = load(config)
    parts = [load(config, DataPlace(context=context, contexts=contexts)) for context in range(contexts)]
    with_image = 0
    for number, batch in enumerate(whole):
        mine = [part[number] for part in parts]
        filled = []
        for context, part in enumerate(mine):
            owned = torch.tensor(owned_positions(LENGTH, context, contexts))
            for name in ("tokens_S", "labels_S", "positions_S"):
                assert torch.equal(getattr(part, name), getattr(batch, name)[owned])
            assert part.num_loss_tokens == int((part.labels_S != IGNORED_LABEL).sum())
            assert torch.equal(part.cu_seqlens, batch.cu_seqlens)
            assert torch.equal(owned[part.part.slots_L], batch.images.slots_K[part.part.features_L])
            filled += part.part.features_L.tolist()
            start = 0
            for block in part.part.blocks:
                places = owned[start : start + block.length]
                start += block.length
                begins = block.cu_queries.tolist()
                # A document's first query sees what stands before it in the document, and itself.
                before = block.cu_keys.diff() - block.cu_queries.diff()
                assert before.tolist() == [int(batch.positions_S[places[begin]]) for begin in begins[:-1]]
                assert block.first_key == places[0] - batch.positions_S[places[0]]
                assert (block.stop, begins[-1]) == (int(places[-1]) + 1, block.length)
                assert block.stop - block.first_key == block.cu_keys[-1]
                assert block.max_queries == block.cu_queries.diff().max()
                assert block.max_keys == block.cu_keys.diff().max()
        assert sorted(filled) == list(range(batch.images.num_patches))
        with_image += bool(filled)
        assert sum(part.num_loss_tokens for part in mine) == batch.num_loss_tokens
    assert with_image


def test_split_documents_become_documents_of_their_own(corpora, tmp_path):
    generator = np.random.default_rng(5)
    long = [[100, random_pixels(generator, 32, 32), 90, random_pixels(generator, 32, 32), 300], 40]
    corpus = write_corpus(tmp_path / "long", long)
    config = stage(corpora, sources=[{"corpus": corpus.path, "long_documents": "split"}], steps=1, per_step=3)
    batches = load(config)
    tokens = Counter(t for batch in batches for t in batch.tokens_S.tolist() if t != 11)
    whole = Counter(t for document in range(2) for t in corpus.tokens(document).tolist())
    assert tokens == whole
    assert sum(batch.images.num_patches for batch in batches) == 128
    for batch in batches:
        assert (batch.tokens_S[batch.images.slots_K] == 10).all()
        assert (batch.positions_S[batch.cu_seqlens[:-1].long()] == 0).all()
        last = batch.cu_seqlens[1:].long() - 1
        assert (batch.labels_S[last] == IGNORED_LABEL).all()
