"""--held-out of tools/prepare_data.py: which documents, and that nothing but their content decides it."""

import hashlib
import json

import pytest
from PIL import Image

from megatron_apriel.data.corpus.on_disk import Corpus
from megatron_apriel.data.corpus.prepare import PrepareOptions, prepare
from megatron_apriel.errors import DataError

SHARE = 0.25


def write(path, records) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def sides(tmp_path, model, name, inputs, **options) -> tuple[list[str], list[str]]:
    """Texts of the documents to train on and of the held-out ones, in order."""
    from megatron_apriel.data.corpus.tokens import load_tokenizer

    prepare(tmp_path / name, inputs, model, PrepareOptions(held_out=SHARE, **options))
    corpora = Corpus.open(tmp_path / name), Corpus.open(tmp_path / f"{name}-held-out")
    tokenizer = load_tokenizer(model)
    train, kept = ([tokenizer.decode(corpus.tokens(one)) for one in range(len(corpus))] for corpus in corpora)
    return train, kept


@pytest.fixture
def texts() -> list[dict]:
    return [{"text": f"Sentence number {number}."} for number in range(200)]


def test_the_stated_rule(texts, model, tmp_path):
    """The first 64 bits of SHA-256 over the SHA-256 of the text, as docs/data.md says, computed here again."""
    write(tmp_path / "a.jsonl", texts)
    train, kept = sides(tmp_path, model, "out", [tmp_path / "a.jsonl"])
    expected = []
    for record in texts:
        number = hashlib.sha256(hashlib.sha256(record["text"].encode()).digest()).hexdigest()[:16]
        if int(number, 16) < SHARE * 2**64:
            expected.append(f"<s>{record['text']}</s>")
    assert kept == expected
    assert len(train) + len(kept) == len(texts) and not set(train) & set(kept)


def test_order_workers_and_added_files_change_nothing(texts, model, tmp_path):
    write(tmp_path / "a.jsonl", texts)
    write(tmp_path / "b.jsonl", texts[::-1])
    write(tmp_path / "c.jsonl", [{"text": f"Another {number}."} for number in range(100)])
    first = sides(tmp_path, model, "first", [tmp_path / "a.jsonl"])
    for name, inputs, workers in (
        ("reversed", ["b.jsonl"], 1),
        ("workers", ["a.jsonl"], 3),
        ("added", ["c.jsonl", "a.jsonl"], 1),
    ):
        other = sides(tmp_path, model, name, [tmp_path / one for one in inputs], workers=workers)
        for before, after in zip(first, other, strict=True):
            assert set(before) <= set(after)


def test_copies_fall_on_one_side_in_whatever_form(model, tmp_path):
    """The same conversation as messages and as conversations, its picture by a path, twice; the loss is not content."""
    for number in range(30):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / f"{number}.png")
    records = []
    for number in range(30):
        answer = f"Red {number // 2}."
        turns = [("user", "Hello"), ("assistant", "Hi."), ("user", "<image>Colour?"), ("assistant", answer)]
        openai = [{"role": role, "content": text} for role, text in turns]
        unlearned = [openai[0], {**openai[1], "weight": 0}, *openai[2:]]
        llava = [{"from": {"user": "human", "assistant": "gpt"}[role], "value": text} for role, text in turns]
        records.append({"messages": openai, "images": [f"{number}.png"]})
        records.append({"conversations": llava, "image": f"{number}.png"})
        records.append({"messages": unlearned, "images": [f"{number}.png"]})
    write(tmp_path / "m.jsonl", [record for record in records if "messages" in record])
    write(tmp_path / "c.jsonl", [record for record in records if "conversations" in record])
    prepare(tmp_path / "out", [tmp_path / "m.jsonl", tmp_path / "c.jsonl"], model, PrepareOptions(held_out=SHARE))
    pictures = []
    for name in ("out", "out-held-out"):
        corpus = Corpus.open(tmp_path / name)
        pictures.append([corpus.image_bytes(row).tobytes() for row in corpus.image_rows])
        assert corpus.manifest.part
    train, kept = pictures
    assert kept and not set(train) & set(kept)
    assert all(side.count(one) == 3 for side in pictures for one in side)


def test_images_decide_with_the_text(model, tmp_path):
    for number in range(40):
        Image.new("RGB", (32, 32), (number, 0, 0)).save(tmp_path / f"{number}.png")
    write(tmp_path / "a.jsonl", [{"image": f"{number}.png", "caption": "A square."} for number in range(40)])
    prepare(tmp_path / "out", [tmp_path / "a.jsonl"], model, PrepareOptions(held_out=SHARE))
    assert 0 < len(Corpus.open(tmp_path / "out-held-out")) < 40


def test_a_larger_share_holds_out_the_same_and_more(texts, model, tmp_path):
    write(tmp_path / "a.jsonl", texts)
    found = []
    for share in (0.05, 0.5):
        prepare(tmp_path / str(share), [tmp_path / "a.jsonl"], model, PrepareOptions(held_out=share))
        corpus = Corpus.open(tmp_path / f"{share}-held-out")
        found.append({corpus.tokens(one).tobytes() for one in range(len(corpus))})
    assert found[0] < found[1]


def test_it_is_counted_and_written_beside(prepare_data, texts, model, tmp_path, capsys):
    write(tmp_path / "a.jsonl", texts)
    arguments = (tmp_path / "out", "--input", tmp_path / "a.jsonl", "--model", model, "--held-out", "25%")
    assert prepare_data(*arguments, "--dry-run", "--show", "200") == 0
    assert not (tmp_path / "out-held-out").exists()
    marked = capsys.readouterr().out.count(", held out:")
    assert prepare_data(*arguments) == 0
    printed = capsys.readouterr().out
    kept = Corpus.open(tmp_path / "out-held-out")
    assert len(kept) == marked
    assert f"{len(kept)} documents ({len(kept) / 200:.2%}), {kept.manifest.counts.tokens:,} tokens" in printed
    assert f"wrote {tmp_path / 'out-held-out'}\n" in printed
    assert len(Corpus.open(tmp_path / "out")) == 200 - len(kept)


def test_nothing_is_written_where_one_side_would_be_empty(model, tmp_path):
    write(tmp_path / "a.jsonl", [{"text": "One."}])
    number = int(hashlib.sha256(hashlib.sha256(b"One.").digest()).hexdigest()[:16], 16) / 2**64
    for share, words in ((number * 0.9, f"none of 1 document.*more than {number:.3g}"), (0.9999, "all of 1 doc")):
        with pytest.raises(DataError, match=f"(?s){words}"):
            prepare(tmp_path / "out", [tmp_path / "a.jsonl"], model, PrepareOptions(held_out=share))
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_an_earlier_held_out_corpus_is_named(texts, model, tmp_path, capsys):
    write(tmp_path / "a.jsonl", texts)
    prepare(tmp_path / "out", [tmp_path / "a.jsonl"], model, PrepareOptions(held_out=SHARE))
    prepare(tmp_path / "out", [tmp_path / "a.jsonl"], model, overwrite=True)
    assert "out-held-out is of an earlier preparation" in capsys.readouterr().err


@pytest.mark.parametrize("share", ["0", "100%", "-1", "some"])
def test_shares_that_are_none(prepare_data, share, capsys):
    with pytest.raises(SystemExit) as ended:
        prepare_data("out", "--input", "a.jsonl", "--model", "m", f"--held-out={share}")
    assert ended.value.code == 2
    assert "--held-out" in capsys.readouterr().err
