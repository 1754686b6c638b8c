"""The pipeline's schedule: by hand, by the known formula where chunks are alike, and Megatron's own order of passes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from megatron.core.pipeline_parallel.schedules import get_pp_rank_microbatches, get_schedule_table

from megatron_apriel.planning import pipeline_schedule
from megatron_apriel.planning.pipeline_schedule import order_of_passes, pipeline_seconds


@pytest.mark.parametrize(("message", "expected"), [(0.0, 15.0), (0.5, 16.0)])
def test_two_ranks_by_hand(message: float, expected: float) -> None:
    """Rank 1 takes twice as long: it runs from 1 (and a message) on without a break, and rank 0 ends 2 after it."""
    assert pipeline_seconds([[1.0], [2.0]], [[2.0], [4.0]], 2, message) == expected


@pytest.mark.parametrize(("ranks", "virtual", "number"), [(2, 1, 8), (4, 1, 4), (4, 3, 8), (2, 6, 4), (8, 2, 64)])
def test_chunks_that_are_alike(ranks: int, virtual: int, number: int) -> None:
    seconds = pipeline_seconds([[1 / virtual] * virtual] * ranks, [[2 / virtual] * virtual] * ranks, number, 0)
    assert seconds == pytest.approx(3 * (number + (ranks - 1) / virtual))


def test_a_long_chunk_makes_the_others_wait() -> None:
    """Both ranks have equally much to do in all, the second most of it in its last chunk."""
    even = pipeline_seconds([[1.0, 1.0], [1.0, 1.0]], [[2.0, 2.0], [2.0, 2.0]], 8, 0)
    uneven = pipeline_seconds([[1.0, 1.0], [0.5, 1.5]], [[2.0, 2.0], [1.0, 3.0]], 8, 0)
    uneven_more = pipeline_seconds([[1.0, 1.0], [0.2, 1.8]], [[2.0, 2.0], [0.4, 3.6]], 8, 0)
    assert even == 8 * 6 + 3 and even < uneven < uneven_more


def test_many_micro_batches_are_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    forward, backward = [[1.0, 1.3, 0.9], [1.1, 0.7, 1.9]], [[2.1, 2.6, 1.7], [2.2, 1.4, 3.8]]
    short = pipeline_seconds(forward, backward, 60, 0.1)
    monkeypatch.setattr(pipeline_schedule, "_GROUPS", 1000)
    assert short == pytest.approx(pipeline_seconds(forward, backward, 60, 0.1), rel=0.002)


@pytest.mark.parametrize(("ranks", "virtual", "number"), [(2, 1, 5), (4, 1, 2), (4, 3, 8), (2, 6, 4), (8, 2, 16)])
def test_the_order_is_megatrons(ranks: int, virtual: int, number: int) -> None:
    table = get_schedule_table(number, virtual, ranks)
    for rank in range(ranks):
        passes = order_of_passes(ranks, virtual, number, rank)
        assert [(one.micro_batch, one.chunk) for one in passes if one.forward] == table
        assert [(one.micro_batch, virtual - 1 - one.chunk) for one in passes if not one.forward] == table
        ahead = _ahead(ranks, virtual, number, rank)
        assert all(one.forward for one in passes[:ahead]) and not passes[min(ahead + 1, len(table))].forward


def _ahead(ranks: int, virtual: int, number: int, rank: int) -> int:
    """Forward passes before the first pair, as Megatron counts them."""
    group = SimpleNamespace(size=lambda: ranks, rank=lambda: rank)
    place = SimpleNamespace(pp_group=group, virtual_pipeline_model_parallel_size=virtual if virtual > 1 else None)
    return int(get_pp_rank_microbatches(number, virtual, ranks, p2p_communicator=place)[2])
