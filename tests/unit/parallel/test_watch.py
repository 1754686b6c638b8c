"""Ranks that wait for one that is gone end too, whichever it was; ranks that leave one after another end nobody."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.context import ForkProcess

import pytest
import torch.distributed as dist

from megatron_apriel.errors import AprielError
from megatron_apriel.parallel import groups, watch
from megatron_apriel.testing.ports import own_port

FORK = multiprocessing.get_context("fork")
FAR = 120.0
"""Seconds that nothing here takes unless it waits for what does not come."""


def started(
    ranks: int, behave: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, grace: float = 0.2
) -> list[ForkProcess]:
    """Processes that meet and then behave; those that have ended by themselves before the grace is over say so."""
    monkeypatch.setattr(watch, "GRACE_S", grace)
    port = own_port()

    def rank_main(rank: int) -> None:
        os.environ |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        with groups.joined():
            dist.barrier()
            behave(rank)

    processes = [FORK.Process(target=rank_main, args=(rank,)) for rank in range(ranks)]
    for process in processes:
        process.start()
    return processes


def ended(processes: list[ForkProcess]) -> list[int | None]:
    deadline = time.monotonic() + FAR / 2
    for process in processes:
        process.join(max(deadline - time.monotonic(), 0))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


@pytest.mark.parametrize("killed", [0, 1, 2])
def test_a_killed_rank_ends_those_that_wait_for_it(
    killed: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def behave(rank: int) -> None:
        if rank == killed:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(FAR)  # as in a kernel that waits for the others

    codes = ended(started(3, behave, monkeypatch))
    assert codes == [-signal.SIGKILL if rank == killed else 1 for rank in range(3)]
    said = capfd.readouterr().err
    for rank in {0, 1, 2} - {killed}:
        assert f"rank {killed} of 3 is gone; rank {rank} ends, since no step can be done without it." in said
    assert "resumes from the newest whole checkpoint" in said


def test_a_rank_that_fails_ends_those_that_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def behave(rank: int) -> None:
        if rank == 1:
            raise MemoryError("no memory left on this device")
        time.sleep(FAR)

    assert ended(started(2, behave, monkeypatch)) == [1, 1]


def test_ranks_that_fail_wait_for_no_kernel(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Each waits for the other's kernels when it takes its groups down: what it has to say would never be seen."""

    def behave(rank: int) -> None:
        raise MemoryError(f"no memory left on device {rank}")

    monkeypatch.setattr(dist, "destroy_process_group", lambda: time.sleep(FAR))
    assert ended(started(2, behave, monkeypatch)) == [1, 1]
    said = capfd.readouterr().err
    assert all(f"MemoryError: no memory left on device {rank}" in said for rank in range(2))


@pytest.mark.parametrize("held", [False, True], ids=["threads run", "no thread runs"])
def test_one_that_fails_and_does_not_end_is_ended(
    held: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch, "GRACE_S", 0.2)

    def fail_and_wait() -> None:
        watch.ended_soon(MemoryError("no memory left"))
        library = ctypes.PyDLL(None) if held else ctypes.CDLL(None)  # the one keeps the interpreter's lock
        library.sleep(int(FAR))

    (process,) = processes = [FORK.Process(target=fail_and_wait)]
    process.start()
    assert ended(processes) == [1]
    said = capfd.readouterr().err
    assert ("Timeout" in said) if held else ("MemoryError: no memory left" in said and "it did not end within" in said)


@pytest.mark.parametrize("alone", [0, 1])
def test_an_error_of_one_rank_ends_those_that_wait_for_it(
    alone: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One of the project's, such as a damaged image among its own."""

    def behave(rank: int) -> None:
        if rank == alone:
            with watch.raised_alone():
                raise AprielError("only one knows it")
        time.sleep(FAR)

    assert ended(started(2, behave, monkeypatch)) == [1, 1]
    said = capfd.readouterr().err
    assert "AprielError: only one knows it" in said
    assert f"rank {alone} of 2 is gone; rank {1 - alone} ends, since no step can be done without it." in said


def test_there_is_time_to_end_by_oneself(monkeypatch: pytest.MonkeyPatch) -> None:
    def behave(rank: int) -> None:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(2)
        raise SystemExit(7)

    assert ended(started(2, behave, monkeypatch, grace=FAR)) == [7, -signal.SIGKILL]


@pytest.mark.parametrize("last", [0, 1])
def test_ranks_leave_one_after_another(last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def behave(rank: int) -> None:
        if rank == last:
            time.sleep(2)

    assert ended(started(2, behave, monkeypatch)) == [0, 0]


def test_an_error_of_the_project_gives_the_others_their_time(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def behave(rank: int) -> None:
        if rank == 0:
            time.sleep(2)  # closing what it had open
        raise AprielError("both know it")

    assert ended(started(2, behave, monkeypatch)) == [1, 1]
    said = capfd.readouterr().err
    assert said.count("AprielError: both know it") == 2 and "is gone" not in said


def test_a_stranger_ends_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who finds the port and hangs up, says something, or says very much."""

    def behave(rank: int) -> None:
        if rank == 0:
            port = int(dist.distributed_c10d._get_default_store().get("watch").decode().split()[0])
            for said in (b"", b"0123 1\n", b"left\n", b"x" * 10_000):
                with socket.create_connection(("127.0.0.1", port)) as connection:
                    connection.sendall(said)
            time.sleep(2)
        dist.barrier()

    assert ended(started(2, behave, monkeypatch)) == [0, 0]


def test_ranks_that_cannot_watch_go_on(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def refuse(port: int) -> socket.socket:
        raise OSError("no port is left")

    monkeypatch.setattr(watch, "listening_socket", refuse)
    assert ended(started(2, lambda rank: dist.barrier(), monkeypatch)) == [0, 0]
    said = capfd.readouterr().err
    assert "rank 0 does not watch the others (no port is left)" in said
    assert "rank 1 does not watch the others (rank 0 cannot listen)" in said
