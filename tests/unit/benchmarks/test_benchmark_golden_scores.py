"""benchmarks/golden_scores.py: figures of a golden directory, and the message for one that is wrong or absent."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import golden_scores


def write_rows(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def letters(output: str, pred: str, category: str = "law") -> dict[str, Any]:
    return {"question_id": 1, "options": ["x", "y", "z"], "answer": "B", "category": category,
            "model_output": output, "pred": pred}  # fmt: skip


def proofs_of(results: Path) -> dict[str, dict[str, Any]]:
    (file,) = results.glob("golden_scores-cpu-*.json")
    assert file.with_suffix(".md").is_file()
    return {one["what"].partition(": ")[2]: one for one in json.loads(file.read_text())["proofs"]}


def run(golden: Path, results: Path, only: str) -> int:
    return golden_scores.main(["--golden", str(golden), "--only", only, "--output", str(results)])


def test_stored_letters(tmp_path: Path) -> None:
    rows = [
        letters("The answer is (B).", "B"),
        letters("The answer is (A).", "A"),
        letters("no idea", "B"),  # drawn at random, and lucky
        letters("So, B", "B", "physics"),
    ]
    write_rows(tmp_path / "mmlu_pro_some.jsonl.gz", rows)
    assert run(tmp_path, tmp_path / "results", "mmlu_pro") == 0
    found = proofs_of(tmp_path / "results")
    assert found["right by the stored letters"]["found"] == "3 of 4 = 75.00%, mean of categories 83.33%"
    assert found["right by the official rule, nothing drawn"]["found"] == "2 of 4 = 50.00%, mean of categories 66.67%"
    assert found["without an answer"]["found"] == "1"
    assert found["same letter as stored, of those with an answer"]["found"] == "3"


def test_another_letter_than_the_stored_one_is_named(tmp_path: Path) -> None:
    write_rows(tmp_path / "mmlu_pro_some.jsonl.gz", [letters("The answer is (B).", "A")])
    assert run(tmp_path, tmp_path / "results", "mmlu_pro") == 1
    assert "question 1: B, stored A" in next((tmp_path / "results").glob("*.md")).read_text()


def test_a_set_that_is_not_there_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APRIEL_SCORERS", str(tmp_path))
    assert run(tmp_path, tmp_path / "results", "tau2,ifbench") == 1
    text = next((tmp_path / "results").glob("*.md")).read_text()
    assert "| tau2 | not tried | there is no" in text and "| ifbench | not tried |" in text


def test_answer_forms(tmp_path: Path) -> None:
    assert run(tmp_path, tmp_path / "results", "answer_forms") == 0


def test_sets_are_chosen_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, tmp_path / "results", "mmlu") == 2
    assert "there is no 'mmlu'" in capsys.readouterr().err
