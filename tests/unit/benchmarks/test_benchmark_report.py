"""Names, pages and the index of results: on records made by hand, and on everything that is stored."""

from __future__ import annotations

import datetime
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import index, links
from benchmarks.processes import ROOT
from benchmarks.report import RESULTS, Page, kind_of_machine, machine, markdown, name_of, text_of, write
from benchmarks.versions import facts

STORED = sorted(RESULTS.glob("*.json"))
HEADER = ["question", "hardware", "configuration", "commit", "date", "versions"]


def record(**changes: Any) -> dict[str, Any]:
    return {
        "benchmark": "links", "date": "2026-01-02 03:04", "command": "python benchmarks/links.py",
        "commit": "0123456789ab", "dirty": False,
        "hardware": {"device": "NVIDIA H200", "count": 2, "driver": "1.2", "nvlink_multicast": "off"},
        "versions": {"torch": "9"}, "found": [{"kind": "all-reduce", "bytes": 1048576, "microseconds": 7, "gb_s": 2}],
    } | changes  # fmt: skip


@pytest.mark.parametrize(
    ("hardware", "word", "words"),
    [
        ({"device": "NVIDIA H200", "count": 1}, "h200", "NVIDIA H200"),
        ({"device": "NVIDIA H100 80GB HBM3", "count": 8}, "8xh100", "8 x NVIDIA H100 80GB HBM3 of one host"),
        ({"device": "NVIDIA A100-SXM4-80GB", "count": 1}, "a100", "NVIDIA A100-SXM4-80GB"),
        ({"device": "CPU"}, "cpu", "CPU"),
        ({"device": "CPU", "model": "A processor", "cores": 2}, "cpu", "A processor, 2 cores"),
    ],
)
def test_the_machine_in_a_word_and_in_words(hardware: dict[str, Any], word: str, words: str) -> None:
    assert kind_of_machine(record(hardware=hardware)) == word
    assert machine(record(hardware=hardware)) == words


def test_a_result_is_named_for_what_where_and_when(tmp_path: Path) -> None:
    one = record()
    path = write(tmp_path / "new", one, links.page(one), datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC))
    assert path.name == "links-2xh200-0123456-20260102-030405"
    assert json.loads(path.with_suffix(".json").read_text()) == one
    text = path.with_suffix(".md").read_text()
    assert re.findall(r"^- (\w+): ", text, re.MULTILINE) == HEADER
    assert "2 x NVIDIA H200 of one host, driver 1.2, NVLink multicast off" in text
    assert "| all-reduce | 1 | 7 | 2.0 |" in text


def test_changes_that_are_not_committed_are_said() -> None:
    page = Page("Title", "What?", "none", [], markdown(("a", "b"), [["1", "2"]]))
    assert "- commit: 0123456789ab with changes that are not committed\n" in text_of(record(dirty=True), page)
    assert text_of(record(), page).endswith("\n\n| a | b |\n| --- | --- |\n| 1 | 2 |\n")


def test_facts_are_those_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["anywhere/links.py", "--gpus", "2"])
    environment = {"python": "3", "versions": {"torch": "9"}, "device": "NVIDIA H200", "memory_gib": 1, "cuda": "13"}
    begun = datetime.datetime(2026, 1, 2, 3, 4, tzinfo=datetime.UTC)
    found = facts("links", "abc", environment, begun, gpus=2)
    assert (found["date"], found["commit"], found["dirty"]) == ("2026-01-02 03:04", "abc", False)
    assert found["command"] == "python benchmarks/links.py --gpus 2"
    assert found["versions"] == {"Python": "3", "torch": "9", "CUDA": "13"}
    assert found["hardware"] | {"driver": ""} == {
        "device": "NVIDIA H200", "count": 2, "driver": "", "memory_gib": 1, "nvlink_multicast": "on",
    }  # fmt: skip


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_stored_results_are_of_committed_code(path: Path) -> None:
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert not stored.get("dirty")
    assert re.fullmatch("[0-9a-f]{7,}", stored["commit"])
    assert re.fullmatch(rf"{re.escape(name_of(stored))}-\d{{8}}-\d{{6}}", path.stem)


def test_index_and_pages_are_made_from_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert index.main(["--check"]) == 0, capsys.readouterr().out
    assert len(STORED) > 10
    assert {path.stem for path in RESULTS.glob("*.md")} == {path.stem for path in STORED} | {"README"}


def test_a_page_that_was_edited_is_named_and_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in STORED[:2]:
        shutil.copy(path, tmp_path)
    assert index.main(["--results", str(tmp_path)]) == 0
    page = tmp_path / STORED[0].with_suffix(".md").name
    whole = page.read_text()
    page.write_text(whole.replace("question", "answer"))
    capsys.readouterr()
    assert index.main(["--results", str(tmp_path), "--check"]) == 1
    assert capsys.readouterr().out == f"not as it would be written: {page}\n"
    assert index.main(["--results", str(tmp_path)]) == 0
    assert page.read_text() == whole


def test_a_result_is_superseded_by_all_later_ones_together(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "docs").mkdir(parents=True)
    step = {"benchmark": "step", "steps": 3, "hardware": {"device": "NVIDIA H200", "count": 1}}
    for day, subjects, changes in (
        (1, ("ours-bf16", "ours-delayed"), {}),
        (2, ("ours-bf16", "liger-bf16"), {}),
        (3, ("ours-delayed",), {}),
        (4, ("liger-bf16",), {"hardware": {"device": "NVIDIA H100", "count": 1}}),
    ):
        measurements = [
            {"subject": subject, "case": "8192", "layers": 4, "status": "measured", "step_ms": 1.0}
            for subject in subjects
        ]
        one = record(**step, date=f"2026-01-0{day} 00:00", measurements=measurements) | changes
        (tmp_path / f"step-{day}.json").write_text(json.dumps(one))
    (root / "docs" / "page.md").write_text("[a result](../benchmarks/results/step-2.md)")
    found = index.results(tmp_path, root)
    assert [(one.path.stem, one.superseded) for one in found] == [
        ("step-4", False), ("step-3", False), ("step-2", False), ("step-1", True),
    ]  # fmt: skip
    assert [one.quoted_by for one in found] == [[], [], ["docs/page.md"], []]
    assert "| superseded | - |" in index.index_of(found)
    assert "| current | [docs/page.md](../../docs/page.md) |" in index.index_of(found)


def test_the_documents_that_quote_are_read() -> None:
    texts = index.quoting_files(ROOT)
    assert {"README.md", "docs/performance.md", "benchmarks/README.md", "megatron_apriel/planning/hardware.py"} <= set(
        texts
    )
    assert not any(name.startswith(("benchmarks/results", ".venv")) for name in texts)


def test_a_recorded_command_does_not_say_where_things_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["x.py", "--golden", "/data/team/golden", "--output=/data/out", "--only", "a/b"])
    found = facts("x", "0123456", {"device": "CPU"}, datetime.datetime.now(datetime.UTC))
    assert found["command"] == "python benchmarks/x.py --golden golden --output=out --only a/b"
