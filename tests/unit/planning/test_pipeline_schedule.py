"""The pipeline's schedule: by hand, by the known formula where chunks are alike, and beside Megatron's own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core import ModelParallelConfig
from megatron.core.pipeline_parallel import schedules, utils
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator
from megatron.core.process_groups_config import ProcessGroupCollection

from megatron_apriel.planning import pipeline_schedule
from megatron_apriel.planning.pipeline_schedule import Message, Pass, Wait, order_of_passes, pipeline_seconds, program

Passes = list[list[list[float]]]
SHAPES = [(2, 1, 5), (4, 1, 2), (4, 1, 9), (4, 3, 8), (2, 6, 4), (2, 2, 2), (3, 2, 6), (8, 2, 16)]


def alike(passes: list[list[float]]) -> Passes:
    """The same in every micro-batch."""
    return [[[seconds] for seconds in rank] for rank in passes]


@pytest.mark.parametrize(("message", "expected"), [(0.0, 15.0), (0.5, 16.5)])
def test_two_ranks_by_hand(message: float, expected: float) -> None:
    """Rank 1 takes twice as long: it runs from 1 on without a break, and rank 0 ends 2 after it.

    It waits for its first input, for its second while it sends a gradient back, and rank 0 for the last gradient.
    """
    assert pipeline_seconds(alike([[1.0], [2.0]]), alike([[2.0], [4.0]]), 2, message) == expected


@pytest.mark.parametrize(("ranks", "virtual", "number"), [(2, 1, 8), (4, 1, 4), (4, 3, 8), (2, 6, 4), (8, 2, 64)])
def test_chunks_that_are_alike(ranks: int, virtual: int, number: int) -> None:
    passes = alike([[1 / virtual] * virtual] * ranks), alike([[2 / virtual] * virtual] * ranks)
    assert pipeline_seconds(*passes, number, 0) == pytest.approx(3 * (number + (ranks - 1) / virtual))


def test_a_long_chunk_makes_the_others_wait() -> None:
    """Both ranks have equally much to do in all, the second most of it in its last chunk."""

    def seconds(first: float, last: float) -> float:
        forward = [[1.0, 1.0], [first, last]]
        return pipeline_seconds(alike(forward), alike([[2 * one for one in rank] for rank in forward]), 8, 0)

    assert seconds(1.0, 1.0) == 8 * 6 + 3
    assert seconds(1.0, 1.0) < seconds(0.5, 1.5) < seconds(0.2, 1.8)


def test_a_long_sequence_makes_the_others_wait() -> None:
    """Both micro-batches together are the same work, but a rank stands still while the other has the longer one."""

    def seconds(short: float, long: float) -> float:
        forward = [[[short, long]], [[short, long]]]
        return pipeline_seconds(forward, [[[2 * one for one in chunk] for chunk in rank] for rank in forward], 2, 0)

    # Rank 1: forward and backward of the first, then of the second. Rank 0 is before and behind it.
    assert seconds(1.0, 1.0) == 9
    assert seconds(0.5, 1.5) == 0.5 + 0.5 + max(1.0, 1.5 - 0.5) + 1.5 + 3.0 + 3.0


def test_nobody_is_ahead_of_a_message() -> None:
    """Rank 0 has nothing to do but its first pass, and still ends with the last backward pass: it waits for each."""
    none = [[[0.0] * 4] * 2, [[1.0] * 4] * 2]
    assert pipeline_seconds(none, none, 4, 0) == 2 * 2 * 4
    assert pipeline_seconds(none, none, 4, 0.25) > 2 * 2 * 4


def test_many_micro_batches_are_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    forward, backward = alike([[1.0, 1.3, 0.9], [1.1, 0.7, 1.9]]), alike([[2.1, 2.6, 1.7], [2.2, 1.4, 3.8]])
    short = pipeline_seconds(forward, backward, 60, 0.1)
    monkeypatch.setattr(pipeline_schedule, "_GROUPS", 1000)
    assert short == pytest.approx(pipeline_seconds(forward, backward, 60, 0.1), rel=0.002)


def test_micro_batches_that_differ_are_all_followed() -> None:
    forward: Passes = [[[1.0] * 59 + [50.0]], [[1.0] * 60]]
    assert pipeline_seconds(forward, forward, 60, 0) > 59 * 2 + 100


@pytest.mark.parametrize(("ranks", "virtual", "number"), SHAPES)
def test_the_order_is_megatrons(ranks: int, virtual: int, number: int) -> None:
    table = schedules.get_schedule_table(number, virtual, ranks)
    for rank in range(ranks):
        passes = order_of_passes(ranks, virtual, number, rank)
        assert [(one.micro_batch, one.chunk) for one in passes if one.forward] == table
        assert [(one.micro_batch, virtual - 1 - one.chunk) for one in passes if not one.forward] == table


@pytest.mark.parametrize(("ranks", "virtual", "number"), SHAPES)
def test_passes_messages_and_waits_are_megatrons(
    ranks: int, virtual: int, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its schedule run rank by rank, with passes and messages that only write down that they were."""
    for rank in range(ranks):
        recorded = _recorded(ranks, virtual, number, rank, monkeypatch)
        assert list(_normal(program(ranks, virtual, number, rank))) == list(_normal(recorded))


def _normal(steps: Any) -> Iterator[Any]:
    """Without waiting twice, what comes at the same moment in one order, and waits by the messages themselves."""
    names: list[tuple[Message, int]] = []
    waited: set[int] = set()
    for kind, group in itertools.groupby(steps, type):
        if kind is Pass:
            yield from group
        elif kind is Message:
            posted = list(group)
            for one in posted:
                names.append((one, sum(other == one for other, _ in names)))
            yield sorted(posted)
        else:
            new = {one.message for one in group} - waited
            waited |= new
            if new:
                yield sorted(names[message] for message in new)


def _recorded(ranks: int, virtual: int, number: int, rank: int, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    steps: list[Any] = []
    group = SimpleNamespace(size=lambda: ranks, rank=lambda: rank)
    config = ModelParallelConfig(
        pipeline_model_parallel_size=ranks,
        virtual_pipeline_model_parallel_size=virtual if virtual > 1 else None,
        pipeline_dtype=torch.float32,
        overlap_p2p_comm=virtual > 1,
        batch_p2p_comm=virtual == 1,
        deallocate_pipeline_outputs=True,
    )
    config.hidden_size = 1

    class Recorder(P2PCommunicator):  # type: ignore[misc]
        def __init__(self) -> None:
            self.pp_group, self.config = group, config
            self.virtual_pipeline_model_parallel_size = config.virtual_pipeline_model_parallel_size

        def _communicate(
            self,
            *,
            tensor_send_next: Any,
            tensor_send_prev: Any,
            recv_prev: bool,
            recv_next: bool,
            tensor_shape: Any,
            wait_on_reqs: bool = True,
        ) -> Any:
            handles = {}
            for name, wanted, message in (
                ("send_next", tensor_send_next is not None, Message(True, (rank + 1) % ranks)),
                ("recv_prev", recv_prev, Message(False, (rank - 1) % ranks)),
                ("send_prev", tensor_send_prev is not None, Message(True, (rank - 1) % ranks)),
                ("recv_next", recv_next, Message(False, (rank + 1) % ranks)),
            ):
                if wanted:
                    place = sum(isinstance(step, Message) for step in steps)
                    steps.append(message)
                    handles[name] = SimpleNamespace(wait=lambda place=place: steps.append(Wait(place)))
            if wait_on_reqs:
                for handle in handles.values():
                    handle.wait()
            received = [torch.zeros(1) if wanted else None for wanted in (recv_prev, recv_next)]
            return *received, None if wait_on_reqs else handles

    counts = {True: itertools.count(), False: itertools.count()}
    passes = {kind: [one for one in order_of_passes(ranks, virtual, number, rank) if one.forward == kind]
              for kind in (True, False)}  # fmt: skip

    def step(forward: bool) -> None:
        steps.append(passes[forward][next(counts[forward])])

    def forward_step(*args: Any, **kwargs: Any) -> Any:
        step(True)
        return torch.zeros(1), 0

    def backward_step(*args: Any, **kwargs: Any) -> Any:
        step(False)
        return torch.zeros(1)

    zeros = torch.zeros
    monkeypatch.setattr(schedules.torch, "zeros", lambda *args, device=None, **kwargs: zeros(*args, **kwargs))
    monkeypatch.setattr(utils, "get_pg_rank", lambda one: one.rank())
    monkeypatch.setattr(utils, "get_pg_size", lambda one: one.size())
    monkeypatch.setattr(schedules, "forward_step", forward_step)
    monkeypatch.setattr(schedules, "backward_step", backward_step)
    monkeypatch.setattr(schedules, "get_model_config", lambda model: config)
    monkeypatch.setattr(schedules, "get_model_type", lambda model: None)
    one = SimpleNamespace(size=lambda: 1, rank=lambda: 0)
    run = (
        schedules.forward_backward_pipelining_with_interleaving
        if virtual > 1
        else schedules.forward_backward_pipelining_without_interleaving
    )
    model = [torch.nn.Identity() for _ in range(virtual)]
    run(
        forward_step_func=None,
        data_iterator=[None] * virtual if virtual > 1 else None,
        model=model if virtual > 1 else model[0],
        num_microbatches=number,
        seq_length=1,
        micro_batch_size=1,
        p2p_communicator=Recorder(),
        pg_collection=ProcessGroupCollection(tp=one, cp=one, pp=group),
    )
    monkeypatch.undo()
    return steps
