"""benchmarks/surgery.py: every subject takes its turns on the same work, and the table compares medians."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import surgery
from benchmarks.surgery import AVERAGE, UPSCALE, Subject, rows


def test_small_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--tiny", "--rounds", "1", "--directory", str(tmp_path), "--output", str(tmp_path / "results")]
    assert surgery.main([*arguments, "--earlier", str(surgery.ROOT)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    (file,) = (tmp_path / "results").glob("surgery-*.json")
    measured = json.loads(file.read_text())["measured"]
    assert {(one["work"], one["subject"]) for one in measured} == {
        (UPSCALE, "cp -r"),
        (UPSCALE, "cp -r, then sync"),
        *((work, f"ours{what}") for work in (UPSCALE, AVERAGE) for what in ("", ", earlier", ", without its start")),
    }
    assert all(len(one["seconds"]) == 1 for one in measured)
    assert "| average | ours |" in file.with_suffix(".md").read_text()


def test_a_subject_that_fails_is_said_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "mergekit-yaml"
    broken.write_text("#!/bin/sh\necho it does not work >&2\nexit 3\n")
    broken.chmod(0o755)
    arguments = ["--tiny", "--rounds", "1", "--directory", str(tmp_path), "--output", str(tmp_path / "results")]
    assert surgery.main([*arguments, "--mergekit", str(broken)]) == 1
    shown = capsys.readouterr()
    assert shown.err.count("it does not work") == 2
    (file,) = (tmp_path / "results").glob("*.json")
    assert {one["subject"] for one in json.loads(file.read_text())["measured"]} == {
        "cp -r", "cp -r, then sync", "ours", "ours, without its start",
    }  # fmt: skip


def test_rows_compare_medians() -> None:
    timed = [
        Subject(UPSCALE, "cp -r", [], seconds=[2.0, 1.0, 9.0], cpu_seconds=[1.0, 1.0, 1.0]),
        Subject(UPSCALE, "ours", [], seconds=[6.0, 5.0, 7.0], cpu_seconds=[4.0, 8.0, 3.0]),
        Subject(UPSCALE, "mergekit", [], seconds=[12.0, 24.0, 11.0], cpu_seconds=[9.0, 9.0, 9.0]),
    ]
    assert rows(timed) == [
        ["-", "cp -r", "2.00", "1.00", "9.00", "1.00", "1.00", "-"],
        [UPSCALE, "ours", "6.00", "5.00", "7.00", "4.00", "3.00", "0.50"],
        [UPSCALE, "mergekit", "12.00", "11.00", "24.00", "9.00", "6.00", "1.00"],
    ]


def test_what_cannot_be_measured_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--rounds", "0"], "--rounds=0 measures nothing"),
        (["--mergekit", str(tmp_path / "none")], "--mergekit: there is no"),
        (["--earlier", str(tmp_path)], "--earlier: there is no"),
    ):
        assert surgery.main(arguments) == 2
        assert message in capsys.readouterr().err
