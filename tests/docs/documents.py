"""Reads the marked shell blocks of a page, and runs the quickstart as they say."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"(?:<!-- (?P<mark>[^\n]*?) -->\n)?```bash\n(?P<body>.*?)```", re.DOTALL)
_FILE = re.compile(r"<!-- file: (?P<path>[^\n]*?) -->\n```\w+\n(?P<body>.*?)```", re.DOTALL)
MARKS = ("run", "needs a GPU", "needs a cluster", "covered by: ")


@dataclass(frozen=True)
class Block:
    """A shell block and the comment that stands right above it."""

    mark: str
    commands: list[str]


def blocks(page: Path) -> list[Block]:
    """All shell blocks of a page, in order; a command over several lines is one."""
    found = []
    for match in _BLOCK.finditer(page.read_text(encoding="utf-8")):
        lines = match["body"].replace("\\\n", " ").splitlines()
        found.append(Block(match["mark"] or "", [line for line in lines if line.strip() and not line.startswith("#")]))
    return found


def files(page: Path) -> dict[str, str]:
    """The files that a page shows, by their paths: blocks under ``<!-- file: PATH -->``."""
    return {match["path"]: match["body"] for match in _FILE.finditer(page.read_text(encoding="utf-8"))}


def run_quickstart(output: Path) -> subprocess.CompletedProcess[str]:
    """The quickstart's command with a quarter of the tokens."""
    script = ROOT / "examples" / "quickstart" / "run.py"
    command = [sys.executable, str(script), "--output", str(output), "--scale", "0.25"]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
