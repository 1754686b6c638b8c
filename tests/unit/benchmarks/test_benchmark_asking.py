"""benchmarks/asking.py: both subjects take their turns at one server, whose clock counts."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from benchmarks import asking
from benchmarks.asking import EVALSCOPE, OURS


def test_the_server_counts_every_question() -> None:
    with asking.answering() as address:
        for count in (5, 8):
            asking.ask_ours(address, [f"question {number}" for number in range(count)], 3)
            told = httpx.get(f"{address}/times").json()
            assert told["questions"] == count and 0 < told["seconds"] < 60


def test_both_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def twice_as_slowly(address: str, texts: list[str], at_once: int) -> None:
        httpx.get(f"{address}/v1/models")
        for text in texts:
            httpx.post(f"{address}/v1/chat/completions", json={"text": text})

    monkeypatch.setattr(asking, "ask_by_evalscope", twice_as_slowly)
    assert asking.main(["--questions", "6", "--rounds", "2", "--output", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("asking-cpu-*.json")
    record = json.loads(file.read_text())
    assert {name: len(seconds) for name, seconds in record["seconds"].items()} == {OURS: 2, EVALSCOPE: 2}
    assert "| ours | 6 |" in file.with_suffix(".md").read_text()


def test_a_question_that_was_not_asked_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        asking, "ask_by_evalscope", lambda address, texts, at_once: asking.ask_ours(address, texts[1:], 1)
    )
    assert asking.main(["--questions", "6", "--rounds", "1", "--output", str(tmp_path)]) == 1


def test_the_ratio_is_of_medians() -> None:
    record = {"questions": 100, "at_once": 4, "seconds": {OURS: [1.0, 2.0, 9.0], EVALSCOPE: [8.0, 10.0, 11.0]}}
    assert [cells[4:] for cells in asking.rows(record)] == [("50", "5.0"), ("10", "1.0")]
