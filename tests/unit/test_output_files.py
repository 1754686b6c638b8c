"""Output files are whole or as they were, and what a person named is checked before any work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from megatron_apriel.errors import OutputError
from megatron_apriel.output_files import PARTIAL, check_file, replace_file, whole_file
from megatron_apriel.outputs import start_time, writer_name


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    with whole_file(path) as partial:
        partial.write_text("whole")
        assert partial.suffix == ".csv" and partial.name.startswith(PARTIAL) and not path.exists()
    assert names(path.parent) == ["table.csv"] and path.read_text() == "whole"


def test_a_file_stays_as_it_was_where_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    replace_file(path, "before")
    with pytest.raises(ValueError), whole_file(path) as partial:
        partial.write_text("half")
        raise ValueError
    assert names(tmp_path) == ["table.csv"] and path.read_text() == "before"


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "link.csv").symlink_to(tmp_path / "other" / "table.csv")
    replace_file(tmp_path / "link.csv", "text")
    assert (tmp_path / "link.csv").is_symlink()
    assert names(tmp_path / "other") == ["table.csv"]


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    """One process has ended, one has the number of another that began later; the parent of this one lives."""
    host, parent = writer_name().split("-")[0], os.getppid()
    gone = [f"{PARTIAL}{host}-999999999-7-table.csv", f"{PARTIAL}{host}-{parent}-0-table.csv"]
    kept = [
        f"{PARTIAL}{host}-{parent}-{start_time(parent)}-table.csv", f"{PARTIAL}node17-999999999-7-table.csv",
        f"{PARTIAL}{host}-999999999-7-other-table.csv", f"{PARTIAL}notes-table.csv",
    ]  # fmt: skip
    for name in (*gone, *kept):
        (tmp_path / name).touch()
    replace_file(tmp_path / "table.csv", "whole")
    assert names(tmp_path) == sorted([*kept, "table.csv"])


def test_what_cannot_be_removed_is_in_nobodys_way(tmp_path: Path) -> None:
    """As another user's in a directory with the sticky bit; here it is a directory, which is not removed as a file."""
    left = tmp_path / f"{PARTIAL}{writer_name().split('-')[0]}-999999999-7-table.csv"
    left.mkdir()
    replace_file(tmp_path / "table.csv", "whole")
    assert names(tmp_path) == sorted([left.name, "table.csv"])


def test_a_link_that_leads_back_to_itself_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    replace_file(tmp_path / "loop", "whole")
    assert (tmp_path / "loop").read_text() == "whole" and names(tmp_path) == ["loop"]


def test_what_may_not_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "result").mkdir()
    (tmp_path / "result" / "report.json").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    report = tmp_path / "result" / "report.json"
    (tmp_path / "stage.yaml").touch()
    (tmp_path / "link").symlink_to(tmp_path / "stage.yaml")
    for path, overwrite, words in (
        (tmp_path / "result", True, "is no file"),
        (report, False, "exists"),
        (report, True, "belongs to the input"),
        (tmp_path / "link", True, "is the input"),
        (report / "table.csv", False, "is a file"),
        (tmp_path / "loop", True, "leads back to itself"),
    ):
        with pytest.raises(OutputError, match=words):
            check_file(path, overwrite, [tmp_path / "loop", tmp_path / "result", tmp_path / "stage.yaml"])
    check_file(report, True)
    check_file(tmp_path / "new" / "table.csv")
    assert names(tmp_path) == ["link", "loop", "result", "stage.yaml"]
