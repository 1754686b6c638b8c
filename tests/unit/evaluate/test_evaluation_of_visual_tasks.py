"""The visual tasks through the command: what a dry run counts, with and without pictures, and right replies."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.unit.evaluate.conftest import Answering, lines, run


def test_a_dry_run_counts_the_visual_tasks(tmp_path: Path, photographs: Path, answering: Answering,
                                           capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    server, out = answering(lambda body: "A"), tmp_path / "out"
    own = ("--model", server.address, "--pictures", str(photographs), "--samples")
    assert run(out, tmp_path, *own, "4", "--dry-run", benchmarks="visual_tasks") == 0
    assert "in all: 8 of 8 items; 8 questions" in capsys.readouterr().out
    assert run(out, tmp_path, *own, "2", benchmarks="visual_tasks") == 0
    assert len(server.requests) == 4


def test_no_part_for_pictures_where_no_answer_was_scored(
    tmp_path: Path, photographs: Path, answering: Answering
) -> None:
    server = answering(lambda body: "")
    arguments = ["--model", server.address, "--pictures", str(photographs), "--samples", "4", "--temperature", "0"]
    assert run(tmp_path / "out", tmp_path, *arguments, benchmarks="visual_tasks") == 0
    remarks = json.loads((tmp_path / "out" / "report.json").read_text())["remarks"]
    assert any("visual tasks: no answer could be scored" in remark for remark in remarks)
    assert not any("pictures" in remark for remark in remarks)


def test_visual_tasks_with_and_without_pictures(tmp_path: Path, photographs: Path, answering: Answering) -> None:
    sent: Counter[str] = Counter()

    def answer(body: dict[str, Any]) -> str:
        content = body["messages"][-1]["content"]
        sent["blind" if isinstance(content, str) else "pictures"] += 1
        return "A"

    server = answering(answer)
    arguments = ["--model", server.address, "--pictures", str(photographs), "--samples", "24", "--temperature", "0"]
    assert run(tmp_path / "out", tmp_path, *arguments, benchmarks="visual_tasks") == 0
    assert sent == {"blind": 24, "pictures": 24}
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [one["name"] for one in report["rows"]] == ["visual_tasks", "visual_tasks_blind"]
    assert any("no sure gain from the pictures" in remark for remark in report["remarks"])
    parts = {tuple(part["name"]): part for part in report["rows"][0]["parts"]}
    assert {kind for kind, _ in parts} == {"variant", "difficulty"}
    assert sum(part["items"] for (kind, _), part in parts.items() if kind == "variant") == 24
    assert all(0 < part["chance"] <= 100 and 0 < part["most_frequent"] <= 100 for part in parts.values())


def test_the_replies_of_the_visual_tasks_are_right(tmp_path: Path, photographs: Path, answering: Answering) -> None:
    made = tmp_path / "out" / "visual_tasks" / "made"
    replies: dict[str, str] = {}

    def answer(body: dict[str, Any]) -> str:
        if not replies:
            for line in lines(made / "records.jsonl"):
                user, assistant = line["messages"]
                text = "".join(part["text"] for part in user["content"] if part["type"] == "text")
                images = [part["image"] for part in user["content"] if part["type"] == "image"]
                replies[f"{text} {len(images)} {Path(made / images[0]).stat().st_size}"] = assistant["content"]
        return "I see."

    server = answering(answer)
    arguments = ["--model", server.address, "--pictures", str(photographs), "--samples", "40"]
    assert run(tmp_path / "out", tmp_path, *arguments, "--steps", "load", benchmarks="visual_tasks") == 0
    from megatron_apriel.grading.visual_answers import grade_visual_answer

    for line in lines(made / "records.jsonl"):
        assert grade_visual_answer(line["messages"][1]["content"], line["answer"]).is_right, line["variant"]
