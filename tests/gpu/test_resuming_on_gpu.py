"""Whole runs on one GPU through the command line: interrupted, and with activations computed again."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from whole_runs import losses, run, started

from megatron_apriel.testing.marks import needs_transformer_engine

pytestmark = [pytest.mark.gpu, needs_transformer_engine]
pytest.importorskip("nvidia.dali")

RUNS = {
    "bf16": [],
    "in_foreground": [],
    "in_background": ["checkpoint.background=true"],
    "selective": ["recompute={mode: selective}"],
    "full": ["recompute={mode: full}"],
}


@pytest.fixture(scope="module")
def runs(root: Path) -> Iterator[dict[str, Future[list[float]]]]:
    with started(root, RUNS) as begun:
        yield begun


@pytest.mark.parametrize("name", ["in_foreground", "in_background"])
def test_resumes(root: Path, runs: dict[str, Future[list[float]]], name: str) -> None:
    """A run whose last checkpoint is missing resumes from the one before, however that was saved."""
    runs[name].result()
    (root / name / "checkpoints" / "step_00000012").rename(root / f"{name}_aside")
    records = run(root, name)
    assert [record["step"] for record in records][-4:] == [9, 10, 11, 12]
    assert losses(records) == pytest.approx(runs["bf16"].result(), rel=2e-3)


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_recomputation_changes_nothing(runs: dict[str, Future[list[float]]], mode: str) -> None:
    assert runs[mode].result() == pytest.approx(runs["bf16"].result(), rel=2e-3)
