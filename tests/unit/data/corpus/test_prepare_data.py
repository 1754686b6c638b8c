"""tools/prepare_data.py from raw files to a corpus that is read back and compared with transformers."""

import base64
import gzip
import io
import json
import os
import pydoc_data.topics
import signal
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from PIL import Image

from megatron_apriel.data.corpus import prepare as preparation
from megatron_apriel.data.corpus.on_disk import Corpus
from megatron_apriel.data.corpus.prepare import PrepareOptions, prepare
from megatron_apriel.data.raw.reading import Reading
from megatron_apriel.errors import DataError, OutputError


def write_lines(path: Path, records: list) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def user_image(part: dict) -> list:
    return [
        {"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "A photograph.", "reasoning_content": "I look."},
    ]


@pytest.fixture(scope="module")
def raw(tmp_path_factory, photographs) -> Path:
    """Real text and photographs in every container; 300 good records."""
    directory = tmp_path_factory.mktemp("raw")
    (directory / "photos").mkdir()
    for name, data in photographs.items():
        (directory / "photos" / name).write_bytes(data)
    topics = [{"text": text} for text in pydoc_data.topics.topics.values()][:70]
    with gzip.open(directory / "text.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps(record) + "\n" for record in topics))
    turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A photograph."}]
    names = sorted(photographs)
    write_lines(
        directory / "llava.jsonl",
        [{"conversations": turns, "image": f"photos/{names[index % len(names)]}"} for index in range(100)],
    )
    url = {"url": "data:image/png;base64," + base64.b64encode(photographs["chelsea.png"]).decode()}
    write_lines(
        directory / "urls.jsonl",
        [{"messages": user_image({"type": "image_url", "image_url": url})} for _ in range(5)],
    )
    messages = user_image({"type": "image"})
    messages[1]["content"] = [{"type": "text", "text": messages[1]["content"]}]  # a column has one type
    rows = [{"messages": messages, "images": [{"bytes": photographs["china.jpg"]}]}] * 125
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), directory / "rows.parquet", row_group_size=50)
    return directory


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_corpus_is_the_same_for_any_number_of_workers(prepare_data, raw, model, tmp_path, capsys):
    for workers in ("1", "3"):
        assert prepare_data(tmp_path / workers, "--input", raw, "--model", model, "--workers", workers) == 0
    one, three = content(tmp_path / "1"), content(tmp_path / "3")
    assert one == three
    printed = capsys.readouterr().out
    for expected in ("llava.jsonl", "conversations", "rows.parquet", "messages", "text.jsonl.gz", "0 of 300", "230"):
        assert expected in printed


@pytest.fixture(scope="module")
def corpus(raw, model, tmp_path_factory) -> Corpus:
    destination = tmp_path_factory.mktemp("corpus") / "corpus"
    summary = prepare(destination, [raw], model, PrepareOptions(workers=2))
    corpus = Corpus.open(destination)
    assert (summary.documents, summary.images) == (300, 230) == (len(corpus), len(corpus.image_rows))
    assert summary.tokens == corpus.manifest.counts.tokens
    assert summary.response_tokens == corpus.manifest.counts.response_tokens > 0
    assert summary.percentiles((100,)) == [corpus.documents["tokens"].max()]
    return corpus


def test_documents_equal_transformers(corpus, processor, photographs):
    """Documents in the order llava, parquet rows, text, urls: the alphabetical order of their files."""
    names = sorted(photographs)
    cases = [(index, names[index % len(names)], False) for index in range(5)]
    cases += [(100, "china.jpg", True), (224, "china.jpg", True), (299, "chelsea.png", True)]
    for document, name, reasoning in cases:
        image = Image.open(io.BytesIO(photographs[name])).convert("RGB")
        messages = user_image({"type": "image", "image": image})
        if not reasoning:
            del messages[1]["reasoning_content"]
            messages[0]["content"][1]["text"] = "\nWhat is it?"
        messages[1]["content"] = [{"type": "text", "text": messages[1]["content"]}]
        expected = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
        assert corpus.tokens(document).tolist() == expected["input_ids"][0].tolist()
        (row,) = corpus.images(document)
        assert corpus.image_bytes(row).tobytes() == photographs[name]
        assert (row["rows"] * 16, row["columns"] * 16) == tuple(expected["image_sizes"][0].tolist())
        response = processor.tokenizer.decode(corpus.tokens(document)[corpus.responses(document)])
        opening = "I look.\n" if reasoning else ""
        assert response == f"{opening}[BEGIN FINAL RESPONSE]\nA photograph.\n[END FINAL RESPONSE]\n<|end|>\n</s>"


def test_plain_documents_are_whole(corpus, processor):
    text = next(iter(pydoc_data.topics.topics.values()))
    assert corpus.tokens(225).tolist() == [1, *processor.tokenizer.encode(text, add_special_tokens=False), 2]
    assert not corpus.responses(225).any()


def test_manifest_says_where_it_came_from(corpus, raw):
    inputs = {
        Path(one["path"]).name: (one["kind"], one["record_format"], one["documents"]) for one in corpus.manifest.inputs
    }
    assert inputs == {
        "llava.jsonl": ("JSON", "conversations", 100),
        "rows.parquet": ("Parquet", "messages", 125),
        "text.jsonl.gz": ("JSON", "text", 70),
        "urls.jsonl": ("JSON", "messages", 5),
    }
    assert corpus.manifest.problems == {"records": 300, "bad": 0, "files": {}, "first": []}


@pytest.fixture
def with_bad_records(tmp_path, small_photograph, photographs) -> tuple[Path, dict[int, str]]:
    """A file of good and bad records, and the reasons expected for the bad lines."""
    Image.new("RGB", (2000, 3)).save(tmp_path / "thin.png")
    (tmp_path / "cut.jpg").write_bytes(photographs["china.jpg"][:5000])
    small_photograph.save(tmp_path / "good.png")

    def llava(image: object, text: str = "<image>?") -> dict:
        return {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "!"}], "image": image}

    good, bad = llava("good.png"), {}
    records: list = [good] * 12
    for line, record, reason in (
        (2, llava("thin.png"), "an image of 3x2000 pixels would be less than one pixel thin"),
        (3, llava("cut.jpg"), "an image of 5000 bytes is damaged: "),
        (4, llava("../x.png"), "leads out of the image root"),
        (5, llava("http://x/y.png"), "is a URL: images are never fetched"),
        (7, llava("good.png", "<image> <image>"), "2 places for images (<image> or image parts), but 1 image"),
        (8, {"text": "x"}, "its shape is 'text', and that of its file's first record 'conversations'"),
        (11, llava(None, "<image>"), "1 place for images (<image> or image parts), but 0 images"),
    ):
        records[line - 1], bad[line] = record, reason
    return write_lines(tmp_path / "mixed.jsonl", records), bad


def test_bad_records_are_listed_with_place_and_reason(prepare_data, with_bad_records, model, tmp_path, capsys):
    file, bad = with_bad_records
    options = ("--workers", "2", "--max-bad", "60%")
    assert prepare_data(tmp_path / "out", "--input", file, "--model", model, *options) == 0
    corpus = Corpus.open(tmp_path / "out")
    assert len(corpus) == 12 - len(bad)
    problems = corpus.manifest.problems
    assert problems["bad"] == len(bad) and problems["files"] == {str(file): len(bad)}
    assert [problem["place"] for problem in problems["first"]] == [f"{file}:{line}" for line in bad]
    for problem, reason in zip(problems["first"], bad.values(), strict=True):
        assert reason in problem["reason"]
    printed = capsys.readouterr()
    assert f"{len(bad)} of 12" in printed.out
    assert printed.err.count("bad record: ") == 5 and "... and 2 more, listed in corpus.json" in printed.err


@pytest.mark.parametrize("option", [("--dry-run",), ("--show", "9")])
def test_no_file_is_named_where_none_is_written(prepare_data, with_bad_records, model, capsys, option):
    file, _ = with_bad_records
    options = ("--workers", "1", "--max-bad", "60%", *option)
    assert prepare_data("--input", file, "--model", model, *options) == 0
    printed = capsys.readouterr().err
    assert "... and 2 more; --bad-records FILE lists all\n" in printed and "corpus.json" not in printed


def test_too_many_bad_records_leave_nothing(with_bad_records, model, tmp_path):
    file, bad = with_bad_records
    before = sorted(tmp_path.iterdir())
    for tolerated in (0.001, (len(bad) - 0.5) / 12):
        with pytest.raises(
            DataError, match=rf"{len(bad)} of 12 records are bad \(58.333%\)(?s:.*)mixed.jsonl:2: "
        ) as error:
            prepare(tmp_path / "out", [file], model, PrepareOptions(max_bad=tolerated))
        assert "--max-bad" in error.value.fix
    assert sorted(tmp_path.iterdir()) == before
    prepare(tmp_path / "out", [file], model, PrepareOptions(max_bad=len(bad) / 12))


def test_hopeless_input_ends_early(model, tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "HOPELESS_RECORDS", 100)
    file = write_lines(tmp_path / "a.jsonl", [{"text": ""}] * 5000)
    with pytest.raises(DataError, match="128 of 128 records are bad"):
        prepare(tmp_path / "out", [file], model)


def test_truncated_input_leaves_nothing(raw, model, tmp_path):
    (tmp_path / "cut.jsonl.gz").write_bytes((raw / "text.jsonl.gz").read_bytes()[:-20])
    with pytest.raises(DataError, match=r"cut.jsonl.gz cannot be read to its end"):
        prepare(tmp_path / "out", [tmp_path / "cut.jsonl.gz"], model)
    assert [path.name for path in tmp_path.iterdir()] == ["cut.jsonl.gz"]


def test_dry_run_and_limit(prepare_data, raw, model, tmp_path, capsys):
    arguments = [tmp_path / "out", "--input", raw / "llava.jsonl", "--model", model, "--limit", "70"]
    assert prepare_data(*arguments, "--dry-run") == 0
    assert not (tmp_path / "out").exists()
    assert "0 of 70" in (printed := capsys.readouterr().out) and "was not written" in printed
    assert prepare_data(*arguments, "--workers", "2") == 0
    assert len(Corpus.open(tmp_path / "out")) == 70


def test_existing_corpus_is_replaced_only_when_told(model, tmp_path):
    file = write_lines(tmp_path / "a.jsonl", [{"text": "one"}])
    prepare(tmp_path / "out", [file], model)
    before = content(tmp_path / "out")
    with pytest.raises(OutputError, match="exists"):
        prepare(tmp_path / "out", [file], model)
    write_lines(file, [{"text": "one"}, {"text": "two"}])
    with pytest.raises(DataError, match="its only record has no known shape"):
        prepare(tmp_path / "out", [write_lines(tmp_path / "b.jsonl", [{"x": 1}])], model, overwrite=True)
    assert content(tmp_path / "out") == before
    prepare(tmp_path / "out", [file], model, overwrite=True)
    assert len(Corpus.open(tmp_path / "out")) == 2


def test_formats_are_checked_before_any_work(model, tmp_path):
    (tmp_path / "in").mkdir()
    write_lines(tmp_path / "in" / "a.jsonl", [{"text": "fine"}])
    write_lines(tmp_path / "in" / "b.jsonl", [{"body": "x", "id": 1}])
    message = r"b.jsonl: its only record has no known shape(?s:.*)body, id(?s:.*)--map(?s:.*)--text-field"
    with pytest.raises(DataError, match=message):
        prepare(tmp_path / "out", [tmp_path / "in"], model)
    options = PrepareOptions(reading=Reading({("body",): "text"}))
    assert prepare(tmp_path / "out", [tmp_path / "in" / "b.jsonl"], model, options).documents == 1


def test_format_can_be_given(model, tmp_path):
    file = write_lines(tmp_path / "a.jsonl", [{"text": "t", "messages": [{"role": "assistant", "content": "m"}]}])
    assert prepare(None, [file], model).response_tokens > 0
    assert prepare(None, [file], model, PrepareOptions(record_format="text")).response_tokens == 0


def test_empty_files(model, tmp_path):
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(DataError, match="the inputs hold no documents"):
        prepare(tmp_path / "out", [tmp_path / "a.jsonl"], model)
    write_lines(tmp_path / "b.jsonl", [{"text": "x"}])
    summary = prepare(tmp_path / "out", [tmp_path / "a.jsonl", tmp_path / "b.jsonl"], model)
    assert [one.record_format for one in summary.inputs] == ["no records", "text"]


def test_images_for_a_model_without_a_tower(architecture, model, raw, tmp_path):
    text_only = tmp_path / "text"
    text_only.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (text_only / name).write_bytes((model / name).read_bytes())
    config = architecture.to_hf_config()["text_config"]
    (text_only / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="it has 1 image, and the model has no vision tower"):
        prepare(tmp_path / "out", [raw / "llava.jsonl"], text_only)
    prepare(tmp_path / "out", [raw / "text.jsonl.gz"], text_only)
    assert Corpus.open(tmp_path / "out").manifest.images is None


def test_images_by_name_inside_a_tar(model, photographs, tmp_path):
    import tarfile

    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "Food."}]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (
            ("d/1.json", json.dumps({"conversations": turns, "image": "1.jpg"}).encode()),
            ("d/1.jpg", photographs["flower.jpg"]),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    prepare(tmp_path / "out", [tmp_path / "a.tar"], model)
    corpus = Corpus.open(tmp_path / "out")
    assert corpus.image_bytes(corpus.images(0)[0]).tobytes() == photographs["flower.jpg"]


def test_a_worker_that_dies_is_reported(model, raw, tmp_path, monkeypatch):
    def die(self, task):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(preparation.RecordEncoder, "encode_block", die)
    with pytest.raises(DataError, match="one of 2 worker processes ended without an answer"):
        prepare(tmp_path / "out", [raw / "text.jsonl.gz"], model, PrepareOptions(workers=2))
    assert not any(tmp_path.iterdir())


def test_rounding_is_the_users_choice(model, tmp_path):
    Image.new("RGB", (1025, 777)).save(tmp_path / "a.png")
    file = write_lines(tmp_path / "a.jsonl", [{"text": "<image>", "images": ["a.png"]}])
    for rounding in ("floor", "round"):
        prepare(tmp_path / rounding, [file], model, PrepareOptions(rounding=rounding))
        assert Corpus.open(tmp_path / rounding).manifest.images.rounding == rounding


def test_command_line_mistakes(prepare_data, capsys):
    for arguments, message in (
        (["out"], "the following arguments are required: --input, --model"),
        (["out", "--input", "a", "--model", "m", "--max-bad", "200%"], "'200%' is not between 0% and 100%"),
        (["out", "--input", "a", "--model", "m", "--limit", "0"], "0 is not above 0"),
        (
            ["out", "--input", "a", "--model", "m", "--workers", "0"],
            "argument --workers: '0' is not a whole number above 0",
        ),
        (["out", "--input", "a", "--model", "m", "--format", "csv"], "invalid choice: 'csv'"),
    ):
        with pytest.raises(SystemExit) as end:
            prepare_data(*arguments)
        assert end.value.code == 2 and message in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        prepare_data("--help")
    assert end.value.code == 0 and "examples:" in capsys.readouterr().out


def test_responses_and_images_never_overlap(corpus):
    for document in range(0, len(corpus), 17):
        image = np.isin(corpus.tokens(document), corpus.manifest.images.token_ids)
        assert not corpus.responses(document)[image].any()


def test_names_and_records_that_are_no_utf8_can_be_reported(prepare_data, model, tmp_path):
    """A directory's name and a field's, each with half of a surrogate pair once Python has read it."""
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    folder.mkdir()
    (folder / "a.jsonl").write_text(
        json.dumps({"messages": [{"role": "assistant", "content": "good"}]}) + '\n{"\\ud800": 1}\n'
    )
    command = [tmp_path / "out", "--input", folder, "--model", model, "--workers", "1"]
    assert prepare_data(*command, "--max-bad", "50%") == 0
    manifest = Corpus.open(tmp_path / "out").manifest
    assert manifest.inputs[0]["path"].endswith("\\udcff/a.jsonl")
    assert "\\ud800" in manifest.problems["first"][0]["reason"]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--max-text", "10", "characters, more than 10"),
        ("--max-record", "100B", "the line is longer than 100 bytes"),
        ("--max-pixels", "1K", "exceeds the limit of 1000 pixels"),
        ("--max-expansion", "1", "over 1 times as much"),
        ("--max-window", "1KiB", "a window of more than 1,024 bytes"),
    ],
)
def test_limits_on_the_command_line(option, value, message, prepare_data, raw, model, tmp_path):
    lines = [json.dumps({"text": "word " * 50}) + "\n"] * 3
    if option == "--max-window":
        file = tmp_path / "a.jsonl.zst"
        packer = zstandard.ZstdCompressor(level=3).compressobj()  # of unknown size, so with a window
        file.write_bytes(packer.compress("".join(lines).encode()) + packer.flush())
    elif option == "--max-expansion":
        file = tmp_path / "a.jsonl.gz"
        file.write_bytes(gzip.compress("".join(lines).encode() + b"\n" * 17 * 2**20))
    else:
        file = raw / "llava.jsonl" if option == "--max-pixels" else write_lines(tmp_path / "a.jsonl", [])
        if option != "--max-pixels":
            file.write_text("".join(lines))
    arguments = [tmp_path / "out", "--input", file, "--model", model, "--workers", "1"]
    with pytest.raises(DataError, match=message):
        prepare_data(*arguments, option, value)
    assert not (tmp_path / "out").exists()
    assert prepare_data(*arguments, "--limit", "3") == 0


@pytest.mark.parametrize("other", ["a.parquet", "a.jsonl.gz", "a.json", "a.csv"])
def test_one_name_in_two_forms_is_refused(other, tmp_path, model):
    rows = [{"text": "One."}, {"text": "Two."}]
    write_lines(tmp_path / "a.jsonl", rows)
    if other == "a.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / other)
    else:
        data = {"a.json": json.dumps(rows), "a.csv": "text\nOne.\nTwo.\n"}.get(
            other, (tmp_path / "a.jsonl").read_text()
        )
        (tmp_path / other).write_bytes(gzip.compress(data.encode()) if other.endswith("gz") else data.encode())
    with pytest.raises(DataError, match="have one name and two forms"):
        prepare(None, [tmp_path], model, PrepareOptions())
    prepare(None, [tmp_path / "a.jsonl", tmp_path / other], model, PrepareOptions())
    (tmp_path / "a.jsonl").rename(tmp_path / "b.jsonl")
    prepare(None, [tmp_path], model, PrepareOptions())
