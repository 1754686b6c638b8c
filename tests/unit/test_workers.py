"""Work over forked processes: results in order, few tasks under way, a worker that dies is an error."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from megatron_apriel.errors import DataError
from megatron_apriel.inputs import NotAFileError, TooLargeError, read_input
from megatron_apriel.workers import Workers, end_with_parent

LESS_MEMORY = "Use fewer."


def times(shared: list[int], task: int) -> tuple[int, int]:
    """The product, and the process that made it."""
    return shared[0] * task, os.getpid()


def die(shared: list[int], task: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return task


@pytest.mark.parametrize("number", [1, 3])
def test_results_come_in_order_from_processes_of_their_own(number: int) -> None:
    with Workers([7], number, LESS_MEMORY) as workers:
        found = list(workers.in_order(times, range(50)))
    assert [product for product, _ in found] == [7 * task for task in range(50)]
    assert (os.getpid() in {process for _, process in found}) == (number == 1)


def test_a_worker_that_dies_is_an_error_with_the_remedy() -> None:
    with (
        Workers([7], 2, LESS_MEMORY) as workers,
        pytest.raises(DataError, match="one of 2 worker processes ended") as raised,
    ):
        list(workers.in_order(die, range(5)))
    assert raised.value.fix == LESS_MEMORY


class OfTwoError(Exception):
    """Made of something else than what it says, as pickle does not know."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def fail(shared: list[Path], task: str) -> bytes:
    if task == "of two":
        raise OfTwoError("salt", "pepper")
    return read_input(shared[0] / task, most=3)


@pytest.mark.parametrize(
    ("task", "kind", "words"),
    [
        ("pipe", NotAFileError, "it is a pipe"),
        ("large", TooLargeError, "it has 4 bytes, and at most 3"),
        ("absent", FileNotFoundError, "absent"),
        ("of two", RuntimeError, "salt and pepper"),
    ],
)
def test_an_error_of_a_worker_is_not_its_death(task: str, kind: type[Exception], words: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"1234")
    with Workers([tmp_path], 2, LESS_MEMORY) as workers, pytest.raises(kind, match=words) as raised:
        list(workers.in_order(fail, [task]))
    if isinstance(raised.value, OSError):
        assert raised.value.filename == str(tmp_path / task)


def test_a_process_whose_parent_is_gone_already_ends_too() -> None:
    """As one that was killed between the start of a worker and its first instruction."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=end_with_parent, args=(parent, signal.SIGKILL)) for parent in (os.getpid(), 0)]
    for process in processes:
        process.start()
        process.join()
    assert [process.exitcode for process in processes] == [0, -signal.SIGKILL]


def test_a_process_that_becomes_another_program_ends_with_its_parent() -> None:
    """Also where its parent dies before it has: the parent's handler, which it still has, does not take the signal."""
    reading, writing = os.pipe()
    if not (parent := os.fork()):
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        own = os.getpid()
        if not os.fork():
            end_with_parent(own, signal.SIGTERM)
            os.write(writing, b"ready")
            time.sleep(60)
            os._exit(0)
        os.read(reading, 5)
        os._exit(0)
    os.waitpid(parent, 0)
    os.close(writing)
    began = time.monotonic()
    assert os.read(reading, 1) == b"" and time.monotonic() - began < 30  # nobody can write any more
    os.close(reading)


def test_only_a_few_tasks_are_under_way() -> None:
    """What is read is never more than a fixed number of tasks ahead of what is taken."""
    workers = Workers([7], 2, LESS_MEMORY)

    class Pool:
        def submit(self, function: Any, *arguments: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_result(None)
            return future

    workers.pool = Pool()  # type: ignore[assignment]
    taken = 0

    def tasks() -> Iterator[int]:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield number

    for done, _ in enumerate(workers.in_order(times, tasks())):
        assert taken - done <= 8
