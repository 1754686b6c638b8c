"""Batches against a slow recomputation from the corpora; layouts, resuming, held-out data, errors."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections import Counter

import numpy as np
import pytest
import torch

from megatron_apriel.architecture import Architecture, DecoderArchitecture, ProjectorArchitecture, TowerArchitecture
from megatron_apriel.batch import IGNORED_LABEL, Batch
from megatron_apriel.config.schema import StageConfig
from megatron_apriel.data.corpus import Corpus
from megatron_apriel.data.images import ImageDecoder, ImageRequest
from megatron_apriel.data.loader import TrainingLoader, ValidationLoader
from megatron_apriel.data.sources import check_tokenizer
from megatron_apriel.data.tokens import load_tokenizer, tokenizer_digest
from megatron_apriel.errors import AprielError, ConfigError, DataError
from megatron_apriel.testing.batches import owned_positions
from megatron_apriel.testing.corpora import TOKENIZER, VOCAB, random_pixels, write_corpus
from megatron_apriel.testing.tokenizers import write_small_tekken

LENGTH = 256
DECODER = DecoderArchitecture(32, 2, 2, 1, 16, 64, VOCAB)
TOWER = TowerArchitecture(16, 1, 1, 16, 32, "silu", patch_size=4, image_size=32)
MODEL = Architecture(DECODER, TOWER, ProjectorArchitecture(16, 32), image_token_id=10)


def documents(seed: int, number: int, images: bool) -> list[list]:
    generator = np.random.default_rng(seed)
    result = []
    for _ in range(number):
        document: list = [int(generator.integers(1, 60))]
        for _ in range(int(generator.integers(0, 4)) if images else 0):
            document += [random_pixels(generator, *generator.integers(1, 50, 2)), int(generator.integers(0, 9))]
        result.append(document)
    return result


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    root = tmp_path_factory.mktemp("loader")
    return {
        "text": write_corpus(root / "text", documents(0, 120, images=False), images=None),
        "pictures": write_corpus(root / "pictures", documents(1, 60, images=True)),
    }


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


def load(config: StageConfig, **placement) -> list[Batch]:
    with TrainingLoader(config, MODEL, **placement) as loader:
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
    ranks = [load(config, data_rank=rank, data_size=data_size) for rank in range(data_size)]
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
    parts = [load(config, share=share, shares=shares) for share in range(shares)]
    without = load(config, share=1, shares=shares, with_images=False)
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
    parts = [load(config, context=context, contexts=contexts) for context in range(contexts)]
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
            for chunk in part.part.chunks:
                places = owned[start : start + chunk.length]
                start += chunk.length
                begins = chunk.cu_queries.tolist()
                # A document's first query sees what stands before it in the document, and itself.
                before = chunk.cu_keys.diff() - chunk.cu_queries.diff()
                assert before.tolist() == [int(batch.positions_S[places[begin]]) for begin in begins[:-1]]
                assert chunk.first_key == places[0] - batch.positions_S[places[0]]
                assert (chunk.stop, begins[-1]) == (int(places[-1]) + 1, chunk.length)
                assert chunk.stop - chunk.first_key == chunk.cu_keys[-1]
                assert chunk.max_queries == chunk.cu_queries.diff().max()
                assert chunk.max_keys == chunk.cu_keys.diff().max()
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
        with ValidationLoader(config, MODEL, data_rank=rank, data_size=data_size) as loader:
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
    with ValidationLoader(held_out(corpora, 10**6), MODEL, with_images=False) as loader:
        samples = [(batch.source, sample) for batch in loader for sample in batch.samples]
    assert sorted(samples) == [(0, n) for n in range(120)] + [(1, n) for n in range(60)]


def test_validation_needs_a_section(corpora):
    with pytest.raises(ConfigError, match="no validation section"):
        ValidationLoader(stage(corpora), MODEL)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (dataclasses.replace(MODEL, decoder=dataclasses.replace(DECODER, vocab_size=4000)), "4096 tokens, .* 4000"),
        (dataclasses.replace(MODEL, image_token_id=9), "prepared for image token 10, the model has image token 9"),
        (
            dataclasses.replace(MODEL, tower=dataclasses.replace(TOWER, patch_size=8)),
            "prepared for patch size 4, the model has patch size 8",
        ),
        (
            dataclasses.replace(MODEL, tower=dataclasses.replace(TOWER, image_size=64)),
            "prepared for image size 32, the model has image size 64",
        ),
        (Architecture(DECODER), r"has \d+ images; the model has no vision tower"),
    ],
)
def test_a_corpus_made_for_another_model_is_refused(corpora, model, message):
    with pytest.raises(DataError, match=message):
        TrainingLoader(stage(corpora), model)


def test_a_text_model_reads_text(corpora):
    config = stage(corpora, sources=[{"corpus": corpora["text"].path}])
    with TrainingLoader(config, Architecture(DECODER)) as loader:
        batch = next(loader)
    assert batch.images.num_patches == 0 and batch.num_loss_tokens > 0


def test_corpora_of_different_tokenizers_are_refused(corpora, tmp_path):
    other = write_corpus(tmp_path / "other", [5], tokenizer=TOKENIZER.model_copy(update={"sha256": "f" * 64}))
    sources = [{"corpus": path, "weight": 0.5} for path in (corpora["text"].path, other.path)]
    with pytest.raises(DataError, match=r"other was prepared with tokenizer ffffffffffff, .*text with 000000000000"):
        TrainingLoader(stage(corpora, sources=sources), MODEL)


def test_a_corpus_without_responses_is_refused_where_the_loss_is_on_them(tmp_path):
    corpus = write_corpus(tmp_path / "plain", [9, 30], responses=False)
    with TrainingLoader(stage({}, sources=[{"corpus": corpus.path}]), MODEL):
        pass
    source = {"corpus": corpus.path, "loss": "responses", "name": "web"}
    with pytest.raises(DataError, match=r"none of its 39 tokens is part of a response(?s:.*)source 'web' to all"):
        TrainingLoader(stage({}, sources=[source]), MODEL)


def test_a_tower_cannot_learn_from_text(corpora):
    train = {"tower": 1.0, "projector": 0.5}
    with TrainingLoader(stage(corpora, train=train), MODEL):
        pass
    message = "only tower and projector would train, and none of the 1 corpora has images"
    with pytest.raises(DataError, match=message):
        TrainingLoader(stage(corpora, train=train, sources=[{"corpus": corpora["text"].path}]), MODEL)


def test_the_processor_may_ask_for_smaller_images_than_the_tower_reads(corpora, tmp_path):
    model = dataclasses.replace(MODEL, tower=dataclasses.replace(TOWER, image_size=64))
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"longest_edge": 32}, "patch_size": 4}')
    with TrainingLoader(stage(corpora), model, directory=tmp_path) as loader:
        assert next(loader).num_loss_tokens
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"longest_edge": 64}, "patch_size": 4}')
    with pytest.raises(DataError, match="prepared for image size 32, the model has image size 64"):
        TrainingLoader(stage(corpora), model, directory=tmp_path)


def test_the_models_own_tokenizer_must_have_made_the_corpora(corpora, tmp_path):
    with TrainingLoader(stage(corpora), MODEL) as loader:
        check_tokenizer(loader.sources, tmp_path)  # a model without a tokenizer cannot be asked
        write_small_tekken(tmp_path / "tekken.json", VOCAB)
        with pytest.raises(DataError, match=r"text was prepared with tokenizer 000000000000, the model in .* has "):
            check_tokenizer(loader.sources, tmp_path)
        digest = tokenizer_digest(load_tokenizer(tmp_path))
        record = TOKENIZER.model_copy(update={"sha256": digest})
        other = write_corpus(tmp_path / "other", [5], tokenizer=record)
    with TrainingLoader(stage({}, sources=[{"corpus": other.path}]), MODEL) as loader:
        check_tokenizer(loader.sources, tmp_path)


def test_the_fingerprint_tells_documents_apart_but_not_places(corpora, tmp_path):
    first, again = (write_corpus(tmp_path / name, [9, [5, np.zeros((8, 8, 3), np.uint8)]]) for name in "ab")
    assert first.fingerprint == again.fingerprint
    others = ([9, [5, np.zeros((4, 8, 3), np.uint8)]], [5, [9, np.zeros((8, 8, 3), np.uint8)]])
    for number, documents_ in enumerate(others):
        assert write_corpus(tmp_path / str(number), documents_).fingerprint != first.fingerprint


def test_steps_that_do_not_divide_are_refused(corpora):
    with pytest.raises(ConfigError, match=r"makes 4 sequences of 256 per step, which 3 data-parallel .*\n.*\n.*768"):
        TrainingLoader(stage(corpora), MODEL, data_size=3)
    with pytest.raises(DataError, match="a run of 24 sequences cannot go on at sequence 25"):
        TrainingLoader(stage(corpora), MODEL, first_sequence=25)


def test_exhausted_sources_are_refused_before_the_run(corpora):
    sources = [{"corpus": corpora["text"].path, "epochs": 1}]
    with pytest.raises(DataError, match=r"source 'text' has [\d,]+ tokens in epochs=1; the run needs"):
        TrainingLoader(stage(corpora, sources=sources, steps=50), MODEL)


def test_left_out_documents_are_logged(corpora, tmp_path, caplog):
    corpus = write_corpus(tmp_path / "long", [300, 20])
    sources = [{"corpus": corpus.path, "long_documents": "drop"}]
    with caplog.at_level(logging.INFO), TrainingLoader(stage(corpora, sources=sources), MODEL):
        pass
    assert "1 of 2 documents are longer than the sequence of 256 tokens (long_documents: drop)" in caplog.text
    assert "1 documents were dropped, 300 tokens in all left out" in caplog.text
    assert "2 documents, 20 tokens, 1 sequences per epoch, 92.19% padding" in caplog.text


def spoiled(tmp_path, name: str, change) -> Corpus:
    """A corpus with damage inside a file of the right size."""
    generator = np.random.default_rng(0)
    corpus = write_corpus(tmp_path / "spoiled", [[20, random_pixels(generator, 20, 20), 5], [7]])
    file = corpus.path / name
    content = bytearray(file.read_bytes())
    change(content)
    file.write_bytes(content)
    return corpus


def test_damaged_images_end_the_run_or_are_skipped(corpora, tmp_path, caplog):
    def change(content):
        content[60:200] = bytes(140)

    corpus = spoiled(tmp_path, "images.bin", change)
    sources = [{"corpus": corpus.path}]
    with pytest.raises(DataError, match=r"sequence 0: .*/spoiled, sample 0, image 0 cannot be decoded"):
        load(stage(corpora, sources=sources))
    skipping = {"device": "cpu", "threads": 1, "damaged": "skip"}
    batches = load(stage(corpora, sources=sources, images=skipping, steps=1))
    assert len(batches) == 4 and "spoiled, sample 0, image 0 cannot be decoded" in caplog.text
    assert batches[0].images.num_patches == 25 and not batches[0].images.patches_PC.any()


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, 5000, "sample 0 has token 5000; the vocabulary has 4096"),
        (0, 10, "sample 0 has 26 image tokens, its images take 25"),
        (20, 30, "sample 0 has 24 image tokens, its images take 25"),
    ],
)
def test_damaged_tokens_end_the_run(corpora, tmp_path, place, value, message):
    def change(content):
        content[4 * place : 4 * place + 4] = np.int32(value).tobytes()

    corpus = spoiled(tmp_path, "tokens.bin", change)
    with pytest.raises(DataError, match=message):
        load(stage(corpora, sources=[{"corpus": corpus.path}]))


def test_a_sequence_can_be_described(corpora):
    with TrainingLoader(stage(corpora), MODEL) as loader:
        for batch in loader:
            described = loader.describe(batch.sequence)
            assert described["samples"] == list(batch.samples)
            assert described["source"] == ["text", "pictures"][batch.source]
            assert described["sequence"] == batch.sequence


def threads() -> int:
    return sum(thread.name == "data-prefetch" for thread in threading.enumerate())


def test_a_loader_left_in_the_middle_stops_its_thread(corpora):
    with TrainingLoader(stage(corpora, steps=100), MODEL) as loader:
        next(loader)
        assert threads() == 1
    assert threads() == 0
    with pytest.raises(StopIteration):
        next(loader)


def test_defects_name_the_sequence(corpora, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("megatron_apriel.data.sequences.read_sequence", broken)
    with pytest.raises(AprielError, match=r"sequence 0 \(source 'pictures', pack \d+\) cannot be read: .*oops"):
        load(stage(corpora))
