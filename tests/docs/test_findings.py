"""Findings have the form that their README describes; what they find is not run here, since that needs the network."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from documents import ROOT

FOLDER = ROOT / "findings"
SCRIPTS = sorted(FOLDER.glob("*.sh"))


def test_the_table_has_every_script() -> None:
    listed = re.findall(r"^\| `(\w+\.sh)` \|", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == [script.name for script in SCRIPTS] != []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_says_what_it_finds(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    comment = text[: text.index("set -euo pipefail")]
    assert re.findall(r"^# (\w+): ", comment, re.MULTILINE) == ["Library", "Behaviour", "Output", "Matters"]
    (library,) = re.findall(r"^# Library: +(.+)", comment, re.MULTILINE)
    for name, number in re.findall(r"([\w-]+) (\d[\w.]*\d)", library):
        assert f"{name.lower()}=={number}" in text, f"{name} {number} is not what is installed"
    assert "the behaviour has changed" in text
    assert subprocess.run(["bash", "-n", str(script)], check=False).returncode == 0
