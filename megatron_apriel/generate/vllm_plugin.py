"""Reasoning and tool calls of the trained format for vLLM's server, in its own environment (written for vLLM 0.32).

vLLM imports parsers from a module named on its command line; both of these are named ``apriel`` and belong together::

    PYTHONPATH=. vllm serve DIRECTORY --enable-auto-tool-choice \\
        --reasoning-parser-plugin megatron_apriel.generate.vllm_plugin --reasoning-parser apriel \\
        --tool-parser-plugin megatron_apriel.generate.vllm_plugin --tool-call-parser apriel

They are called *engine based* by vLLM, which means that they keep their own state and may hold text back until the end.
The work is done by :mod:`~megatron_apriel.generate.answer_deltas`.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Any

from vllm.entrypoints.generate.base.protocol import (
    DeltaFunctionCall,
    DeltaMessage,
    DeltaToolCall,
    ExtractedToolCallInformation,
    FunctionCall,
    ToolCall,
)
from vllm.reasoning import ReasoningParser, ReasoningParserManager
from vllm.renderers.chat_utils import make_tool_call_id
from vllm.sampling_params import StructuredOutputsParams
from vllm.tool_parsers.abstract_tool_parser import ToolParser, ToolParserManager

from megatron_apriel.data.raw.turns.chat_markers import ASSISTANT, REASONING_OPENING, RESPONSE_OPENING
from megatron_apriel.generate.answer import Part
from megatron_apriel.generate.answer_deltas import CallDelta, Delta, ReasoningStream, ResponseStream
from megatron_apriel.generate.forced_calls import forced_calls
from megatron_apriel.generate.parsing import AnswerParser

_MARKER_TOKENS = 2 * (len(ASSISTANT) + len(REASONING_OPENING) + len(RESPONSE_OPENING))
"""More than the words around the beginning of an answer can have."""


@ReasoningParserManager.register_module("apriel")
class AprielReasoningParser(ReasoningParser):
    """Takes the reasoning off."""

    engine_based_streaming = True

    def __init__(self, tokenizer: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(tokenizer, *arguments, **options)
        self._stream = ReasoningStream()

    @property
    def reasoning_start_str(self) -> str:
        """What the prompt ends with. vLLM looks for these two by their tokens, to which the line's end belongs, where a
        client limits the reasoning (``thinking_token_budget``; ``thinking`` in Anthropic's protocol)."""
        return f"{REASONING_OPENING}\n"

    @property
    def reasoning_end_str(self) -> str:
        """What ends the reasoning, and is written for the model where its limit is reached."""
        return f"{RESPONSE_OPENING}\n"

    def extract_reasoning(self, model_output: str, request: Any) -> tuple[str | None, str | None]:
        """Reasoning and final response of a whole answer; one that continues a response has no reasoning."""
        if getattr(request, "continue_final_message", False):
            return None, model_output or None
        stream = ReasoningStream()
        reasoning = stream.feed(model_output) + stream.finish()
        return reasoning or None, stream.rest() or None

    def extract_reasoning_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
    ) -> DeltaMessage | None:
        """What is new of the reasoning, and the first of the final response."""
        return _message(self._stream.feed(delta_text), self._stream.rest())

    def has_engine_confirmed_reasoning_end(self) -> bool:
        """Whether the final response began."""
        return self._stream.ended

    def finish_streaming(self) -> DeltaMessage | None:
        """What was held back of an answer that ends in its reasoning."""
        return _message(self._stream.finish(), "")

    def is_reasoning_end(self, input_ids: Sequence[int]) -> bool:
        """Whether the last turn is in its final response already."""
        return RESPONSE_OPENING in self._last_turn(list(input_ids))

    def is_reasoning_end_streaming(self, input_ids: Sequence[int], delta_ids: Iterable[int]) -> bool:
        """The same, where the last tokens alone are new."""
        new = len(list(delta_ids)) + _MARKER_TOKENS
        text = self._decoded(list(input_ids[-new:]))
        return RESPONSE_OPENING in text.rpartition(ASSISTANT)[2]

    def extract_content_ids(self, input_ids: list[int]) -> list[int]:
        """Tokens of the final response."""
        place = bisect_left(range(len(input_ids) + 1), True, key=lambda end: self._has_ended(input_ids[:end]))
        return input_ids[place:]

    def count_reasoning_tokens(self, token_ids: Sequence[int]) -> int:
        """How many tokens of an answer the reasoning has, its end included."""
        return len(token_ids) - len(self.extract_content_ids(list(token_ids)))

    def _has_ended(self, answer: list[int]) -> bool:
        return RESPONSE_OPENING in self._decoded(answer)

    def _last_turn(self, ids: list[int]) -> str:
        """Text behind the last opening of an assistant's turn; a prompt's end is decoded, and as much as is needed."""
        length = _MARKER_TOKENS
        while True:
            text = self._decoded(ids[-length:])
            if ASSISTANT in text or length >= len(ids):
                return text.rpartition(ASSISTANT)[2]
            length *= 4

    def _decoded(self, ids: list[int]) -> str:
        return self.model_tokenizer.decode(ids, skip_special_tokens=False)


@ToolParserManager.register_module("apriel")
class AprielToolParser(ToolParser):
    """Divides a final response into content and calls; without tools, the content alone ends where it should."""

    engine_based_streaming = True
    supports_required_and_named = False
    """vLLM's own form of calls that must be made is not the trained one."""

    def __init__(self, tokenizer: Any, tools: Any = None) -> None:
        super().__init__(tokenizer, tools)
        self._stream: ResponseStream | None = None

    def adjust_request(self, request: Any) -> Any:
        """Let only what is demanded be written: calls, a response in its form, or either of them.

        vLLM's own form for a response leaves no room for calls, so that an agent with tools could never use them, and
        none for the line's end before the response; and it lets a model write white space without an end.
        """
        choice = request.tool_choice if request.tools and request.tool_choice is not None else "none"
        forced = choice not in ("auto", "none")
        response = None if forced else _response_schema(request)
        if not forced and response is None:
            return request
        schemas = {} if choice == "none" else dict(_schema(tool) for tool in request.tools)
        named = forced and choice != "required"
        if named:
            wanted = _name(choice)
            schemas = {name: schema for name, schema in schemas.items() if name == wanted}
        single = named or request.parallel_tool_calls is False
        is_chat = hasattr(request, "response_format")
        reasons = is_chat and not request.continue_final_message
        form = forced_calls(schemas, single=single, reasons=reasons, response=response)
        request.structured_outputs = StructuredOutputsParams(structural_tag=json.dumps(form))
        if is_chat:
            # The form holds from the first token, so that an answer cannot end in its reasoning.
            request._grammar_from_parser, request.response_format = True, None
        else:
            # In the protocol of responses there is no such switch: vLLM begins with the form behind the reasoning.
            request.text = None
        return request

    def extract_tool_calls(self, model_output: str, request: Any) -> ExtractedToolCallInformation:
        """Content and calls of a whole final response."""
        parser = AnswerParser(Part.CONTENT, reads_calls=_reads_calls(request), opened=True)
        parser.feed(model_output)
        parser.finish()
        answer = parser.answer()
        calls = [ToolCall(function=FunctionCall(name=call.name, arguments=call.arguments)) for call in answer.calls]
        return ExtractedToolCallInformation(tools_called=bool(calls), tool_calls=calls, content=answer.content or None)

    def extract_tool_calls_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
        request: Any,
    ) -> DeltaMessage | None:
        """What is new of content and calls."""
        if self._stream is None:
            self._stream = ResponseStream(reads_calls=_reads_calls(request))
        return _response(self._stream.feed(delta_text))

    def finish_streaming(self) -> DeltaMessage | None:
        """What was held back."""
        return _response(self._stream.finish()) if self._stream is not None else None


def _reads_calls(request: Any) -> bool:
    return request.tool_choice != "none"


def _schema(tool: Any) -> tuple[str, Any]:
    """Name and schema of a tool; in the protocol of responses they stand in the tool itself."""
    function = getattr(tool, "function", tool)
    return function.name, function.parameters


def _response_schema(request: Any) -> Any:
    """JSON schema that is asked of the response; None if it is free, or in a form that is no JSON schema."""
    wanted = request.response_format if hasattr(request, "response_format") else getattr(request.text, "format", None)
    kind = getattr(wanted, "type", "text")
    if kind == "json_object":
        return {"type": "object"}
    # In the protocol of responses the schema stands in the format itself.
    schema = getattr(wanted, "json_schema", None) or getattr(wanted, "schema_", None)
    return getattr(schema, "json_schema", schema) if kind == "json_schema" else None


def _name(choice: Any) -> str:
    return getattr(choice, "function", choice).name


def _message(reasoning: str, content: str) -> DeltaMessage | None:
    fields = {"reasoning": reasoning, "content": content}
    return DeltaMessage(**_said(fields)) if reasoning or content else None


def _response(delta: Delta) -> DeltaMessage | None:
    if not delta.content and not delta.calls:
        return None
    return DeltaMessage(**_said({"content": delta.content, "tool_calls": list(map(_call, delta.calls))}))


def _call(call: CallDelta) -> DeltaToolCall:
    """A call's first delta has its name and an id, and those that follow have neither."""
    function = DeltaFunctionCall(**_said({"name": call.name}), arguments=call.arguments)
    first = {"id": make_tool_call_id(), "type": "function"} if call.name else {}
    return DeltaToolCall(index=call.number, function=function, **first)


def _said(fields: dict[str, Any]) -> dict[str, Any]:
    """Those that hold something: vLLM sends every field that was set."""
    return {name: value for name, value in fields.items() if value}
