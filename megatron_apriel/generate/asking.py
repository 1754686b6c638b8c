"""Many questions asked at once: of one or several servers, as many at a time as each takes, each until it is answered.

Every question gets an outcome: its answer, or why there is none. What may pass (a broken connection, a failing server)
is tried again, on whichever server is free next; what would fail alike again is not. A server that takes no questions
for a while gets none, and its questions wait: they are not to blame. One bad question never ends the others; only when
no server can be asked any more, or one refuses whatever it is asked, does the asking stop, with the rest unasked.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import httpx

from megatron_apriel.errors import AprielError, ServerError
from megatron_apriel.generate.answer import Answer, Model
from megatron_apriel.generate.conversation import Question
from megatron_apriel.generate.ending_signals import run_until_signal
from megatron_apriel.generate.server import ServerModel
from megatron_apriel.generate.whole_answers import (
    BusyError,
    PassingError,
    RefusedError,
    UnreachableError,
    WholeAnswers,
)

_LONGEST_WAIT = 30.0
_PATIENCE_S = 60.0
"""For which a server may not listen before it counts as gone."""
_BUSY_S = 900.0
"""For which it may take no question at all: the limit of a service passes, or a program behind a proxy loads again."""
_SLOW_REFUSAL_S = 60.0
"""A question that a server has for longer is being answered, and not about to be refused."""


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


def ask_models(
    models: list[Model], jobs: Iterable[tuple[str, Callable[[], Question]]], done: Callable[[Asked], None],
    *, at_once: int = 32, attempts: int = 5, patience_s: float = _PATIENCE_S, busy_s: float = _BUSY_S,
) -> None:  # fmt: skip
    """Ask every question, and hand over what became of it as soon as it is known.

    Args:
        models: that share the questions; servers are asked many at a time, others one after the other.
        jobs: names of questions and what makes each, called when it is its turn, so that pictures are read late.
        done: takes the outcomes, in the order in which they come.
        at_once: questions at a time for each server.
        attempts: for one question.
        patience_s: for which a server may not listen.
        busy_s: for which it may say that it takes no questions, and answer none.

    Raises:
        ServerError: no server can be asked any more, one refuses all questions, or the program behind one has ended.
    """
    servers = [model for model in models if isinstance(model, ServerModel)]
    if servers and len(servers) == len(models):
        run_until_signal(_Asking(servers, iter(jobs), done, at_once, attempts, patience_s, busy_s).run)
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


class _Place:
    """A server as the tasks that ask it know it.

    Args:
        server: that is asked.
        patience_s, busy_s: as of :func:`ask_models`.
    """

    def __init__(self, server: ServerModel, patience_s: float, busy_s: float) -> None:
        self.server, self._patience, self._busy = server, patience_s, busy_s
        self._rest_until = 0.0
        self._silent_since: float | None = None
        self._busy_since: float | None = None
        self._sent: dict[str, float] = {}
        self.trouble = ""
        """What is wrong with it, as it was said last."""

    def listens(self, key: str) -> None:
        """A question is on its way to it."""
        self._silent_since = None
        self._sent[key] = time.monotonic()

    def over(self, key: str) -> None:
        """What became of that question is known."""
        self._sent.pop(key, None)

    def works(self) -> None:
        """It did something with a question."""
        self._silent_since = self._busy_since = None

    def stopped(self, error: UnreachableError | BusyError) -> None:
        """It took a question not at all."""
        now, self.trouble = time.monotonic(), str(error)
        if isinstance(error, BusyError):
            self._busy_since = now if self._busy_since is None else self._busy_since
            self._rest_until = max(self._rest_until, now + (error.wait or 0.0))
        else:
            self._silent_since = now if self._silent_since is None else self._silent_since

    @property
    def rest(self) -> float:
        """Seconds for which it wants no questions."""
        return max(self._rest_until - time.monotonic(), 0.0)

    @property
    def is_gone(self) -> bool:
        """Whether it took no questions for too long."""
        now = time.monotonic()
        if self._silent_since is not None and now - self._silent_since >= self._patience:
            return True
        answers = any(now - begun > _SLOW_REFUSAL_S for begun in self._sent.values())
        return self._busy_since is not None and now - self._busy_since >= self._busy and not answers


class _Asking:
    """One run over servers: a number of tasks for each, which take from one line of questions."""

    def __init__(
        self, servers: list[ServerModel], jobs: Iterator[tuple[str, Callable[[], Question]]],
        done: Callable[[Asked], None], at_once: int, attempts: int, patience_s: float, busy_s: float,
    ) -> None:  # fmt: skip
        self._places = [_Place(server, patience_s, busy_s) for server in servers]
        self._jobs, self._done, self._at_once, self._attempts = jobs, done, at_once, attempts
        self._again: deque[_Job] = deque()
        self._open = 0
        self._has_more = True

    async def run(self) -> None:
        """Ask."""
        trusted = httpx.create_ssl_context()
        try:
            async with asyncio.TaskGroup() as group:
                for place in self._places:
                    for _ in range(self._at_once):
                        group.create_task(self._work(place, trusted))
        except* AprielError as errors:
            raise errors.exceptions[0] from None

    async def _work(self, place: _Place, trusted: ssl.SSLContext) -> None:
        """Take questions and ask them until there are none; of a server that is gone nothing more is asked."""
        failures = 0
        async with WholeAnswers(place.server, trusted) as answers:
            while not self._is_gone(place):
                if place.rest and not self._is_over:
                    await asyncio.sleep(min(place.rest, 1.0) * (0.5 + random.random() / 2))
                    continue
                job = self._next()
                if job is None:
                    if self._is_over:
                        return
                    await asyncio.sleep(0.05)
                    continue
                failures = 0 if await self._try(place, answers, job) else failures + 1
                if failures:
                    # Longer each time, and not for all alike.
                    await asyncio.sleep(min(0.25 * 2 ** min(failures, 10), _LONGEST_WAIT) * (0.5 + random.random() / 2))

    def _is_gone(self, place: _Place) -> bool:
        """Whether a server took nothing for too long. Raises ServerError if none does, and questions are left."""
        if all(one.is_gone for one in self._places):
            raise ServerError(
                f"no server can be asked any more: {'; '.join(one.trouble for one in self._places)}.",
                "What was answered is kept.",
                "Start it, and give the same command again.",
            )
        return place.is_gone

    @property
    def _is_over(self) -> bool:
        return not (self._has_more or self._again or self._open)

    def _next(self) -> _Job | None:
        if self._again:
            job = self._again.popleft()
        else:
            key, make = next(self._jobs, ("", None))
            self._has_more = make is not None
            if make is None:
                return None
            job = _Job(key, make)
        self._open += 1
        return job

    async def _try(self, place: _Place, answers: WholeAnswers, job: _Job) -> bool:
        """Ask a question; False if it should be asked again after a while."""
        begun, outcome = time.monotonic(), None
        try:
            answer = await answers.ask(job.make(), lambda: place.listens(job.key))
            outcome = Asked(job.key, answer, seconds=time.monotonic() - begun)
        except (UnreachableError, BusyError) as error:
            # The question is not to blame, so this is none of its attempts.
            place.server.check()
            place.stopped(error)
        except PassingError as error:
            place.server.check()
            place.works()
            job.attempts += 1
            if job.attempts >= self._attempts:
                outcome = Asked(job.key, None, str(error), time.monotonic() - begun)
        except RefusedError as error:
            raise ServerError(
                f"{error}.", "It would refuse every other question as well. What was answered is kept.",
                "Look at its key, its address and its model's name, and give the same command again.",
            ) from None  # fmt: skip
        except AprielError as error:
            if isinstance(error, ServerError):
                place.works()
            outcome = Asked(job.key, None, error.what, time.monotonic() - begun)
        finally:
            self._open -= 1
            place.over(job.key)
        if outcome is None:
            self._again.append(job)
            return False
        if outcome.answer is not None:
            place.works()
        self._done(outcome)
        return True
