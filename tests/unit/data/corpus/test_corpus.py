"""A corpus gives back what was written, and every damage to its files is found on opening."""

from __future__ import annotations

import json

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from megatron_apriel.data.corpus.format import CorpusManifest, StoredImage, image_block
from megatron_apriel.data.corpus.on_disk import Corpus, CorpusWriter
from megatron_apriel.errors import DataError
from megatron_apriel.testing.corpora import IMAGES, TOKENIZER, encode, random_pixels

FILES = ("tokens.bin", "tokens.idx", "responses.bin", "images.bin", "images.npy", "documents.npy")


def test_documents_come_back(tmp_path):
    generator = np.random.default_rng(0)
    documents = [generator.integers(14, 4096, length, dtype=np.int32) for length in (1, 7, 300, 2)]
    flags = [generator.random(tokens.size) < 0.5 for tokens in documents]
    with CorpusWriter(tmp_path, CorpusManifest(tokenizer=TOKENIZER)) as writer:
        for tokens, responses in zip(documents, flags, strict=True):
            writer.add(tokens, responses)
        writer.close({"unreadable": 3})
    corpus = Corpus.open(tmp_path)
    assert len(corpus) == 4 and corpus.manifest.problems == {"unreadable": 3}
    assert corpus.manifest.counts.tokens == 310
    assert corpus.manifest.counts.response_tokens == sum(int(responses.sum()) for responses in flags)
    for number, (tokens, responses) in enumerate(zip(documents, flags, strict=True)):
        assert np.array_equal(corpus.tokens(number), tokens)
        assert np.array_equal(corpus.responses(number), responses)
        assert corpus.responses(number).dtype == bool
    assert np.array_equal(corpus.tokens(2, 10, 5), documents[2][10:15])
    assert np.array_equal(corpus.responses(2, 10, 5), flags[2][10:15])
    megatron = IndexedDataset(str(tmp_path / "tokens"))
    assert [megatron[number].tolist() for number in range(4)] == [tokens.tolist() for tokens in documents]
    assert megatron.document_indices.tolist() == [0, 1, 2, 3, 4]


def test_images_come_back(corpus):
    assert corpus.documents["images"].tolist() == [0, 1, 2, 0]
    assert corpus.images(0).size == 0 and corpus.images(3).size == 0
    row = corpus.images(1)[0]
    assert (row["rows"], row["columns"], row["start"]) == (3, 4, 3)  # patches of 4 pixels
    expected = encode(random_pixels(np.random.default_rng(0), 9, 13))
    assert corpus.image_bytes(row).tobytes() == expected
    ids = corpus.tokens(1)[3 : 3 + 15].reshape(3, 5)
    assert ids.tolist() == [[10] * 4 + [12], [10] * 4 + [12], [10] * 4 + [13]]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["truncated", "longer", "absent"])
def test_files_of_another_size_are_named(corpus, name, damage):
    file = corpus.path / name
    content = file.read_bytes()
    if damage == "absent":
        file.unlink()
        found = "is missing"
    else:
        file.write_bytes(content[:-1] if damage == "truncated" else content + b"x")
        found = f"has {len(content) + (1 if damage == 'longer' else -1)} bytes"
    with pytest.raises(DataError, match=rf"{name} {found}; its manifest says {len(content)}"):
        Corpus.open(corpus.path)


def changed(corpus, name: str, change) -> None:
    table = np.load(corpus.path / name)
    change(table)
    np.save(corpus.path / name, table)


@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("documents.npy", "tokens", 6),
        ("documents.npy", "images", 1),
        ("documents.npy", "responses", 0),
        ("documents.npy", "first_image", 1),
        ("images.npy", "document", 2),
        ("images.npy", "offset", 10**9),
        ("images.npy", "size", 0),
        ("images.npy", "rows", 0),
        ("images.npy", "columns", 1000),
        ("images.npy", "start", -1),
        ("images.npy", "height", 0),
    ],
)
def test_tables_that_disagree_are_named(corpus, name, column, value):
    def change(table):
        table[column][0] = value

    changed(corpus, name, change)
    with pytest.raises(DataError, match=name):
        Corpus.open(corpus.path)


def test_lengths_exchanged_between_documents_are_found(corpus):
    def change(table):
        table["tokens"][[0, 1]] += [1, -1]  # the sum stays

    changed(corpus, "documents.npy", change)
    with pytest.raises(DataError, match=r"tokens\.idx disagrees with documents\.npy"):
        Corpus.open(corpus.path)


def test_a_table_that_is_no_table(corpus):
    file = corpus.path / "images.npy"
    file.write_bytes(b"?" * file.stat().st_size)
    with pytest.raises(DataError, match=r"images\.npy cannot be read"):
        Corpus.open(corpus.path)


def test_an_index_of_another_kind(corpus):
    file = corpus.path / "tokens.idx"
    file.write_bytes(b"MMIDIDX\x00\x00" + b"\x02" + file.read_bytes()[10:])
    with pytest.raises(DataError, match=r"tokens\.idx begins with"):
        Corpus.open(corpus.path)


def rewritten(corpus, **changes) -> None:
    file = corpus.path / "corpus.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_manifests(corpus, tmp_path):
    with pytest.raises(DataError, match=r"is not a prepared corpus: it has no corpus\.json"):
        Corpus.open(tmp_path)
    rewritten(corpus, version=99)
    with pytest.raises(DataError, match="has format version 99; this program reads version 1"):
        Corpus.open(corpus.path)
    rewritten(corpus, version=99, audio={"rate": 16000}, images="elsewhere")
    with pytest.raises(DataError, match="has format version 99; this program reads version 1"):
        Corpus.open(corpus.path)
    corpus_file = json.loads((corpus.path / "corpus.json").read_text())
    del corpus_file["audio"]
    (corpus.path / "corpus.json").write_text(json.dumps(corpus_file | {"images": None}))
    rewritten(corpus, version=1, tokenizer={})
    with pytest.raises(DataError, match=r"corpus\.json is damaged: tokenizer\.sha256: Field required"):
        Corpus.open(corpus.path)
    (corpus.path / "corpus.json").write_text("{")
    with pytest.raises(DataError, match=r"corpus\.json is damaged"):
        Corpus.open(corpus.path)


def test_a_writer_that_was_not_closed_leaves_no_corpus(tmp_path):
    with pytest.raises(RuntimeError, match="stopped"), CorpusWriter(tmp_path, CorpusManifest(tokenizer=TOKENIZER)) as w:
        w.add(np.array([1, 2], np.int32), np.array([True, False]))
        raise RuntimeError("stopped")
    with pytest.raises(DataError, match="not a prepared corpus"):
        Corpus.open(tmp_path)


@pytest.mark.parametrize(
    ("tokens", "images", "message"),
    [
        ([], [], "non-empty"),
        ([1, 4096], [], "token 4096 is outside the tokenizer's vocabulary of 4096"),
        ([-1], [], "token -1 is outside"),
        ([1, 10, 5], [], "holds 1 image token; its 0 images would have 0"),
        ([5, "image"], [(8, 8, 2, 2, 0)], "its 6 tokens do not stand at 0"),
        (["image"], [(8, 8, 2, 3, 0)], "grid 2 x 3 where the rule gives 2 x 2"),
        (["image", "image"], [(8, 8, 2, 2, 0)], "holds 8 image tokens; its 1 image would have 4"),
        (["image", "image"], [(8, 8, 2, 2, 0), (8, 8, 2, 2, 0)], "images in order"),
    ],
)
def test_documents_that_are_refused(tmp_path, tokens, images, message):
    parts = [image_block(2, 2, IMAGES) if part == "image" else np.array([part]) for part in tokens]
    ids = np.concatenate([np.zeros(0, np.int32), *parts]).astype(np.int32)
    with (
        CorpusWriter(tmp_path, CorpusManifest(tokenizer=TOKENIZER, images=IMAGES)) as writer,
        pytest.raises(DataError, match=message),
    ):
        writer.add(ids, np.zeros(ids.size, bool), [StoredImage(b"x", *numbers) for numbers in images])


def test_a_corpus_without_documents_is_refused(tmp_path):
    with (
        CorpusWriter(tmp_path, CorpusManifest(tokenizer=TOKENIZER)) as writer,
        pytest.raises(DataError, match="no document was left to write"),
    ):
        writer.close()
