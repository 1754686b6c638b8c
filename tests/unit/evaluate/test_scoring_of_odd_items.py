"""Items that their scorer cannot take, and answers of any content: one is counted and named, the rest is scored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from megatron_apriel.errors import ConfigError
from megatron_apriel.evaluate.items import Item
from megatron_apriel.evaluate.records import RecordFile, read_verdicts
from megatron_apriel.evaluate.scoring import Scorers, score

ODD = ("\x00 B", "\ud800 Answer: B", "a\u2028b\r\n", "{}", "null", "x" * 1_000_000, "\\boxed{" + "9" * 4000 + "}")
LETTER = {"gold": "B", "options": 4, "rule": "labelled"}


def scored(folder: Path, asked: Mapping[str, tuple[str, Mapping[str, Any], str]]) -> Mapping[str, Any]:
    """Verdicts by key, of scorer, grading and answer by key."""
    items = [Item(key, (key,), scorer, grading) for key, (scorer, grading, _) in asked.items()]
    with RecordFile(folder / "answers.jsonl") as file:
        for item in items:
            file.add({
                "key": item.key, "question": item.question_mark, "content": asked[item.key][2], "reasoning": "",
                "calls": [], "finish": "stop", "prompt_tokens": 1, "tokens": 1, "problem": "", "seconds": 1.0,
            })  # fmt: skip
    with Scorers() as scorers:
        assert score(items, folder / "answers.jsonl", folder / "verdicts.jsonl", scorers) == len(items)
    return read_verdicts(folder / "verdicts.jsonl").records


@pytest.mark.parametrize(
    ("scorer", "grading", "reason"),
    [
        ("letter", {}, "KeyError: 'gold'"),
        ("letter", {**LETTER, "gold": None}, "TypeError"),
        ("letter", {**LETTER, "rule": "none such"}, "KeyError: 'none such'"),
        ("mathematics", {"gold": 3}, "AttributeError"),
        ("mmmu_open", {"gold": 3}, "AttributeError"),
    ],
)
def test_an_item_that_cannot_be_scored_is_named_and_the_others_are_scored(
    tmp_path: Path, scorer: str, grading: Mapping[str, Any], reason: str
) -> None:
    verdicts = scored(tmp_path, {"odd": (scorer, grading, "Answer: B"), "good": ("letter", LETTER, "Answer: B")})
    assert (verdicts["odd"]["mark"], verdicts["odd"]["cause"]) == ("none", "data")
    assert reason in verdicts["odd"]["reason"] and verdicts["good"]["mark"] == "right"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError()])
def test_what_the_machine_lacks_is_no_fault_of_an_item(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    asked = {"one": ("letter", LETTER, "Answer: B")}
    with monkeypatch.context() as machine:
        machine.setattr("megatron_apriel.evaluate.scoring.grade_letter", fail)
        verdict = scored(tmp_path, asked)["one"]
    assert (verdict["mark"], verdict["cause"]) == ("none", "check")
    assert (str(error) or "MemoryError") in verdict["reason"]
    assert scored(tmp_path, asked)["one"]["mark"] == "right"


@pytest.mark.parametrize(
    ("scorer", "grading"),
    [
        ("letter", LETTER),
        ("letter", {**LETTER, "rule": "artificial_analysis", "choices": ["\ud800", "", "1", "x" * 10_000]}),
        ("letters", {"gold": "AC"}),
        ("mathvista", {"gold": "3", "type": "integer", "choices": []}),
        ("mmmu_open", {"gold": "['3']"}),
        ("visual_task", {"answer": 3}),
        ("mathematics", {"gold": "3"}),
    ],
)
def test_answers_of_any_content_are_scored(tmp_path: Path, scorer: str, grading: Mapping[str, Any]) -> None:
    verdicts = scored(tmp_path, {str(number): (scorer, grading, text) for number, text in enumerate(ODD)})
    assert len(verdicts) == len(ODD) and not [one for one in verdicts.values() if one["cause"] in ("data", "check")]
    assert json.dumps(list(verdicts.values()))


def test_a_scorer_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no form 'none such'"):
        scored(tmp_path, {"odd": ("judge", {"form": "none such", "question": "", "gold": ""}, "B")})


def test_what_is_judged_needs_a_judge(tmp_path: Path) -> None:
    grading = {"form": "AA-LCR", "question": "", "gold": ""}
    with pytest.raises(ConfigError, match=r"is judged by a model, and none is given(?s:.*)with --judge\."):
        scored(tmp_path, {"one": ("judge", grading, "B")})
