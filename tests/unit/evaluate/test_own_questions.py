"""Questions of a person's own: with options, with a short answer, with a picture; and rows that cannot be asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from megatron_apriel.errors import DataError
from megatron_apriel.evaluate.loaders import Given
from megatron_apriel.evaluate.own_questions import own
from tests.unit.evaluate.conftest import Answering, row, run, write_lines


def write(data: Path, *rows: dict[str, Any], name: str = "set.jsonl") -> Path:
    (data / "own").mkdir(parents=True, exist_ok=True)
    write_lines(data / "own" / name, list(rows))
    return data


def test_all_kinds_are_asked_and_scored(tmp_path: Path, answering: Answering) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    data = write(
        tmp_path / "data",
        {"question": "Which is a module?", "options": ["json", "rainbow"], "answer": "json", "category": "names"},
        {"question": "Which is none?", "options": ["json", "rainbow"], "answer": "B", "category": "names"},
        {"question": "How much is 3 and 4?", "answer": 7, "category": "sums"},
        {"question": "Which colour has it?", "image": "../../red.png", "answer": "red"},
    )
    replies = {
        "Which is a": "Answer: A",
        "Which is none": "Answer: A",
        "How much": r"\boxed{07}",
        "colour": r"\boxed{red}",
    }

    def answer(body: dict[str, Any]) -> str:
        content = body["messages"][-1]["content"]
        text = content if isinstance(content, str) else content[-1]["text"]
        if "colour" in text:
            assert content[0]["type"] == "image_url"
            assert "math" not in text and r"\boxed{}" in text
        return next(reply for words, reply in replies.items() if words in text)

    out = tmp_path / "out"
    assert run(out, data, "--model", answering(answer).address, benchmarks="own") == 0
    found = row(out)
    assert (found["asked"], found["right"], found["wrong"], found["paper"]) == (4, 3, 1, None)
    assert {part["name"][1]: part["score"]["value"] for part in found["parts"]} == {"names": 50.0, "sums": 100.0}
    assert len(list((out / "own" / "pictures").iterdir())) == 1


def test_parquet_of_datasets_holds_the_same_answers(tmp_path: Path) -> None:
    """It writes a column of texts and numbers as JSON, the texts between quotes."""
    import datasets

    rows = [{"question": f"{number}?", "answer": answer} for number, answer in enumerate([7, "red", "2.50", "true"])]
    of_lines, _ = own(Given(write(tmp_path / "lines", *rows), tmp_path / "items"))
    file = tmp_path / "lines" / "own" / "set.jsonl"
    loaded = datasets.Dataset.from_json(str(file), cache_dir=str(tmp_path / "cache"))
    (tmp_path / "table" / "own").mkdir(parents=True)
    loaded.to_parquet(str(tmp_path / "table" / "own" / "set.parquet"))
    items, _ = own(Given(tmp_path / "table", tmp_path / "items"))
    assert items == of_lines
    assert [item.grading["gold"] for item in items] == ["7", "red", "2.50", "true"]


def test_files_are_read_in_order_and_have_a_checksum(tmp_path: Path) -> None:
    data = write(tmp_path, {"question": "a?", "answer": "1"}, name="b.jsonl")
    (data / "own" / "a.csv").write_text('question,answer\nc?,2\n"d,?",3\n')
    items, source = own(Given(data, tmp_path / "items"))
    assert [(item.key, item.grading["gold"]) for item in items] == [("0", "2"), ("1", "3"), ("2", "1")]
    write(tmp_path, {"question": "a?", "answer": "4"}, name="b.jsonl")
    assert own(Given(data, tmp_path / "items"))[1].checksum != source.checksum


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"question": "a?"}], "row 1 of .* has no 'answer'"),
        ([{"question": " ", "answer": "b"}], "'question' is .*, and not a text"),
        ([{"question": "a?", "options": ["x", "y"], "answer": "z"}], "the answer z is none of its options"),
        ([{"question": "a?", "options": ["x", "x"], "answer": "x"}], "the answer x is none of its options"),
        ([{"question": "a?", "options": ["x", "y"], "answer": "C"}], "the answer C is none of its options"),
        ([{"question": "a?", "options": ["x", "y"], "answer": 1}], "the answer 1 is none of its options"),
        ([{"question": "a?", "options": "xy", "answer": "x"}], "options is xy, and not a list of texts"),
        ([{"question": "a?", "options": ["x", 1], "answer": "x"}], "and not a list of texts"),
        ([{"question": "a?", "options": [f"o{n}" for n in range(27)], "answer": "o1"}], "has 27 options"),
        ([{"question": "a?", "answer": "b", "image": "absent.png"}], r"absent\.png cannot be read"),
        ([{"question": "a?", "answer": "b", "image": "."}], "cannot be read"),
    ],
)
def test_what_cannot_be_asked_is_named(tmp_path: Path, rows: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(DataError, match=said):
        own(Given(write(tmp_path, *rows), tmp_path / "items"))


def test_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there are no data of own"):
        own(Given(tmp_path, tmp_path / "items"))
