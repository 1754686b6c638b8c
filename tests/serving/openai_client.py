"""Asks a server through OpenAI's own client; run by the environment that has it.

usage: openai_client.py ADDRESS < requests.json > replies.json

A request is the arguments of ``chat.completions.create``; each is sent twice, for a whole and for a streamed answer.
"""

import json
import sys
from typing import Any

import openai


def whole(client: openai.OpenAI, request: dict[str, Any]) -> dict[str, Any]:
    reply = client.chat.completions.create(**request)
    choice = reply.choices[0]
    calls = choice.message.tool_calls or []
    return {
        "reasoning": getattr(choice.message, "reasoning", None),
        "content": choice.message.content,
        "calls": [[call.function.name, call.function.arguments] for call in calls],
        "ids": [call.id for call in calls],
        "finish": choice.finish_reason,
        "reasoning_tokens": reply.usage.completion_tokens_details.reasoning_tokens,
        "tokens": reply.usage.completion_tokens,
    }


def streamed(client: openai.OpenAI, request: dict[str, Any]) -> dict[str, Any]:
    """The answer's events, each with the field that it adds to."""
    events, finish = [], None
    for chunk in client.chat.completions.create(**request, stream=True):
        for choice in chunk.choices:
            delta = choice.delta
            for name in ("reasoning", "content"):
                if getattr(delta, name, None):
                    events.append([name, getattr(delta, name)])
            for call in delta.tool_calls or []:
                events.append(["call", [call.index, call.id, call.type, call.function.name, call.function.arguments]])
            finish = choice.finish_reason or finish
    return {"events": events, "finish": finish}


def asked(client: openai.OpenAI, request: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"whole": whole(client, request), "streamed": streamed(client, request)}
    except openai.APIStatusError as error:
        return {"error": error.message, "status": error.status_code}


if __name__ == "__main__":
    client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
    json.dump([asked(client, request) for request in json.load(sys.stdin)], sys.stdout)
