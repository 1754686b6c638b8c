"""Many questions asked at once: of one or several servers, as many at a time as each takes, each until it is answered.

Every question gets an outcome: its answer, or why there is none. What may pass (a busy server, a broken connection) is
tried again, on whichever server is free next; what would fail alike again is not. One bad question never ends the
others; only when no server can be reached any more does the asking stop, with the rest unasked.
"""

from __future__ import annotations

import asyncio
import random
import signal
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from megatron_apriel.errors import AprielError, ServerError
from megatron_apriel.generate.answer import Answer, Model
from megatron_apriel.generate.conversation import Question
from megatron_apriel.generate.server import ENDPOINT, PASSING_STATUSES, ServerModel
from megatron_apriel.generate.server_events import error_message
from megatron_apriel.generate.server_messages import body_of
from megatron_apriel.generate.server_reply import Reply, whole_answer

_LONGEST_WAIT = 30.0
_ENDING = (signal.SIGTERM, signal.SIGHUP)
_PATIENCE_S = 60.0
"""For which a server may not listen before it counts as gone."""


@dataclass(frozen=True)
class Asked:
    """What became of a question.

    Attributes:
        key: its name.
        answer: None where there is none.
        problem: then why not, in one sentence.
        seconds: that its last attempt took.
    """

    key: str
    answer: Answer | None
    problem: str = ""
    seconds: float = 0.0


@dataclass
class _Job:
    key: str
    make: Callable[[], Question]
    attempts: int = 0


class _PassingError(Exception):
    """May not come again."""


class _UnreachableError(_PassingError):
    """Nobody listens."""


def ask_models(
    models: list[Model], jobs: Iterable[tuple[str, Callable[[], Question]]], done: Callable[[Asked], None],
    *, at_once: int = 32, attempts: int = 5, patience_s: float = _PATIENCE_S,
) -> None:  # fmt: skip
    """Ask every question, and hand over what became of it as soon as it is known.

    Args:
        models: that share the questions; servers are asked many at a time, others one after the other.
        jobs: names of questions and what makes each, called when it is its turn, so that pictures are read late.
        done: takes the outcomes, in the order in which they come.
        at_once: questions at a time for each server.
        attempts: for one question.
        patience_s: for which a server may not listen.

    Raises:
        ServerError: no server can be reached any more, or the program behind one has ended.
    """
    servers = [model for model in models if isinstance(model, ServerModel)]
    if servers and len(servers) == len(models):
        with _handlers_kept() as act:
            act(asyncio.run(_Asking(servers, iter(jobs), done, at_once, attempts, patience_s).run()))
        return
    for number, (key, make) in enumerate(jobs):
        done(_asked(models[number % len(models)], key, make))


def _asked(model: Model, key: str, make: Callable[[], Question]) -> Asked:
    begun = time.monotonic()
    try:
        answer = model.answer(make())
    except AprielError as error:
        return Asked(key, None, error.what, time.monotonic() - begun)
    return Asked(key, answer, seconds=time.monotonic() - begun)


@contextmanager
def _handlers_kept() -> Iterator[Callable[[int | None], None]]:
    """Put back the handlers of signals that end a program; yields a function that calls that of the signal that came.

    A handler that raises within asyncio's loop leaves tasks behind, each with a traceback. So the loop takes the
    signals, ends its tasks, and only then the handler is called. Signals come to the main thread alone: another one has
    nothing to put back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda _: None
        return
    kept: dict[int, Any] = {number: signal.getsignal(number) for number in _ENDING}

    def act(number: int | None) -> None:
        handler = kept.get(number) if number is not None else None
        if callable(handler):
            handler(number, None)

    try:
        yield act
    finally:
        for number, handler in kept.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


class _Asking:
    """One run over servers: a number of tasks for each, which take from one line of questions."""

    def __init__(
        self, servers: list[ServerModel], jobs: Iterator[tuple[str, Callable[[], Question]]],
        done: Callable[[Asked], None], at_once: int, attempts: int, patience_s: float,
    ) -> None:  # fmt: skip
        self._servers, self._jobs, self._done = servers, jobs, done
        self._at_once, self._attempts, self._patience = at_once, attempts, patience_s
        self._again: deque[_Job] = deque()
        self._open = 0
        self._lost: dict[int, float] = {}
        """Servers that do not listen now, and since when."""

    async def run(self) -> int | None:
        """Ask; returns the signal that ended it early, where one came that has a handler."""
        came: list[int] = []
        self._listen(came)
        try:
            await self._all_work()
        except asyncio.CancelledError:
            if not came:
                raise
        return came[0] if came else None

    async def _all_work(self) -> None:
        trusted = httpx.create_ssl_context()
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(len(self._servers)):
                    for _ in range(self._at_once):
                        group.create_task(self._work(number, trusted))
        except* AprielError as errors:
            raise errors.exceptions[0] from None

    @staticmethod
    def _listen(came: list[int]) -> None:
        """Let a signal that ends the program end all tasks first; its number is put into ``came``."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None, "called by a task"

        def end(number: int) -> None:
            came.append(number)
            task.cancel()

        if threading.current_thread() is threading.main_thread():
            for number in _ENDING:
                if callable(signal.getsignal(number)):
                    loop.add_signal_handler(number, end, number)

    async def _work(self, number: int, trusted: ssl.SSLContext) -> None:
        """Take questions and ask them until there are none; of a server that is gone nothing more is asked.

        Each task has a connection of its own: a pool looks through all of its connections for every request.
        """
        server, failures = self._servers[number], 0
        endpoint = httpx.URL(server.address + ENDPOINT)
        async with httpx.AsyncClient(
            headers=server.headers, timeout=server.timeout, limits=httpx.Limits(max_connections=1), verify=trusted
        ) as client:
            while not self._is_gone(number):
                job = self._next()
                if job is None:
                    if not self._open:
                        return
                    await asyncio.sleep(0.05)
                    continue
                failures = 0 if await self._try(number, client, endpoint, job) else failures + 1
                if failures:
                    # Longer each time, and not for all alike.
                    await asyncio.sleep(min(0.25 * 2**failures, _LONGEST_WAIT) * (0.5 + random.random() / 2))

    def _is_gone(self, number: int) -> bool:
        """Whether a server did not listen for too long. Raises ServerError if none does, and questions are left."""
        now = time.monotonic()
        gone = [one for one, since in self._lost.items() if now - since >= self._patience]
        if len(gone) == len(self._servers):
            raise ServerError(
                f"no server can be reached any more, {', '.join(server.address for server in self._servers)} "
                f"for {self._patience:g} s.",
                "What was answered is kept.",
                "Start it, and give the same command again.",
            )
        return number in gone

    def _next(self) -> _Job | None:
        if self._again:
            job = self._again.popleft()
        else:
            key, make = next(self._jobs, ("", None))
            if make is None:
                return None
            job = _Job(key, make)
        self._open += 1
        return job

    async def _try(self, number: int, client: httpx.AsyncClient, endpoint: httpx.URL, job: _Job) -> bool:
        """Ask a question; False if it should be asked again after a while."""
        begun, outcome = time.monotonic(), None
        try:
            answer = await _one_answer(client, endpoint, self._servers[number], job.make())
            outcome = Asked(job.key, answer, seconds=time.monotonic() - begun)
        except _UnreachableError:
            # The question is not to blame, so this is none of its attempts.
            self._servers[number].check()
            self._lost.setdefault(number, time.monotonic())
        except _PassingError as error:
            self._servers[number].check()
            job.attempts += 1
            if job.attempts >= self._attempts:
                outcome = Asked(job.key, None, str(error), time.monotonic() - begun)
            self._lost.pop(number, None)
        except AprielError as error:
            outcome = Asked(job.key, None, error.what, time.monotonic() - begun)
        finally:
            self._open -= 1
        if outcome is None:
            self._again.append(job)
            return False
        if outcome.answer is not None:
            self._lost.pop(number, None)
        self._done(outcome)
        return True


async def _one_answer(
    client: httpx.AsyncClient, endpoint: httpx.URL, server: ServerModel, question: Question
) -> Answer:
    """The answer to one request. Raises _PassingError, or ServerError where another attempt would end alike."""
    body: dict[str, Any] = {**body_of(question, server.name), "stream": False}
    del body["stream_options"]
    try:
        response = await client.post(endpoint, json=body)
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise _UnreachableError(f"{server.address} cannot be reached: {error or type(error).__name__}") from None
    except httpx.TransportError as error:
        raise _PassingError(f"{server.address}: {error or type(error).__name__}") from None
    said = _object(response)
    if response.status_code != 200:
        what = f"{server.address} answered {response.status_code}: {error_message(said) or response.reason_phrase}"
        if response.status_code in PASSING_STATUSES:
            raise _PassingError(what)
        raise ServerError(f"{what}.")
    if said is None:
        raise ServerError(f"{server.address} answered something else than JSON.")
    if said.get("error"):
        raise ServerError(f"{server.address} reports: {error_message(said)}.")
    reply = Reply(server.begins)
    for _ in reply.pieces(said):
        pass
    for _ in reply.rest():
        pass
    if reply.finish is None:
        raise ServerError(f"{server.address}: the answer has no reason of its end.")
    return whole_answer(reply, server.trained)


def _object(response: httpx.Response) -> dict[str, Any] | None:
    try:
        said = response.json()
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None
