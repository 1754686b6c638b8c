"""Ranks of a step find each other whatever listens on their port, and give up where nobody will come."""

from __future__ import annotations

import contextlib
import datetime
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from megatron_apriel.errors import ConfigError, TransientError
from megatron_apriel.parallel import meeting
from megatron_apriel.testing.ports import own_port

TIMEOUT = datetime.timedelta(seconds=60)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[1-4]", "n1"),
        ("gpu[007-012,20],login", "gpu007"),
        ("gpu[3,5-9]", "gpu3"),
        ("rack[0-3]-node[04-09],x", "rack0-node04"),
        ("a-b[1-2].site.org,c", "a-b1.site.org"),
        ("cn-0001,gpu[1-2]", "cn-0001"),
        ("", ""),
    ],
)
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert meeting.first_host(nodes) == first


@pytest.fixture
def step() -> dict[str, str]:
    return {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(own_port(meeting.PORTS)), "SLURM_JOB_ID": "12",
        "SLURM_STEP_ID": "3",
    }  # fmt: skip


def meet(step: dict[str, str], ranks: int = 3, late: float = 0.0) -> list[bytes]:
    """What each rank reads of what rank 0 wrote; rank 0 comes ``late``."""
    read = threading.Barrier(ranks)

    def rank_of(rank: int) -> bytes:
        if rank == 0:
            time.sleep(late)
        with meeting.met(step, rank, ranks, TIMEOUT) as store:
            if rank == 0:
                store.set("word", "hello")
            value: bytes = store.get("word")
            read.wait()
            return value

    with ThreadPoolExecutor(ranks) as pool:
        futures: list[Future[bytes]] = [pool.submit(rank_of, rank) for rank in range(ranks)]
        return [future.result() for future in futures]


@contextlib.contextmanager
def listeners(ports: range, says: bytes = b"") -> Iterator[None]:
    """Something of somebody else's on each port, which says a line, or nothing, to who connects."""
    with contextlib.ExitStack() as stack:
        for port in ports:
            listener = stack.enter_context(meeting.listening_socket(port))
            if says:
                threading.Thread(target=meeting._answer_all, args=(listener, says), daemon=True).start()
                stack.callback(listener.shutdown, socket.SHUT_RDWR)
        yield


def test_ranks_meet(step: dict[str, str]) -> None:
    assert meet(step) == [b"hello"] * 3


def test_the_steps_own_first_host_is_taken_where_none_is_given(step: dict[str, str]) -> None:
    step |= {"MASTER_ADDR": "", "SLURM_STEP_NODELIST": "localhost,nowhere[1-2]"}
    assert meet(step, ranks=2) == [b"hello"] * 2


@pytest.mark.parametrize("says", [b"", b"220 mail\r\n", b"megatron_apriel-12.2.0 1\n"])
def test_what_listens_on_the_port_is_left_alone(
    step: dict[str, str], says: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing that answers, another service, and another step of the same job."""
    monkeypatch.setattr(meeting, "_ANSWER_WITHIN_S", 0.3)
    first = int(step["MASTER_PORT"])
    with listeners(range(first, first + 2), says):
        assert meet(step) == [b"hello"] * 3
    assert f"port {first} is taken; the ranks meet at port {first + 2}" in capsys.readouterr().out


def test_a_rank_that_is_late_is_waited_for(step: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "GIVE_UP_AFTER_S", 0.1)
    assert meet(step, late=2.0) == [b"hello"] * 3


@pytest.mark.parametrize("rank", [0, 1])
def test_where_all_ports_are_taken_every_rank_gives_up(
    step: dict[str, str], rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meeting, "GIVE_UP_AFTER_S", 0.5)
    monkeypatch.setattr(meeting, "_ANSWER_WITHIN_S", 0.1)
    first = int(step["MASTER_PORT"])
    reason = "are all taken on this host" if rank == 0 else r"did not find rank 0 .* something else listens on port"
    with (
        listeners(range(first, first + meeting.PORTS)),
        pytest.raises(TransientError, match=reason),
        meeting.met(step, rank, 2, TIMEOUT),
    ):
        pass


def test_a_host_that_is_not_known_is_given_up(step: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "GIVE_UP_AFTER_S", 0.5)
    step["MASTER_ADDR"] = "no.such.host.invalid"
    with (
        pytest.raises(TransientError, match=r"no.such.host.invalid.*: the host is not known"),
        meeting.met(step, 1, 2, TIMEOUT),
    ):
        pass


def test_a_rank_that_never_comes_is_given_up(step: dict[str, str]) -> None:
    with (
        pytest.raises(TransientError, match="nobody listens there"),
        meeting.met(step, 1, 2, datetime.timedelta(seconds=1)),
    ):
        pass


@pytest.mark.parametrize("wrong", [{"MASTER_PORT": ""}, {"MASTER_PORT": "70000"}, {"MASTER_ADDR": ""}])
def test_it_must_be_said_where(step: dict[str, str], wrong: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="the ranks cannot meet"), meeting.met(step | wrong, 0, 2, TIMEOUT):
        pass
