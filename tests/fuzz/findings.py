"""Failures on disk: for each kind of failure a directory with a few inputs, and how to run them again."""

from __future__ import annotations

import shutil
from pathlib import Path

from .case import Result, folder_name

KEPT = 3
"""Inputs kept for each kind of failure; further ones are only counted."""
_MOST_BYTES = 16 * 2**20


def keep(findings: Path, target: str, seed: int, case: int, result: Result, files: Path) -> Path | None:
    """Keep a failing input with its traceback; returns where, or None if there are enough of its kind."""
    folder = findings / target / folder_name(result.signature)
    place = folder / f"case-{case}"
    if place.exists() or (folder.is_dir() and len(list(folder.glob("case-*"))) >= KEPT):
        return None
    place.mkdir(parents=True)
    (place / "report.txt").write_text(
        f"{result.signature}\n\npython -m tests.fuzz --target {target} --case {case} --seed {seed}\n\n"
        f"changes: {result.changes}\n\n{result.text}\n",
        encoding="utf-8",
        errors="backslashreplace",
    )
    if files.is_dir() and sum(file.lstat().st_size for file in files.rglob("*")) <= _MOST_BYTES:
        shutil.copytree(files, place / "files", symlinks=True, ignore_dangling_symlinks=True, ignore=_not_files)
    return place


def _not_files(folder: str, names: list[str]) -> list[str]:
    """What cannot be copied: pipes; the report says that there were any."""
    return [name for name in names if (Path(folder) / name).is_fifo()]
