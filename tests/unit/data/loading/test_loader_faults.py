"""Damaged images and tokens, loaders left in the middle, and what is said of a sequence."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from loader_cases import MODEL, load, stage

from megatron_apriel.data.corpus.on_disk import Corpus
from megatron_apriel.data.loading.loader import TrainingLoader
from megatron_apriel.errors import AprielError, DataError
from megatron_apriel.testing.corpora import random_pixels, write_corpus


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
        (3, -1, "sample 0 has token -1; the vocabulary has 4096"),
        (3, -(2**31), "sample 0 has token -2147483648; the vocabulary has 4096"),
        (3, 2**31 - 1, "sample 0 has token 2147483647; the vocabulary has 4096"),
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

    monkeypatch.setattr("megatron_apriel.data.loading.sequences.read_sequence", broken)
    with pytest.raises(AprielError, match=r"sequence 0 \(source 'pictures', pack \d+\) cannot be read: .*oops"):
        load(stage(corpora))


def test_damaged_response_flags_end_the_run_where_they_count(corpora, tmp_path):
    def change(content):
        content[3] = 2

    corpus = spoiled(tmp_path, "responses.bin", change)
    assert load(stage(corpora, sources=[{"corpus": corpus.path}], steps=1))
    with pytest.raises(DataError, match=r"responses\.bin has 2 for a token of document 0,"):
        load(stage(corpora, sources=[{"corpus": corpus.path, "loss": "responses"}]))
