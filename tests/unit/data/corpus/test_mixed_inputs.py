"""Files whose first record is odd, files without records, and directories of images: none ends the job for the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from megatron_apriel.data.corpus.prepare import PrepareOptions, prepare
from megatron_apriel.errors import DataError
from tests.unit.data.corpus.written_documents import Written, plain, png, prepared

CAPTIONED = {"image": "red.png", "caption": "A wall."}


def seen(documents: list[Written]) -> list[tuple[str, tuple[str, ...]]]:
    return [(document.text, document.colours) for document in documents]


def lines(file: Path, *records: dict[str, Any]) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    (file.parent / "red.png").write_bytes(png("red"))
    return file


@pytest.mark.parametrize("image", [5, {"foo": 1}, "[no list", {"a": [1], "b": [1, 2]}])
def test_a_first_record_with_an_odd_image_is_one_bad_record(image: Any, model: Path, tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"image": image, "caption": "A floor."}, CAPTIONED)
    found, summary = prepared([file], model, tmp_path / "out", PrepareOptions(max_bad=0.5))
    assert seen(found) == seen([plain("[IMG]\nA wall.", images=("red",))])
    assert [problem.place for problem in summary.problems.first] == [f"{file}:1"]


def test_records_of_several_shapes(model: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "Red."}]
    file = lines(tmp_path / "a.jsonl", {"text": "A text."}, {"text": "Another.", "messages": turns})
    found, summary = prepared([file], model, tmp_path / "out", PrepareOptions(max_bad=0.5))
    assert seen(found) == seen([plain("A text.")]) and not summary.usage.unused
    assert "its shape is 'messages'" in summary.problems.first[0].reason
    asked_for = prepare(None, [file], model, PrepareOptions(record_format="text"))
    assert asked_for.documents == 2 and asked_for.usage.unused["messages.content"] == 2


def test_an_empty_shard_is_no_error(model: Path, tmp_path: Path) -> None:
    table = pyarrow.table({"text": pyarrow.array([], pyarrow.string())})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["A text."]}), tmp_path / "b.parquet")
    summary = prepare(None, [tmp_path / "a.parquet", tmp_path / "b.parquet"], model, PrepareOptions())
    assert [one.documents for one in summary.inputs] == [0, 1]


def test_where_nothing_is_read_it_is_said_what_was_there(model: Path, tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"image": "absent.png", "caption": "A wall."})
    with pytest.raises(DataError, match=r"hold no documents\.(?s:.*)1 of 1 record is bad; the first: .*absent\.png"):
        prepare(None, [file], model, PrepareOptions(max_bad=1.0))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "metadata.json").write_text('{"file_name": "a.png", "objects": {"bbox": [[1, 2, 3, 4]]}}')
    with pytest.raises(DataError, match=r"metadata\.json: its only record(?s:.*)Their fields: file_name, objects"):
        prepare(None, [tmp_path / "in"], model, PrepareOptions())


@pytest.mark.parametrize("shape", ["auto", "text", "caption"])
def test_images_with_captions_beside_them(shape: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png("red"))
    (tmp_path / "in" / "a.txt").write_text("A wall.")
    found, _ = prepared([tmp_path / "in"], model, tmp_path / "out", PrepareOptions(record_format=shape))
    assert seen(found) == seen([plain("[IMG]\nA wall.", images=("red",))])


def test_images_with_records_beside_them(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, colour in (("a", "red"), ("b", "green")):
        (tmp_path / "in" / f"{name}.png").write_bytes(png(colour))
        (tmp_path / "in" / f"{name}.json").write_text(json.dumps({"caption": f"It is {colour}."}))
    found, _ = prepared([tmp_path / "in"], model, tmp_path / "out", PrepareOptions())
    assert seen(found) == seen([plain(f"[IMG]\nIt is {colour}.", images=(colour,)) for colour in ("red", "green")])


def test_one_record_over_several_lines_is_a_file_of_its_own(model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / "in" / f"{name}.json").write_text(json.dumps({"text": f"Of {name}."}, indent=2))
    (tmp_path / "in" / "infos.json").write_text(json.dumps({"features": {}}, indent=2))
    found, summary = prepared([tmp_path / "in"], model, tmp_path / "out", PrepareOptions())
    assert seen(found) == seen([plain("Of a."), plain("Of b.")])
    assert [Path(path).name for path in summary.passed] == ["infos.json"]


def test_a_cut_first_line_is_one_bad_record(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"text": "cut off\n{"text": "A text."}\n')
    found, summary = prepared([file], model, tmp_path / "out", PrepareOptions(max_bad=0.5))
    assert seen(found) == seen([plain("A text.")]) and summary.problems.count == 1
