"""The comparison of losses in 8 bits: its arithmetic by hand, and the command in miniature."""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import fp8_loss, versions


def test_smoothing_takes_the_last_values() -> None:
    assert fp8_loss.smoothed([1, 2, 3, 6], window=2) == [1, 1.5, 2.5, 4.5]


def test_difference_is_of_smoothed_losses() -> None:
    assert fp8_loss.relative_difference([2.2, 4.2], [2.0, 4.0]) == pytest.approx([0.1, 0.2 / 3])


def conclusion(arguments: argparse.Namespace, runs: dict[str, Any]) -> int:
    begun = datetime.datetime.now(datetime.UTC)
    settings = dict.fromkeys(("hidden", "layers", "micro_batches", "sequence_length", "peak", "steps"), 1)
    record = versions.facts("fp8_loss", "abc", {"device": "CPU"}, begun)
    return fp8_loss._conclude(arguments, record | settings | {"tokenizer": "words", "runs": runs}, begun)


@pytest.mark.parametrize(("last", "code"), [(2.01, 0), (2.05, 1), (1.95, 1), (float("nan"), 1)])
def test_the_judged_recipe_must_hold(tmp_path: Path, last: float, code: int) -> None:
    arguments = fp8_loss._parser().parse_args(["--output", str(tmp_path), "--judged", "delayed"])
    runs = {"bf16": {"losses": [2.0] * 80, "seconds": 1}, "delayed": {"losses": [2.0] * 30 + [last] * 50, "seconds": 1}}
    assert conclusion(arguments, runs) == code


def test_a_failed_run_fails(tmp_path: Path) -> None:
    arguments = fp8_loss._parser().parse_args(["--output", str(tmp_path)])
    runs = {"bf16": {"losses": [2.0], "seconds": 1}, "delayed": {"failed": "why"}}
    assert conclusion(arguments, runs) == 1


def test_the_command_in_miniature(tmp_path: Path) -> None:
    options = [
        "--tiny",
        "--precisions",
        "bf16,bf16-reversed",
        "--layers=1",
        "--hidden=128",
        "--sequence-length=64",
        "--steps=6",
    ]
    command = [sys.executable, fp8_loss.__file__, *options, "--peak=1e-2", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (written,) = tmp_path.glob("fp8_loss-*.json")
    runs = json.loads(written.read_text())["runs"]
    losses = runs["bf16"]["losses"]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    # The same sums in another order.
    assert runs["bf16-reversed"]["losses"] == pytest.approx(losses, rel=1e-4)
    assert len(list(tmp_path.glob("*.png"))) == 1
