"""Every layout of the table on real GPUs, over NCCL, in bf16 and each FP8 recipe, against one GPU.

One group of processes trains on all that is wanted of a number of ranks, and each test waits for its own part of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from layout_runs import ALONE, TABLE, by_worth, can_run

from megatron_apriel.testing.marks import needs_gpus, needs_transformer_engine

pytestmark = [pytest.mark.gpu, needs_gpus(2), needs_transformer_engine]

RUNNER = Path(__file__).parent / "layout_runs.py"
# Weights and activations have 8 bits of precision in bf16, and 4 in FP8, whose scales are those of each rank's part.
TOLERANCES = {"bf16": (2e-3, 2e-2)} | dict.fromkeys(("tensorwise", "delayed", "blockwise"), (1e-2, 6e-2))
"""Precision -> relative tolerance of losses and of gradient norms."""
PRESENT = torch.cuda.device_count() or 2
PAIRS = [
    (name, precision)
    for name in by_worth(TABLE)
    if name != ALONE and TABLE[name].layout.world_size <= PRESENT
    for precision in TOLERANCES
    if can_run(TABLE[name], precision)
]
PATIENCE = 150
"""Seconds without anything new after which processes are taken for stuck."""
MOST_STARTS = 3
"""Of one number of ranks; what is left after the last has no outcome."""

Pair = tuple[str, str]
Outcome = dict[str, dict[str, list[float]]]
"""By case, the losses and gradient norms of its steps."""


class Trained:
    """What processes find, one for each of so many ranks; started again behind a pair that ends them.

    Args:
        ranks: how many.
        pairs: what they are to train, in this order.
        directory: for their results and output.
    """

    def __init__(self, ranks: int, pairs: list[Pair], directory: Path) -> None:
        self._ranks, self._left, self._directory = ranks, list(pairs), directory
        self._found: dict[Pair, Outcome | str] = {}
        self._starts = 0
        self._process: subprocess.Popen[bytes] | None = None

    def of(self, pair: Pair) -> Outcome | str:
        """What a pair gave, or why it gave nothing."""
        while pair not in self._found:
            self._wait_for_the_next(self.start())
        return self._found[pair]

    def start(self) -> subprocess.Popen[bytes]:
        """The processes, if they do not run yet."""
        if self._process is None:
            self._starts += 1
            self._result = self._directory / f"{self._ranks}-{self._starts}.json"
            launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(self._ranks)]
            command = [sys.executable, "-m", *launcher, str(RUNNER), str(self._result), json.dumps(self._left)]
            paths = os.pathsep.join(filter(None, [str(RUNNER.parents[2]), os.environ.get("PYTHONPATH", "")]))
            with self._result.with_suffix(".log").open("wb") as log:
                self._process = subprocess.Popen(
                    command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "PYTHONPATH": paths}
                )
        return self._process

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def _wait_for_the_next(self, process: subprocess.Popen[bytes]) -> None:
        ends, ended = time.monotonic() + PATIENCE, False
        while not ended and time.monotonic() < ends:
            ended = process.poll() is not None
            if self._take():
                return
            time.sleep(0.1)
        self.stop()
        said = self._result.with_suffix(".log").read_text(errors="replace")[-6000:]
        reason = f"its ranks {'failed' if ended else f'said nothing for {PATIENCE} s'}:\n{said}"
        of_no_use = self._left if self._starts == MOST_STARTS else self._left[:1]
        self._found |= dict.fromkeys(of_no_use, reason)
        del self._left[: len(of_no_use)]

    def _take(self) -> bool:
        """Whether there is anything new; it is taken."""
        there = json.loads(self._result.read_text(encoding="utf-8")) if self._result.exists() else {}
        new = {(name, precision): there[name][precision] for name in there for precision in there[name]}
        new = {pair: outcome for pair, outcome in new.items() if pair in self._left}
        self._found |= new
        self._left = [pair for pair in self._left if pair not in new]
        return bool(new)


@pytest.fixture(scope="module")
def found(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Callable[[Pair], Outcome | str]]:
    """What a pair of layout and precision gave; only what was selected is trained."""
    directory = tmp_path_factory.mktemp("layouts")
    chosen = [item.callspec.params for item in request.session.items if getattr(item, "callspec", None)]
    asked = {(params["name"], params["precision"]) for params in chosen if {"name", "precision"} <= params.keys()}
    pairs = [pair for pair in PAIRS if pair in asked]
    wanted = {1: [(ALONE, precision) for precision in TOLERANCES if precision in {pair[1] for pair in pairs}]}
    for pair in pairs:
        wanted.setdefault(TABLE[pair[0]].layout.world_size, []).append(pair)
    trained = {ranks: Trained(ranks, of_ranks, directory) for ranks, of_ranks in wanted.items()}
    trained[1].start()
    try:
        yield lambda pair: trained[TABLE[pair[0]].layout.world_size].of(pair)
    finally:
        for group in trained.values():
            group.stop()


@pytest.mark.parametrize(("name", "precision"), PAIRS)
def test_layout_equals_one_gpu(found: Callable[[Pair], Outcome | str], name: str, precision: str) -> None:
    outcome, expected = found((name, precision)), found((ALONE, precision))
    assert isinstance(outcome, dict), outcome
    assert isinstance(expected, dict), expected
    losses, norms = TOLERANCES[precision]
    for case in expected:
        assert outcome[case]["losses"] == pytest.approx(expected[case]["losses"], rel=losses), case
        assert outcome[case]["norms"] == pytest.approx(expected[case]["norms"], rel=norms), case
