"""Records of logs, of libraries that keep conversations, and of servers' own ways to write turns."""

from __future__ import annotations

import base64
import json
from typing import Any

from tests.unit.data.corpus.published_set import ANSWERED, ASKED, QUESTION_AND_ANSWER, Published, one
from tests.unit.data.corpus.published_tools import HOEK, TIDE
from tests.unit.data.corpus.written_documents import chat, png, result, said, system, user

USER, ANSWER = {"role": "user", "content": ASKED}, {"role": "assistant", "content": ANSWERED}
CHOICES = [{"index": 0, "message": ANSWER, "finish_reason": "stop"}]
RED = base64.b64encode(png("red")).decode()
SEEN = chat(user(f"[IMG]{ASKED}"), said(ANSWERED), images=("red",))
THOUGHT = chat(user(ASKED), said(ANSWERED, reasoning="It is the colour of tomatoes."))
CALLED = chat(user("Tide at Hoek?"), said(calls=[("tide", HOEK)]), result("low"), said("It is low."))
ASKED_FOR_TIDE = {"role": "user", "content": "Tide at Hoek?"}


def message(name: str, **fields: Any) -> dict[str, Any]:
    """A message as LangChain's ``dumps`` writes it."""
    return {"lc": 1, "type": "constructor", "id": ["langchain", "schema", "messages", name], "kwargs": fields}


LOGS: dict[str, Published] = {
    "LangChain's types": one(
        {"messages": [{"type": "system", "content": "Be brief."},
                      {"type": "human", "content": ASKED, "additional_kwargs": {}, "example": False},
                      {"type": "ai", "content": ANSWERED, "tool_calls": [], "response_metadata": {"model_name": "m"},
                       "additional_kwargs": {"reasoning_content": "It is the colour of tomatoes."}}]},
        chat(system("Be brief."), user(ASKED), said(ANSWERED, reasoning="It is the colour of tomatoes.")),
        {"messages.additional_kwargs": 1, "messages.example": 1, "messages.response_metadata.model_name": 1},
    ),
    "LangChain's messages_to_dict": one(
        {"messages": [{"type": "human", "data": {"content": "Tide at Hoek?", "type": "human"}},
                      {"type": "ai", "data": {"content": "", "type": "ai", "tool_calls": [
                          {"name": "tide", "args": {"place": "Hoek"}, "id": "c", "type": "tool_call"}]}},
                      {"type": "tool", "data": {"content": "low", "type": "tool", "tool_call_id": "c"}},
                      {"type": "ai", "data": {"content": "It is low.", "type": "ai"}}]},
        CALLED,
        {},
    ),
    "LangChain's constructors in a trace": one(
        {"inputs": {"messages": [[message("HumanMessage", content=ASKED, type="human")]]},
         "outputs": {"generations": [[{"message": message("AIMessage", content=ANSWERED, type="ai")}]]}},
        QUESTION_AND_ANSWER,
        {},
    ),
    "LlamaIndex's blocks": one(
        {"messages": [{"role": "user", "blocks": [{"block_type": "image", "image": RED, "path": None, "url": None},
                                                  {"block_type": "text", "text": ASKED}]},
                      {"role": "assistant", "blocks": [{"block_type": "text", "text": ANSWERED}]}]},
        SEEN,
        {},
    ),
    "items of OpenAI's Responses": one(
        {"instructions": "Be brief.",
         "input": [ASKED_FOR_TIDE,
                   {"type": "function_call", "id": "fc", "call_id": "c", "name": "tide", "arguments": HOEK},
                   {"type": "function_call_output", "call_id": "c", "output": "low"}],
         "output": [{"type": "reasoning", "summary": [{"type": "summary_text", "text": "Low is low."}]},
                    {"type": "message", "role": "assistant", "status": "completed",
                     "content": [{"type": "output_text", "text": "It is low."}]}]},
        chat(system("Be brief."), user("Tide at Hoek?"), said(calls=[("tide", HOEK)]), result("low"),
             said("It is low.", reasoning="Low is low.")),
        {"input.id": 1, "output.status": 1},
    ),
    "a batch of OpenAI's": one(
        {"custom_id": "1", "body": {"messages": [USER], "tool_choice": "auto"},
         "response": {"status_code": 200, "body": {"object": "chat.completion", "choices": CHOICES}}, "error": None},
        QUESTION_AND_ANSWER,
        {"custom_id": 1, "body.tool_choice": 1, "response.status_code": 1, "response.body.object": 1,
         "response.body.choices.index": 1, "response.body.choices.finish_reason": 1},
    ),
    "a log whose two halves are texts": one(
        {"request": json.dumps({"messages": [USER], "tools": [TIDE]}), "response": json.dumps({"choices": CHOICES})},
        chat(user(ASKED), said(ANSWERED), tools=[TIDE]),
    ),
    "turns beside the response": one(
        {"model": "m", "messages": [USER], "response": {"choices": CHOICES}},
        QUESTION_AND_ANSWER,
        {"model": 1, "response.choices.index": 1, "response.choices.finish_reason": 1},
    ),
    "turns beside reasoning and answer": one(
        {"messages": [USER], "reasoning": "It is the colour of tomatoes.", "answer": ANSWERED}, THOUGHT, {}
    ),
    "Langfuse's texts": one({"input": json.dumps([USER]), "output": json.dumps(ANSWER)}, QUESTION_AND_ANSWER, {}),
    "Anthropic's request and response": one(
        {"request": {"system": "Be brief.", "messages": [USER]},
         "response": {"type": "message", "role": "assistant", "stop_reason": "end_turn",
                      "content": [{"type": "text", "text": ANSWERED}]}},
        chat(system("Be brief."), user(ASKED), said(ANSWERED)),
        {"response.stop_reason": 1},
    ),
    "Gemini's parts": one(
        {"contents": [{"role": "user", "parts": [{"inlineData": {"mimeType": "image/png", "data": RED}},
                                                 {"text": ASKED}]},
                      {"role": "model", "parts": [{"text": "It is the colour of tomatoes.", "thought": True},
                                                  {"text": ANSWERED}]}]},
        chat(user(f"[IMG]{ASKED}"), said(ANSWERED, reasoning="It is the colour of tomatoes."), images=("red",)),
        {},
    ),
    "Gemini's calls in another order": one(
        {"contents": [{"role": "user", "parts": [{"text": "Tide and wind?"}]},
                      {"role": "model", "parts": [{"functionCall": {"name": "tide", "args": {"place": "Hoek"}}},
                                                  {"functionCall": {"name": "wind", "args": {}}}]},
                      {"role": "user", "parts": [{"functionResponse": {"name": "wind", "response": {"bft": 4}}},
                                                 {"functionResponse": {"name": "tide", "response": {"is": "low"}}}]},
                      {"role": "model", "parts": [{"text": "Low, 4."}]}]},
        chat(user("Tide and wind?"), said(calls=[("tide", HOEK), ("wind", "{}")]), result('{"is": "low"}'),
             result('{"bft": 4}'), said("Low, 4.")),
        {},
    ),
    "Bedrock's conversation": one(
        {"system": [{"text": "Be brief."}],
         "messages": [{"role": "user", "content": [{"image": {"format": "png", "source": {"bytes": RED}}},
                                                   {"text": "Tide at Hoek?"}]},
                      {"role": "assistant", "content": [
                          {"toolUse": {"toolUseId": "t", "name": "tide", "input": {"place": "Hoek"}}}]},
                      {"role": "user", "content": [
                          {"toolResult": {"toolUseId": "t", "content": [{"json": {"is": "low"}}]}}]},
                      {"role": "assistant", "content": [{"text": "It is low."}]}],
         "toolConfig": {"tools": [{"toolSpec": {"name": "tide"}}]}},
        chat(system("Be brief."), user("[IMG]Tide at Hoek?"), said(calls=[("tide", HOEK)]), result('{"is": "low"}'),
             said("It is low."), tools=[{"toolSpec": {"name": "tide"}}], images=("red",)),
        {},
    ),
    "the parts of Vercel's library": one(
        {"messages": [ASKED_FOR_TIDE,
                      {"role": "assistant", "content": [{"type": "tool-call", "toolCallId": "c", "toolName": "tide",
                                                         "input": {"place": "Hoek"}}]},
                      {"role": "tool", "content": [{"type": "tool-result", "toolCallId": "c", "toolName": "tide",
                                                    "output": {"type": "text", "value": "low"}}]},
                      {"role": "assistant", "content": [{"type": "text", "text": "It is low."}]}]},
        CALLED,
    ),
    "Ollama's chat": one(
        {"messages": [{"role": "user", "content": ASKED, "images": [RED]}], "message": ANSWER, "done": True},
        chat(user(f"[IMG]\n{ASKED}"), said(ANSWERED), images=("red",)),
        {"done": 1},
    ),
    "the end of another template": one(
        {"prompt": ASKED, "completion": f"{ANSWERED}<|im_end|>"}, QUESTION_AND_ANSWER, {}
    ),
}  # fmt: skip
