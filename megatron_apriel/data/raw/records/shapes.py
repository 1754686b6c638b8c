"""The shapes in which records are published, and how each becomes a document.

One table, :data:`SHAPES`: reading, ``--format``, help and docs take their list from it. A record has the first shape of
the table whose fields it has; a file has the shape of its first record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from megatron_apriel.data.raw.documents import Conversation, TextDocument
from megatron_apriel.data.raw.fields.meanings import CONVERSATIONS, TURN_LISTS
from megatron_apriel.data.raw.fields.taken import Fields
from megatron_apriel.data.raw.records.exchange_shape import is_exchange, read_exchange
from megatron_apriel.data.raw.records.pair_shape import pair_of, read_pair
from megatron_apriel.data.raw.records.text_shapes import (
    are_interleaved,
    has_caption,
    read_caption,
    read_interleaved,
    read_text,
)
from megatron_apriel.data.raw.records.turn_shapes import (
    are_pairs,
    has_calls,
    lists_turns,
    read_calls,
    read_pairs,
    read_turns,
)

Document = TextDocument | Conversation


@dataclass(frozen=True)
class Shape:
    """A published shape of record.

    Attributes:
        name: of ``--format``, and in the summary.
        example: one record, as JSON.
        published: who publishes records of it.
        fits: whether a record has its fields.
        read: the document of a record; the number is the most values of a JSON text in it.
    """

    name: str
    example: str
    published: str
    fits: Callable[[Fields], bool]
    read: Callable[[Fields, int], Document]


SHAPES = (
    Shape(
        "messages",
        '{"messages": [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A cat."}]}',
        "OpenAI, Anthropic, Gemini, Bedrock, LangChain, LlamaIndex, TRL, ms-swift, UltraChat, NuminaMath, SmolTalk",
        lists_turns(TURN_LISTS.names),
        read_turns(TURN_LISTS.names, markers=False),
    ),
    Shape(
        "conversations",
        '{"conversations": [{"from": "human", "value": "<image>\\nWhat is it?"}, '
        '{"from": "gpt", "value": "A cat."}], "image": "cat.jpg"}',
        "LLaVA, LLaVA-OneVision, ShareGPT, OpenHermes, SlimOrca, OpenThoughts, Hermes, APIGen-MT, ToolACE",
        lists_turns(CONVERSATIONS.names),
        read_turns(CONVERSATIONS.names, markers=True),
    ),
    Shape(
        "texts",
        '{"texts": [{"user": "What is it?", "assistant": "A cat."}], "images": ["cat.jpg"]}',
        "FineVision, the Cauldron, Docmatix",
        are_pairs,
        read_pairs,
    ),
    Shape(
        "interleaved",
        '{"texts": ["A cat", null, "sleeps."], "images": [null, "cat.jpg", null]}',
        "OBELICS, MINT-1T, OmniCorpus",
        are_interleaved,
        read_interleaved,
    ),
    Shape(
        "calls",
        '{"query": "Tide?", "answers": [{"name": "tide", "arguments": {}}], "tools": [{"name": "tide"}]}',
        "xLAM, APIGen",
        has_calls,
        read_calls,
    ),
    Shape(
        "exchange",
        '{"request": {"messages": [{"role": "user", "content": "What is it?"}]}, '
        '"response": {"choices": [{"message": {"role": "assistant", "content": "A cat."}}]}}',
        "OpenAI's batches, LiteLLM, Langfuse, LangSmith, Weave, Helicone, MLflow, Bedrock's and Gemini's logs",
        is_exchange,
        read_exchange,
    ),
    Shape(
        "pair",
        '{"instruction": "Add.", "input": "6 6", "output": "12"}',
        "Alpaca, Dolly, OpenOrca, MetaMath, s1K, prompt and completion of TRL, query and response of ms-swift",
        lambda record: pair_of(record) is not None,
        read_pair,
    ),
    Shape(
        "text",
        '{"text": "A plain document."}',
        "FineWeb, Fast-LLM; image and text of diffusers",
        lambda record: isinstance(record.peek("text"), str),
        read_text,
    ),
    Shape(
        "caption",
        '{"image": "cat.jpg", "caption": "A cat sleeps."}',
        "img2dataset, CC12M, image folders",
        has_caption,
        read_caption,
    ),
)
"""In the order in which a record's fields are looked for."""
