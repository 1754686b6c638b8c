"""Asks a server through OpenAI's own client; run by the environment that has it.

usage: openai_client.py ADDRESS < requests.json > replies.json

A request is the arguments of ``chat.completions.create``, or of ``responses.create`` where it has an ``input``; each is
sent twice, for a whole and for a streamed answer.
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
        "reasoning_tokens": getattr(reply.usage.completion_tokens_details, "reasoning_tokens", None),
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


def respond(client: openai.OpenAI, request: dict[str, Any]) -> dict[str, Any]:
    """The answer's parts in the protocol of responses, whole and joined from its events."""
    found, joined = [], {"reasoning_text": "", "output_text": "", "function_call_arguments": ""}
    for item in client.responses.create(**request).output:
        if item.type == "function_call":
            found.append([item.type, item.name, item.arguments])
        else:
            found.append([item.type, *[part.text for part in item.content]])
    for event in client.responses.create(**request, stream=True):
        kind = event.type.removeprefix("response.").removesuffix(".delta")
        if event.type.endswith(".delta") and kind in joined:
            joined[kind] += event.delta
    return {"whole": found, "streamed": joined}


def asked(client: openai.OpenAI, request: dict[str, Any]) -> dict[str, Any]:
    try:
        if "input" in request:
            return respond(client, request)
        return {"whole": whole(client, request), "streamed": streamed(client, request)}
    except openai.APIStatusError as error:
        return {"error": error.message, "status": error.status_code}


if __name__ == "__main__":
    client = openai.OpenAI(base_url=sys.argv[1], api_key="none", max_retries=0)
    json.dump([asked(client, request) for request in json.load(sys.stdin)], sys.stdout)
