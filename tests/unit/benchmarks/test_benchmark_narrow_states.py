"""The comparison of narrow states with exact ones: its arithmetic by hand, and the command in miniature."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import narrow_states

SETTINGS = dict.fromkeys(("hidden", "layers", "micro_batches", "sequence_length", "peak", "steps", "seeds"), 1)


def run(*held_out: float) -> dict[str, Any]:
    return {"held_out": list(held_out), "bytes": 10.0, "seconds": 1.0}


def record(**runs: dict[str, Any]) -> dict[str, Any]:
    names = {"exact": narrow_states.EXACT, "control": narrow_states.CONTROL}
    return SETTINGS | {"runs": {names.get(name, name): each for name, each in runs.items()}}


@pytest.mark.parametrize(
    ("control", "narrow", "most", "holds"),
    [
        ((4.0, 2.0), (4.003, 2.0015), 0.001, True),
        ((4.0, 2.0), (4.005, 2.0025), 0.001, False),
        ((4.0, 2.0), (4.02, 1.99), 0.001, True),
        ((4.008, 1.996), (4.012, 2.006), 0.004, True),
        ((4.008, 1.996), (4.02, 2.01), 0.004, False),
        ((4.0, 2.0), (float("nan"), 2.0), 0.001, False),
    ],
)
def test_the_mean_difference_must_be_none(
    control: tuple[float, float], narrow: tuple[float, float], most: float, holds: bool
) -> None:
    found = record(exact=run(4.0, 2.0), control=run(*control), narrow=run(*narrow))
    assert narrow_states.allowed(found) == pytest.approx(most)
    assert narrow_states.holds(found) == holds


def test_a_failed_run_does_not_hold() -> None:
    assert not narrow_states.holds(record(exact=run(4.0), narrow={"failed": "why"}))


def test_the_page_has_a_row_for_each_form() -> None:
    found = record(exact=run(4.0, 2.0), control=run(4.0, 2.0), narrow=run(4.004, 2.002))
    body = narrow_states.page(found).body
    assert "| narrow | 10.00 | 3.0030 | +0.100% | +0.100%, +0.100% | 0.100% | 1 |" in body
    assert len(narrow_states.rows(found)) == 3


def test_the_command_in_miniature(tmp_path: Path) -> None:
    sizes = ["--layers=1", "--hidden=128", "--sequence-length=64", "--steps=3", "--seeds=1", "--at-once=1"]
    command = [sys.executable, narrow_states.__file__, "--tiny", *sizes, "--forms=exact;all narrow"]
    done = subprocess.run([*command, "--output", str(tmp_path)], capture_output=True, text=True, check=False)
    (written,) = tmp_path.glob("narrow_states-*.json")
    found = json.loads(written.read_text())
    exact, narrow = (found["runs"][form] for form in ("exact", "all narrow"))
    assert done.returncode == (0 if narrow_states.holds(found) else 1), done.stderr
    assert narrow["held_out"] == pytest.approx(exact["held_out"], rel=1e-2)
    assert narrow["bytes"] < exact["bytes"]
