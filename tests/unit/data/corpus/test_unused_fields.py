"""What the command line says about fields: which were not used, and --strict, --ignore and --map for them."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from megatron_apriel.data.corpus import prepare as preparation
from megatron_apriel.data.corpus.on_disk import Corpus
from megatron_apriel.data.corpus.prepare import PrepareOptions, prepare
from megatron_apriel.data.raw.fields import usage as usage_of_fields
from megatron_apriel.data.raw.fields.meanings import MAPPABLE
from megatron_apriel.data.raw.reading import Reading
from megatron_apriel.data.raw.records.shapes import SHAPES
from megatron_apriel.errors import DataError

TURNS = [{"role": "user", "content": "Hi", "name": "Ann"}, {"role": "assistant", "content": "Ho."}]
RECORD = {"messages": TURNS, "meta": {"id": 1, "tags": ["a"]}, "score": 0.5, "none": None}
UNUSED = {"messages.name": 3, "meta.id": 3, "meta.tags": 3, "score": 3}


@pytest.fixture(params=["jsonl", "parquet", "saved"])
def file(request, tmp_path):
    rows = [RECORD] * 3
    path = tmp_path / f"a.{request.param}"
    if request.param == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif request.param == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        import datasets

        datasets.Dataset.from_list(rows).save_to_disk(path)
    return path


def test_fields_that_were_not_used_are_listed_with_counts(prepare_data, file, model, tmp_path, capsys):
    command = [tmp_path / "out", "--input", file, "--model", model, "--workers", "1"]
    assert prepare_data(*command) == 0
    printed = capsys.readouterr().err
    assert "fields that were not used: " in printed
    assert all(f"{path} ({count})" in printed for path, count in UNUSED.items())
    assert Corpus.open(tmp_path / "out").manifest.usage.unused_fields == UNUSED


def test_strict_refuses_them_and_ignore_names_those_that_are_meant(prepare_data, file, model, tmp_path, capsys):
    command = [tmp_path / "out", "--input", file, "--model", model, "--workers", "1", "--strict"]
    with pytest.raises(DataError, match=r"were not used: messages\.name \(3\), meta\.id .*score(?s:.*)--ignore PATH"):
        prepare_data(*command)
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match=r"were not used: meta\.tags \(3\)\."):
        prepare_data(*command, "--ignore", "messages.name", "meta.id", "score")
    assert prepare_data(*command, "--ignore", "messages.name", "meta.*", "--ignore", "score") == 0
    assert "fields that were not used" not in capsys.readouterr().err


def test_strict_does_not_wait_for_the_end_of_a_long_run(model, tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "HOPELESS_RECORDS", 100)
    (tmp_path / "a.jsonl").write_text('{"text": "x", "n": 1}\n' * 5000)
    with pytest.raises(DataError, match=r"n \(128\)"):
        prepare(tmp_path / "out", [tmp_path / "a.jsonl"], model, PrepareOptions(strict=True))


def test_names_without_end_are_counted_together(model, tmp_path, monkeypatch):
    monkeypatch.setattr(usage_of_fields, "KEPT_PATHS", 10)
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "x", "n{number}": 1}}\n' for number in range(100)))
    unused = prepare(None, [tmp_path / "a.jsonl"], model).usage.unused
    assert len(unused) == 11 and unused["(other fields)"] == 90


def test_reasoning_is_counted(prepare_data, model, tmp_path, capsys):
    answers = ("<think>a</think>b", "<reflecting>a</reflecting>b", "plain")
    records = [{"messages": [TURNS[0], {"role": "assistant", "content": answer}]} for answer in answers]
    records.append({"messages": [*records[0]["messages"], *TURNS]})
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert prepare_data(tmp_path / "out", "--input", tmp_path / "a.jsonl", "--model", model) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "1 document; 1 earlier turn had some, which is not shown" in printed
    assert "1 document looks as if theirs was not recognised" in printed
    usage = Corpus.open(tmp_path / "out").manifest.usage
    assert (usage.reasoning, usage.hidden_reasoning, usage.unrecognised_reasoning) == (1, 1, 1)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["x"], "'x' is not THEIRS=OURS"),
        (["x=y"], "'y' is no field that is read; known: messages"),
        (["x=answr"], "'answr' is no field that is read; did you mean answer"),
        (["role:Bot=robot"], "'robot' is no role; known: user, assistant"),
        (["a=text", "b=text"], "'text' is mapped twice"),
    ],
)
def test_mistakes_in_maps(pairs, message, prepare_data, capsys):
    with pytest.raises(SystemExit):
        prepare_data("out", "--input", "a", "--model", "m", "--map", *pairs)
    assert message in capsys.readouterr().err


def test_help_shows_shapes_and_fields(prepare_data, capsys):
    with pytest.raises(SystemExit):
        prepare_data("--help")
    printed = capsys.readouterr().out
    assert all(shape.name in printed and shape.example in printed for shape in SHAPES)
    assert all(name in printed for name in MAPPABLE)


def test_an_unknown_shape_lists_all_fields_of_the_first_records(model, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "x"}\n{"title": "y", "n": 1}\n')
    with pytest.raises(DataError, match=r"none of its first 2 records(?s:.*)body, n, title(?s:.*)--map THEIRS=OURS"):
        prepare(None, [tmp_path / "a.jsonl"], model)
    (tmp_path / "a.jsonl").write_text('{"prompt": "x", "chosen": "a", "rejected": "b"}\n')
    with pytest.raises(DataError, match="'chosen' is preference data"):
        prepare(None, [tmp_path / "a.jsonl"], model)


def test_files_that_were_passed_over_are_named(prepare_data, model, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "notes.docx", "list.json"):
        (tmp_path / "in" / name).write_text('{\n"about": "the others"\n}\n')
    (tmp_path / "in" / "a.jsonl").write_text('{"text": "x"}\n')
    assert prepare_data(tmp_path / "out", "--input", tmp_path / "in", "--model", model) == 0
    printed = capsys.readouterr().err
    assert "passed over: 2 (notes.docx, list.json); 1 picture is read where records name them" in printed
    assert len(Corpus.open(tmp_path / "out").manifest.usage.passed_over) == 3
    (tmp_path / "in" / "list.json").write_text('{"about": "the oth')
    with pytest.raises(DataError, match=r"list\.json: its only record has no"):
        prepare(None, [tmp_path / "in"], model)


def test_a_mapped_name_no_longer_means_what_it_meant(model, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "abstract", "body": "whole"}\n')
    reading = Reading({("body",): "text"})
    summary = prepare(tmp_path / "out", [tmp_path / "a.jsonl"], model, PrepareOptions(reading=reading))
    assert summary.usage.unused == {"text": 1}
