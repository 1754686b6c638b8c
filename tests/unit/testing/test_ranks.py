"""The multi-process runner of the tests: results in order, and failures that name the rank and say why."""

from __future__ import annotations

import io
import os
import queue
import time
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
import torch.distributed as dist

from megatron_apriel.errors import AprielError, ConfigError, DataError
from megatron_apriel.parallel import groups
from megatron_apriel.parallel.agreement import alike
from megatron_apriel.parallel.layout import Layout
from megatron_apriel.testing import ranks
from megatron_apriel.testing.ranks import RankFailure, run_ranks


def test_results_come_in_rank_order_with_tensors_by_value() -> None:
    def add_up(rank: int, size: int, offset: int) -> dict:
        total = torch.tensor(rank + offset)
        dist.all_reduce(total)
        return {"rank": rank, "environment": os.environ["RANK"], "total": total}

    results = run_ranks(3, add_up, 10)
    assert [(r["rank"], r["environment"], r["total"].item()) for r in results] == [(i, str(i), 33) for i in range(3)]


def test_the_rank_that_raised_is_named() -> None:
    def fail(rank: int, size: int) -> None:
        if rank == 1:
            raise ValueError("this one")
        dist.barrier()

    with pytest.raises(RankFailure, match=r"(?s)rank 1 of 2 raised:.*ValueError: this one"):
        run_ranks(2, fail)


def test_the_others_are_heard_too() -> None:
    """Also where one takes a while to notice that the first is gone."""

    def fail(rank: int, size: int) -> None:
        time.sleep(rank)
        raise ValueError(f"number {rank}")

    with pytest.raises(RankFailure, match=r"(?s)ValueError: number 0.*ValueError: number 1"):
        run_ranks(2, fail)


def test_who_failed_and_who_died_are_both_named() -> None:
    def end(rank: int, size: int) -> None:
        if rank == 1:
            os._exit(3)
        raise ValueError("this one")

    with pytest.raises(RankFailure, match=r"(?s)rank 0 of 2 raised:.*ValueError: this one.*\{1: 3\}"):
        run_ranks(2, end)


def test_an_answer_that_comes_just_before_the_end_counts() -> None:
    """As on a busy machine, where much happens between two looks."""
    saved = io.BytesIO()
    torch.save("late", saved)
    process = SimpleNamespace(exitcode=None, join=lambda timeout: None)

    class Answers:
        waiting: ClassVar[list[object]] = []

        def get(self, timeout: float) -> object:
            if not self.waiting:
                self.waiting.append((0, saved.getvalue(), None))
                process.exitcode = 0
                raise queue.Empty
            return self.waiting.pop()

    assert ranks._collect([process], Answers(), time.monotonic() + 60) == ["late"]


def test_a_rank_that_dies_is_named() -> None:
    def die(rank: int, size: int) -> None:
        if rank == 1:
            os._exit(3)
        time.sleep(60)

    with pytest.raises(RankFailure, match=r"\{0: None, 1: 3\}"):
        run_ranks(2, die)


def test_ranks_that_hang_are_given_up() -> None:
    with pytest.raises(RankFailure, match=r"no answer from ranks .*\{0: None\}"):
        run_ranks(1, lambda rank, size: time.sleep(60), timeout=1)


def test_a_layout_for_another_number_of_ranks_is_refused() -> None:
    def initialize(rank: int, size: int) -> None:
        with pytest.raises(ConfigError, match=r"for 4 ranks, but 2 were started"), groups.initialized(Layout(4)):
            pass
        # The process group was there before, and remains.
        dist.barrier()

    run_ranks(2, initialize)


def test_groups_come_and_go() -> None:
    def twice(rank: int, size: int) -> list[tuple[int, float]]:
        seen = []
        for layout in (Layout(2, tensor=2), Layout(2, pipeline=2)):
            with groups.initialized(layout, seed=3) as device:
                assert device.type == "cpu"
                seen.append((groups.image_shares_group().size(), torch.rand(1).item()))
                assert groups.group_of_one().size() == 1
        return seen

    first, second = run_ranks(2, twice)
    assert [size for size, _ in first] == [2, 1]
    # Tensor-parallel ranks draw alike, pipeline stages do not.
    assert first[0] == second[0] and first[1] != second[1]


def test_what_fails_on_one_rank_ends_all_alike() -> None:
    def work(rank: int, size: int, failing: int) -> tuple[str, str]:
        def alone() -> int:
            if rank == failing:
                raise DataError("corpus.json is missing.", "This host lacks it.")
            return rank

        try:
            return "", str(alike(alone))
        except AprielError as error:
            dist.barrier()
            return type(error).__name__, str(error)

    assert run_ranks(3, work, -1) == [("", "0"), ("", "1"), ("", "2")]
    other, failed, another = run_ranks(3, work, 1)
    assert failed == ("DataError", "corpus.json is missing.\n  This host lacks it.")
    assert other == another
    assert other[1] == (
        "1 of 3 ranks cannot continue, so all end; rank 1 says:\n  corpus.json is missing.\n    This host lacks it."
    )
