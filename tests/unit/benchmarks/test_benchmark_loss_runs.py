"""What comparisons of losses share: the rate by hand, the text in its order, and a run that fails."""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import pytest
import torch

from benchmarks import loss_runs


def test_the_rate_rises_and_falls_to_a_tenth() -> None:
    rates = [loss_runs.rate_at(step, 100, 2.0) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[19] == rates[20] == pytest.approx(2.0)
    assert rates[60] == pytest.approx(1.1)
    assert rates[100] == pytest.approx(0.2)


def test_text_is_in_the_same_mixed_order_every_time() -> None:
    first, again = (list(islice(loss_runs.real_text(), 300)) for _ in range(2))
    assert first == again
    assert max(map(len, first)) <= loss_runs.LONGEST
    of_torch = ["torch" in text for text in first]
    assert all(sum(of_torch[start : start + 100]) > 20 for start in (0, 100, 200)), "kinds of text are not mixed"


def test_words_are_numbered_by_frequency() -> None:
    tokens = loss_runs.words_of_text(5000, 16384)
    assert tokens.shape == (5000,)
    counts = tokens.bincount()
    assert counts[1] == counts.max()


def test_a_run_that_ends_without_a_result_says_its_last_line(tmp_path: Path) -> None:
    script = tmp_path / "comparison.py"
    script.write_text("import sys\nsys.exit('no such form')\n")
    parser = argparse.ArgumentParser()
    loss_runs.add_run_options(parser, hidden=128, sequence_length=64, steps=2, peak=1e-3)
    arguments = argparse.Namespace(**vars(parser.parse_args([])), at_once=2)
    found = loss_runs.run_all(str(script), arguments, ["a", "b"], torch.zeros(4))
    assert found == {"a": {"failed": "no such form"}, "b": {"failed": "no such form"}}
