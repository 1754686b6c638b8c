"""Ports of one's own: no two alike, whoever asks, and none that the system deals out or that somebody listens at."""

from __future__ import annotations

import multiprocessing
import socket
from pathlib import Path

from megatron_apriel.testing import ports
from megatron_apriel.testing.ports import own_port


def test_no_two_are_alike() -> None:
    found = [own_port() for _ in range(20)]
    row = own_port(8)
    assert len({*found, *range(row, row + 8)}) == 28
    dealt_out = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(*found, row + 7) < dealt_out or dealt_out < 20_000
    for port in (*found, *range(row, row + 8)):
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_another_process_gets_others() -> None:
    """Also one that would look at the same place first."""
    context, held = multiprocessing.get_context("fork"), len(ports._held)
    mine = own_port()
    receiver, sender = context.Pipe(duplex=False)

    def ask() -> None:
        del ports._held[held:]
        ports.os.getpid = lambda: parent
        sender.send(own_port())

    parent = ports.os.getpid()
    process = context.Process(target=ask)
    process.start()
    assert receiver.recv() != mine
    process.join()


def test_one_that_somebody_listens_at_is_passed_over() -> None:
    first = next(ports._places(1))
    with socket.create_server(("", first)):
        assert own_port() != first
