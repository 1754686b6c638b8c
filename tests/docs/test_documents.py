"""What the documents say is true: commands run or are marked, links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from documents import MARKS, ROOT, Block, blocks, files

PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("*/README.md"))]
EXECUTED = (ROOT / "README.md", ROOT / "docs" / "first_run.md")
"""Pages whose commands are run, in order, in one directory in which the (shortened) quickstart has run."""
RUN = [(page, block) for page in EXECUTED for block in blocks(page) if block.mark == "run"]


@pytest.mark.parametrize("page", EXECUTED, ids=lambda page: page.name)
def test_every_shell_block_is_marked(page: Path) -> None:
    assert len(blocks(page)) >= 5
    for block in blocks(page):
        assert block.mark.startswith(MARKS), f"no mark of {MARKS} above:\n{block.commands}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("page", "block"), RUN, ids=[f"{page.stem}-{number}" for number, (page, _) in enumerate(RUN)])
def test_commands_run(page: Path, block: Block, workplace: Path) -> None:
    for name, text in files(page).items():
        (workplace / name).parent.mkdir(exist_ok=True)
        (workplace / name).write_text(text, encoding="utf-8")
    environment = {**os.environ, "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "2"}
    for command in block.commands:
        result = subprocess.run(
            shlex.split(command), cwd=workplace, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}{result.stderr[-4000:]}"


def test_the_readme_is_read_in_five_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) < 1400


def test_every_row_of_performance_links_to_its_result() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if (line.startswith("| ") and "FP8" in line) or "bf16 |" in line]
    assert len(rows) >= 4
    assert all("](benchmarks/results/" in row for row in rows)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_are_short(page: Path) -> None:
    """But rows of tables, which cannot be broken, and lines that are one word, as a link can be."""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if len(line) > 120:
            assert line.startswith("|") or len(line.split()) == 1, f"{page.name}:{number} has {len(line)} characters"


def test_the_changelog_says_added_changed_fixed() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for release in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        headings = re.findall(r"^### (.+)$", release, re.MULTILINE)
        known = [name for name in ("Added", "Changed", "Fixed") if name in headings]
        assert headings == known, release.splitlines()[0]


PRIVATE_WORDS = re.compile(
    r"\b(?:comes?|came) to be\b|\b(?:go(?:es)?|going|gone|went) on (?:from|with|after)\b|\bmend(?:s|ed|ing)?\b|"
    r"\b(?:held|holds?) (?:\w+ ){0,2}against\b|\b(?:told|tells?) \w* ?apart\b|\btold from\b|\bfor want of\b",
    re.IGNORECASE,
)
"""Words of this project's own for what the field calls resume, restore, compare, fix, distinguish."""


def test_the_words_are_those_of_the_field() -> None:
    folders = ("megatron_apriel", "tools", "examples", "benchmarks", "docker", "findings")
    files = [*PAGES, *(file for folder in folders for file in sorted((ROOT / folder).rglob("*.*")))]
    found = [
        f"{file.relative_to(ROOT)}: {match.group()}"
        for file in files
        if file.suffix in (".md", ".py", ".sh", ".yaml") and "results" not in file.parts
        for match in PRIVATE_WORDS.finditer(re.sub(r"\s+#?\s*", " ", file.read_text(encoding="utf-8")))
    ]
    assert not found
