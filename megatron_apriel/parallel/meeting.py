"""How the ranks of a Slurm step find each other, whatever else listens on the port that they were given.

Rank 0 opens the store through which ranks exchange their addresses, on a port that the system deals out. So that the
others find it, it listens on the first of a few ports that is free, from the given one on, and answers everybody who
connects there with one line: a word that names this step, and the store's port. The others try these ports in turn
until one of them answers with that word. Another program, or the store of another run, does not, which shows within
seconds; talking to it as to a store would end only by a time limit, or worse, would not fail.

A rank that starts late is waited for. Only where all of these ports are somebody else's for a minute, nobody will come.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping

import torch.distributed as dist

from megatron_apriel.errors import ConfigError, TransientError, shown
from megatron_apriel.terminal import say

PORTS = 8
"""Tried from the given one on."""
GIVE_UP_AFTER_S = 60.0
"""Where all of them are taken, or the host's name is not known."""
_ANSWER_WITHIN_S = 5.0
_AGAIN_AFTER_S = 0.5


class _NotOursError(Exception):
    """Somebody else listens on a port, or there is no such host."""


def first_host(nodes: str) -> str:
    """The first host of a list in Slurm's words: ``gpu[07-12,20],login`` is of ``gpu07`` and others."""
    match = re.match(r"(?:[^\[,]|\[[^\]]*\])*", nodes)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", match[0]) if match else ""


@contextlib.contextmanager
def met(
    environment: Mapping[str, str], rank: int, world_size: int, timeout: datetime.timedelta
) -> Iterator[dist.Store]:
    """Within it, this rank has the store that all ranks of its step share; rank 0 keeps it open for latecomers.

    Args:
        environment: ``MASTER_ADDR``, or if that is empty ``SLURM_STEP_NODELIST``, says where rank 0 is;
            ``MASTER_PORT``; numbers of job, step and restart.
        rank, world_size: of the step.
        timeout: how long a rank that starts late is waited for, and how long a question to the store may take.

    Raises:
        ConfigError: it is not said where to meet.
        TransientError: the ports are taken, or a rank did not come.
    """
    host = environment.get("MASTER_ADDR") or first_host(environment.get("SLURM_STEP_NODELIST", ""))
    port = environment.get("MASTER_PORT", "")
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise ConfigError(
            f"the ranks cannot meet at host {shown(host)}, port {shown(port)}.",
            "Rank 0 listens there, and the others must know where.",
            "Start with the scripts in examples/, or set MASTER_ADDR and MASTER_PORT.",
        )
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    word = "megatron_apriel-" + ".".join(environment.get(name) or "0" for name in names)
    ports = range(int(port), min(int(port) + PORTS, 65536))
    if rank:
        store_port = _looked_for(host, ports, word, timeout.total_seconds())
        yield dist.TCPStore(host, store_port, world_size, is_master=False, timeout=timeout)
        return
    with _listening(ports) as listener:
        store = dist.TCPStore(host, 0, world_size, is_master=True, timeout=timeout, wait_for_workers=False)
        answer = f"{word} {store.port}\n".encode()
        threading.Thread(target=_answer_all, args=(listener, answer), name="meeting", daemon=True).start()
        yield store


@contextlib.contextmanager
def _listening(ports: range) -> Iterator[socket.socket]:
    """A socket that listens on the first of ``ports`` that is free."""
    deadline = time.monotonic() + GIVE_UP_AFTER_S
    while True:
        for port in ports:
            try:
                listener = listening_socket(port)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    continue
                raise ConfigError(
                    f"rank 0 cannot listen on port {port}: {error.strerror or error}.", fix="Set another MASTER_PORT."
                ) from None
            if port != ports[0]:
                say(f"port {ports[0]} is taken; the ranks meet at port {port}")
            with listener:
                yield listener
                # Closing alone does not wake the thread that waits in accept.
                with contextlib.suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)
            return
        if time.monotonic() > deadline:
            raise TransientError(
                f"ports {ports[0]} to {ports[-1]} are all taken on this host.",
                "Rank 0 listens on one of them, so that the others find it.",
                "Start the same command again, with another MASTER_PORT if that one was set.",
            )
        time.sleep(_AGAIN_AFTER_S)


def listening_socket(port: int) -> socket.socket:
    """One that hears all addresses of this host, on a port; 0 is one that the system deals out."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, backlog=4096, dualstack_ipv6=True)
    return socket.create_server(("", port), backlog=4096)


def _answer_all(listener: socket.socket, answer: bytes) -> None:
    """In a thread: tell everybody who connects where the store is, until the listener is closed."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            if listener.fileno() == -1:
                return
            continue
        with contextlib.suppress(OSError), connection:
            connection.settimeout(_ANSWER_WITHIN_S)
            connection.sendall(answer)


def _looked_for(host: str, ports: range, word: str, patience_s: float) -> int:
    """The port of the store of rank 0, which may not be there yet."""
    began = time.monotonic()
    hopeless_since: float | None = None
    problem = "nobody listens there"
    while True:
        answers = []
        for port in ports:
            try:
                if (store_port := _asked(host, port, word)) is not None:
                    return store_port
                answers.append(False)
            except _NotOursError as error:
                problem = str(error)
                answers.append(True)
        now = time.monotonic()
        hopeless_since = (hopeless_since or now) if all(answers) else None
        if now - began > patience_s or (hopeless_since is not None and now - hopeless_since > GIVE_UP_AFTER_S):
            raise TransientError(
                f"this rank did not find rank 0 at {host}, ports {ports[0]} to {ports[-1]}: {problem}.",
                f"It looked for {now - began:.0f} s.",
                "Start the same command again. If it stays so, see whether this host can reach the other by that name.",
            )
        time.sleep(_AGAIN_AFTER_S)


def _asked(host: str, port: int, word: str) -> int | None:
    """The store's port if rank 0 of this step answers; None where nobody listens (yet)."""
    try:
        with socket.create_connection((host, port), timeout=_ANSWER_WITHIN_S) as connection:
            line = _line_of(connection).split()
    except socket.gaierror as error:
        raise _NotOursError(f"the host is not known ({error.strerror})") from None
    except OSError:
        return None
    if len(line) == 2 and line[0] == word and line[1].isdecimal():
        return int(line[1])
    raise _NotOursError(f"something else listens on port {port}")


def _line_of(connection: socket.socket) -> str:
    """What whoever listens says; empty if nothing in time."""
    try:
        with connection.makefile("rb") as file:
            return file.readline(200).decode("ascii", errors="replace")
    except OSError:
        return ""
