"""Corpora that do not fit the model, the stage or each other are refused before the run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging

import numpy as np
import pytest
from loader_cases import DECODER, MODEL, TOWER, stage

from megatron_apriel.data.corpus.chat import ALIKE_TEMPLATES, exported_chat_template
from megatron_apriel.data.corpus.on_disk import Corpus
from megatron_apriel.data.corpus.tokens import load_tokenizer, tokenizer_digest
from megatron_apriel.data.loading.loader import TrainingLoader
from megatron_apriel.data.loading.sources import check_tokenizer
from megatron_apriel.errors import ConfigError, DataError
from megatron_apriel.formats.architecture import Architecture
from megatron_apriel.parallel.data_place import DataPlace
from megatron_apriel.testing.corpora import TOKENIZER, VOCAB, write_corpus
from megatron_apriel.testing.tokenizers import write_small_tekken


def manifests(loader):
    return {source.corpus.path: source.corpus.manifest for source in loader.sources}


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
    message = r"other was prepared with tokenizer ffffffffffff, .*text with tokenizer 000000000000"
    with pytest.raises(DataError, match=message):
        TrainingLoader(stage(corpora, sources=sources), MODEL)


def test_conversations_rendered_by_another_template_are_refused(tmp_path):
    """Plain documents were not rendered, and corpora of early versions do not say."""
    corpora_, now = {}, hashlib.sha256(exported_chat_template().encode()).hexdigest()
    for name, digest in (("now", now), ("early", ""), ("alike", min(ALIKE_TEMPLATES)), ("other", "e" * 64)):
        corpora_[name] = write_corpus(tmp_path / name, [40, 30]).path
        corpora_[f"plain {name}"] = write_corpus(tmp_path / f"plain_{name}", [40, 30], responses=False).path
        for path in (corpora_[name], corpora_[f"plain {name}"]):
            manifest = json.loads((path / "corpus.json").read_text())
            (path / "corpus.json").write_text(json.dumps({**manifest, "chat_template": digest}))
    for name, path in corpora_.items():
        config = stage({}, sources=[{"corpus": path}])
        if name == "other":
            message = rf"rendered by chat template e{{12}}, and this version of the project exports {now[:12]}"
            with pytest.raises(DataError, match=message):
                TrainingLoader(config, MODEL)
        else:
            with TrainingLoader(config, MODEL):
                pass


def test_a_corpus_without_responses_is_refused_where_the_loss_is_on_them(tmp_path):
    corpus = write_corpus(tmp_path / "plain", [9, 30], responses=False)
    with TrainingLoader(stage({}, sources=[{"corpus": corpus.path}]), MODEL):
        pass
    source = {"corpus": corpus.path, "loss": "responses", "name": "web"}
    with pytest.raises(DataError, match=r"none of its 39 tokens is part of a response(?s:.*)source 'web' to all"):
        TrainingLoader(stage({}, sources=[source]), MODEL)


def test_prompts_that_fill_the_sequences_are_refused_where_the_loss_is_on_responses(tmp_path):
    """The second half of a document is its response."""
    length = stage({}, sources=[{"corpus": tmp_path}]).sequence_length
    corpus = write_corpus(tmp_path / "long", [2 * length, 3 * length])
    source = {"corpus": corpus.path, "loss": "responses", "long_documents": "truncate", "name": "web"}
    message = (
        rf"none of its 2 documents has a token to learn in sequences of {length} tokens(?s:.*)documents of source 'web'"
    )
    for without in ("error", "drop"):
        with pytest.raises(DataError, match=message):
            TrainingLoader(stage({}, sources=[{**source, "without_targets": without}]), MODEL)
    for change in ({"long_documents": "split"}, {"loss": "all"}):
        with TrainingLoader(stage({}, sources=[{**source, **change}]), MODEL) as loader:
            assert next(loader).num_loss_tokens > 0
    # One token behind the prompt is enough.
    longer = write_corpus(tmp_path / "longer", [2 * length - 2])
    with TrainingLoader(stage({}, sources=[{**source, "corpus": longer.path}]), MODEL):
        pass


def test_documents_without_targets_are_dropped_or_refused_as_set(tmp_path, caplog):
    """The second half of a document is its response: of the first and the third nothing is left of it."""
    length = stage({}, sources=[{"corpus": tmp_path}]).sequence_length
    corpus = write_corpus(tmp_path / "some", [2 * length, 2 * length - 2, 3 * length, 10])
    source = {"corpus": corpus.path, "loss": "responses", "long_documents": "truncate", "name": "web"}
    with pytest.raises(DataError) as caught:
        TrainingLoader(stage({}, sources=[source]), MODEL)
    for words in (
        f"2 of 4 documents have no token to learn, the first is document 0, in sequences of {length} tokens",
        "What was to be learned in 2 of them is cut off",
        "set without_targets=drop",
    ):
        assert words in str(caught.value)
    with (
        caplog.at_level(logging.WARNING),
        TrainingLoader(stage({}, sources=[source | {"without_targets": "drop"}]), MODEL) as loader,
    ):
        assert {sample for batch in loader for sample in batch.samples} == {1, 3}
    assert "source 'web': 2 of 4 documents have no token to learn" in caplog.text
    lost = length + (length - 2) + length * 3 // 2
    assert f"source 'web': 3 of 4 documents lost {lost} tokens of responses" in caplog.text


def test_a_tower_cannot_learn_from_text(corpora):
    train = {"tower": 1.0, "projector": 0.5}
    with TrainingLoader(stage(corpora, train=train), MODEL):
        pass
    sources = [{"corpus": corpora["text"].path}]
    for parts in ({}, {"decoder": 1.0}):
        message = "^tower and projector would train, and none of the 1 corpora has images"
        with pytest.raises(DataError, match=message):
            TrainingLoader(stage(corpora, train=train | parts, sources=sources), MODEL)
        with TrainingLoader(stage(corpora, train=train | parts, sources=sources, images={"required": False}), MODEL):
            pass


def test_a_projector_cannot_learn_from_images_that_are_cut_off(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    corpus = write_corpus(tmp_path / "long", [[300, pixels, 5], 20])
    for how, left in (("split", True), ("truncate", False), ("drop", False)):
        source = {"corpus": corpus.path, "long_documents": how}
        config = stage({}, train={"projector": 1.0, "decoder": 1.0}, sources=[source])
        if left:
            with TrainingLoader(config, MODEL):
                continue
        with pytest.raises(DataError, match="has images in its sequences: its 1 are cut off or dropped"):
            TrainingLoader(config, MODEL)


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
        check_tokenizer(manifests(loader), tmp_path)  # a model without a tokenizer cannot be asked
        write_small_tekken(tmp_path / "tekken.json", VOCAB)
        with pytest.raises(DataError, match=r"text was prepared with tokenizer 000000000000, the model in .* has "):
            check_tokenizer(manifests(loader), tmp_path)
        digest = tokenizer_digest(load_tokenizer(tmp_path))
        record = TOKENIZER.model_copy(update={"sha256": digest})
        other = write_corpus(tmp_path / "other", [5], tokenizer=record)
    with TrainingLoader(stage({}, sources=[{"corpus": other.path}]), MODEL) as loader:
        check_tokenizer(manifests(loader), tmp_path)
        ended = write_corpus(tmp_path / "ended", [5], tokenizer=record.model_copy(update={"eos_id": 3}))
    with (
        TrainingLoader(stage({}, sources=[{"corpus": ended.path}]), MODEL) as loader,
        pytest.raises(DataError, match="ended: a document ends with token 3, with 2 by the tokenizer of the model"),
    ):
        check_tokenizer(manifests(loader), tmp_path)


def test_the_fingerprint_tells_documents_apart_but_not_places(corpora, tmp_path):
    first, again = (write_corpus(tmp_path / name, [9, [5, np.zeros((8, 8, 3), np.uint8)]]) for name in "ab")
    assert first.fingerprint == again.fingerprint
    others = ([9, [5, np.zeros((4, 8, 3), np.uint8)]], [5, [9, np.zeros((8, 8, 3), np.uint8)]])
    for number, documents_ in enumerate(others):
        assert write_corpus(tmp_path / str(number), documents_).fingerprint != first.fingerprint


def test_the_fingerprint_is_that_of_versions_that_did_not_name_word_patterns(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", [9, 30])
    manifest = json.loads((corpus.path / "corpus.json").read_text())
    del manifest["tokenizer"]["faulty_words"], manifest["chat_template"]
    (corpus.path / "corpus.json").write_text(json.dumps(manifest))
    assert Corpus.open(corpus.path).fingerprint == corpus.fingerprint
    kept = {name: manifest[name] for name in ("tokenizer", "images", "counts", "files")}
    digest = hashlib.sha256(json.dumps(kept, separators=(",", ":")).encode())
    for table in (corpus.documents, corpus.image_rows):
        digest.update(np.ascontiguousarray(table).tobytes())
    assert corpus.fingerprint == digest.hexdigest()[:32]


def test_steps_that_do_not_divide_are_refused(corpora):
    with pytest.raises(ConfigError, match=r"makes 4 sequences of 256 per step, which 3 data-parallel .*\n.*\n.*768"):
        TrainingLoader(stage(corpora), MODEL, DataPlace(data_size=3))
    with pytest.raises(DataError, match="a run of 24 sequences cannot continue at sequence 25"):
        TrainingLoader(stage(corpora), MODEL, first_sequence=25)


def test_exhausted_sources_are_refused_before_the_run(corpora):
    sources = [{"corpus": corpora["text"].path, "max_epochs": 1}]
    with pytest.raises(DataError, match=r"source 'text' has [\d,]+ tokens in max_epochs=1; the run needs"):
        TrainingLoader(stage(corpora, sources=sources, steps=50), MODEL)


def test_left_out_documents_are_logged(corpora, tmp_path, caplog):
    corpus = write_corpus(tmp_path / "long", [300, 20])
    sources = [{"corpus": corpus.path, "long_documents": "drop"}]
    with caplog.at_level(logging.WARNING), TrainingLoader(stage(corpora, sources=sources), MODEL):
        pass
    assert "1 of 2 documents is longer than the sequence of 256 tokens (long_documents: drop)" in caplog.text
    assert "1 document was dropped, 300 tokens in all left out" in caplog.text
