"""Whole runs on one GPU through the command line: like the CPU's, and in FP8 like in bf16."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
from whole_runs import started

from megatron_apriel.testing.marks import needs_transformer_engine

pytestmark = [pytest.mark.gpu, needs_transformer_engine]
pytest.importorskip("nvidia.dali")

RECIPES = ("delayed", "tensorwise", "blockwise")


@pytest.fixture(scope="module")
def runs(root: Path) -> Iterator[dict[str, Future[list[float]]]]:
    with started(
        root,
        {"bf16": [], "cpu": ["precision={compute: fp32}"]}
        | {recipe: [f"precision.fp8={recipe}"] for recipe in RECIPES},
    ) as begun:
        yield begun


def test_bf16_follows_the_cpu_in_float32(runs: dict[str, Future[list[float]]]) -> None:
    assert len(runs["bf16"].result()) == 12
    assert runs["bf16"].result() == pytest.approx(runs["cpu"].result(), rel=0.01)


@pytest.mark.parametrize("recipe", RECIPES)
def test_fp8_follows_bf16(runs: dict[str, Future[list[float]]], recipe: str) -> None:
    assert runs[recipe].result() == pytest.approx(runs["bf16"].result(), rel=0.03)
