"""Ranks notice when one of them is gone, and end too, instead of waiting for it.

A process that is killed says nothing. Over gloo the others hear of it, because their connections break. NCCL's kernels
wait: until the collective is timed out, half an hour by default, or until a launcher ends them, while the GPUs are paid
for.

So each rank keeps a connection to rank 0 on which nothing is said. The system closes it when the process ends, in
whatever way, and TCP's own probes find a host that is gone. A rank that leaves as it should says so first, and so does
one that ends with an error of the project's, which ranks raise together, but for what happened within
:func:`raised_alone`. Rank 0 tells the others who is gone; that it is gone itself, they notice alike. Whoever learns of
it has a few seconds to fail by itself and to say what it knows; then it is ended.

A rank that fails by itself unwinds and says why at its end. On its way something may wait for kernels that wait for the
others; so it has those few seconds too (:func:`ended_soon`).

Connections are for those who know the word that rank 0 has put into the ranks' store: whoever else finds the port can
end nobody.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from typing import Protocol

import torch.distributed as dist

from megatron_apriel.errors import AprielError, ExitCode, print_traceback
from megatron_apriel.parallel.meeting import listening_socket
from megatron_apriel.terminal import note

GRACE_S = 10.0
"""How long a rank may take to end by itself, once another is gone."""
PROBES = ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3))
"""A host that does not answer for a minute is gone."""
_CONNECT_WITHIN_S = 20.0
_PLACE = "watch"
_LEFT, _HERE = b"left\n", b"here\n"
_MOST_BYTES = 100


class _Watcher(Protocol):
    """Of one rank; its thread ends the process if another rank is gone."""

    def leave(self, properly: bool) -> None:
        """This rank needs no other any more; or it has failed, and the others will not be done without it."""


@contextlib.contextmanager
def other_ranks(store: dist.Store, host: str, rank: int, ranks: int) -> Iterator[None]:
    """Within it, this process ends if another rank does without having left it, too.

    Args:
        store: of all ranks.
        host: of rank 0, as the others reach it.
        rank, ranks: this one, and how many there are.
    """
    try:
        watcher: _Watcher = _First(store, ranks) if rank == 0 else _Other(store, host, rank, ranks)
    except OSError as error:
        if rank == 0:
            store.set(_PLACE, "")
        note(f"rank {rank} does not watch the others ({error}): should one be killed, it waits for the timeout")
        yield
        return
    properly = False
    try:
        yield
        properly = True
    except BaseException as error:
        properly = raised_together(error)
        raise
    finally:
        watcher.leave(properly)


def ended_soon(error: BaseException) -> None:
    """Have this process, which fails by ``error``, end within some seconds: with its own words, or else with these."""

    def overdue() -> None:
        time.sleep(GRACE_S)
        try:
            print_traceback(type(error), error, error.__traceback__)
            note(f"it did not end within {GRACE_S:g} s of that, so it is ended.")
        finally:
            os._exit(ExitCode.FAILED)

    threading.Thread(target=overdue, name="end", daemon=True).start()
    # At the interpreter's own end, or where something waits that lets no thread run, only this one is left.
    faulthandler.dump_traceback_later(2 * GRACE_S, exit=True, file=2)


def raised_together(error: BaseException) -> bool:
    """Whether all ranks raise it: an error of the project's, but for what happened within :func:`raised_alone`."""
    return isinstance(error, AprielError) and not error.of_one_rank


@contextlib.contextmanager
def raised_alone() -> Iterator[None]:
    """For what a rank does in the middle of a step: others do not raise its errors, and wait for it in a collective."""
    try:
        yield
    except AprielError as error:
        error.of_one_rank = True
        raise


class _Ending:
    """The end of this process, unless it leaves within the time that it is given."""

    def __init__(self, rank: int, ranks: int) -> None:
        self._rank, self._ranks = rank, ranks
        self.left = threading.Event()

    def follows(self, lost: int) -> None:
        """Rank ``lost`` is gone."""
        if self.left.wait(GRACE_S):
            return
        try:
            note(
                f"rank {lost} of {self._ranks} is gone; rank {self._rank} ends, since no step can be done without it.",
                "  Its own output says why, or the system's: no memory left, kill -9, a host that died.",
                "  The same command resumes from the newest whole checkpoint.",
            )
        finally:
            os._exit(ExitCode.FAILED)


class _Other:
    """What every rank but the first has: one connection, and a thread that waits for its end."""

    def __init__(self, store: dist.Store, host: str, rank: int, ranks: int) -> None:
        port, _, word = store.get(_PLACE).decode().partition(" ")
        if not port:
            raise ConnectionError("rank 0 cannot listen")
        self._ending = _Ending(rank, ranks)
        self._connection = _probed(socket.create_connection((host, int(port)), timeout=_CONNECT_WITHIN_S))
        self._connection.sendall(f"{word} {rank}\n".encode())
        if self._connection.recv(len(_HERE), socket.MSG_WAITALL) != _HERE:
            raise ConnectionError(f"nobody answers at {host}:{port}")
        self._connection.settimeout(None)
        threading.Thread(target=self._wait, name="watch", daemon=True).start()

    def _wait(self) -> None:
        said = b""
        with contextlib.suppress(OSError):  # a connection that breaks is one that ends
            while not said.endswith(b"\n") and (more := self._connection.recv(_MOST_BYTES)):
                said += more
        if said != _LEFT:
            self._ending.follows(int(said) if said.strip().isdigit() else 0)

    def leave(self, properly: bool) -> None:
        self._ending.left.set()
        with contextlib.suppress(OSError), self._connection:
            if properly:
                self._connection.sendall(_LEFT)
            self._connection.shutdown(socket.SHUT_RDWR)  # closing alone does not wake the thread


class _First:
    """What rank 0 has: the connections of all others, and a thread that waits for the end of any."""

    def __init__(self, store: dist.Store, ranks: int) -> None:
        self._ending = _Ending(0, ranks)
        self._word = secrets.token_hex(16)
        self._listener = listening_socket(0)
        self._waker, self._woken = socket.socketpair()
        self._said: dict[socket.socket, bytes] = {}
        self._ranks: dict[socket.socket, int] = {}
        self._thread = threading.Thread(target=self._wait, name="watch", daemon=True)
        self._thread.start()
        store.set(_PLACE, f"{self._listener.getsockname()[1]} {self._word}")

    def _wait(self) -> None:
        with selectors.DefaultSelector() as selector:
            for waited in (self._listener, self._woken):
                selector.register(waited, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    connection = key.fileobj
                    assert isinstance(connection, socket.socket)
                    if connection is self._woken:
                        return
                    if connection is self._listener:
                        self._accept(selector)
                    elif (lost := self._heard(connection, selector)) is not None:
                        self._tell(str(lost).encode() + b"\n")
                        self._ending.follows(lost)
                        return

    def _accept(self, selector: selectors.BaseSelector) -> None:
        with contextlib.suppress(OSError):
            connection = _probed(self._listener.accept()[0])
            connection.settimeout(_CONNECT_WITHIN_S)  # of sending: it is read only when something is there
            self._said[connection] = b""
            selector.register(connection, selectors.EVENT_READ)

    def _heard(self, connection: socket.socket, selector: selectors.BaseSelector) -> int | None:
        """What came over a connection, or that it has ended; the rank that is gone, if one is."""
        more = b""
        with contextlib.suppress(OSError):
            more = connection.recv(_MOST_BYTES)
        said = self._said[connection] = self._said[connection] + more
        rank = self._ranks.get(connection)
        if rank is None and said.endswith(b"\n") and (known := self._rank_of(said)) is not None:
            self._ranks[connection], self._said[connection] = known, b""
            with contextlib.suppress(OSError):  # its end is noticed next
                connection.sendall(_HERE)
            return None
        over = not more or len(said) > _MOST_BYTES or (rank is None and said.endswith(b"\n"))
        if not over and said != _LEFT:
            return None
        selector.unregister(connection)
        connection.close()
        del self._said[connection]
        self._ranks.pop(connection, None)
        return rank if over else None

    def _rank_of(self, said: bytes) -> int | None:
        """The rank that says who it is, or None for somebody else."""
        word, _, rank = said.decode("ascii", errors="replace").strip().partition(" ")
        return int(rank) if secrets.compare_digest(word.encode(), self._word.encode()) and rank.isdigit() else None

    def _tell(self, word: bytes) -> None:
        for connection in self._ranks:
            with contextlib.suppress(OSError):
                connection.sendall(word)

    def leave(self, properly: bool) -> None:
        self._ending.left.set()
        self._waker.send(b"\n")
        self._thread.join()
        if properly:
            self._tell(_LEFT)
        for connection in (*self._said, self._listener, self._waker, self._woken):
            connection.close()


def _probed(connection: socket.socket) -> socket.socket:
    """The connection, whose other end the system asks now and then whether it is there."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in PROBES:
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    return connection
