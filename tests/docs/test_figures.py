"""Every measured figure in the documents says where it comes from, and the result that a table links to has it."""

from __future__ import annotations

from pathlib import Path

import pytest
from documents import ROOT
from figures import blocks, not_in_result, without_evidence

PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
RESULT = "benchmarks/results/step.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_measured_figures_have_evidence(page: Path) -> None:
    assert not without_evidence(page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_figures_of_tables_stand_in_the_linked_result(page: Path) -> None:
    assert not not_in_result(page.read_text(encoding="utf-8"), page.parent)


def test_the_documents_have_figures() -> None:
    found = [block for page in PAGES for block in blocks(page.read_text(encoding="utf-8")) if block.figures]
    assert len(found) > 30


@pytest.mark.parametrize(
    "text",
    [
        "A step runs at 897 TFLOP/s.",
        "The products take 19.97 ms\nas cuBLAS chooses them.",
        "- a step takes 1.11 times the least",
        "It is 3 to 6% slower.",
        "Memory agrees within 2.5%.",
        "The recipe took six minutes.",
        "On one H200 it needs 72.2 GiB.",
        "| | tokens/s |\n|---|---|\n| this project | 9,727 |",
        "| | bf16 |\n|---|---|\n| milliseconds a layer | 24.6 |",
        "| documents | 8192 |\n|---|---|\n| short ones | 0.02% |",
    ],
)
def test_a_figure_without_evidence_is_named(text: str) -> None:
    assert len(without_evidence(text)) == 1
    for evidence in (f"[one run](../{RESULT})", "`make quickstart`"):
        assert without_evidence(f"By {evidence}:\n\n{text}" if "|" in text else f"{text} By {evidence}.") == []


@pytest.mark.parametrize(
    "text",
    [
        "A record of more than 256 MiB is a bad record.",
        "The run saves 300 seconds before the limit; `--budget 470` ends it.",
        "Weights are 2 + 4 + 12 bytes each.",
        "Mixtures of 70% images and 30% text.",
        "| setting | default |\n|---|---|\n| `sequence_length` | 8192 |",
        "```\n897 TFLOP/s\n```",
    ],
)
def test_limits_settings_and_listings_are_no_figures(text: str) -> None:
    assert without_evidence(text) == []


def test_a_figure_that_the_result_does_not_have_is_named(tmp_path: Path) -> None:
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / RESULT).write_text("| ours | 9,727 | 896.6 | 16.07 |")
    row = f"| | tokens/s | TFLOP/s | ms |\n|---|---|---|---|\n| [ours]({RESULT}) | 9,727 | 897 | "
    assert not_in_result(f"{row}16.1 |", tmp_path) == []
    assert not_in_result(f"{row}16.2 |", tmp_path) == ["line 3: 16.2 is not in step.md"]
