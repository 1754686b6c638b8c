"""The words of the chat format that divide an assistant's turn, for whoever reads an answer as a model wrote it.

``data/corpus/chat_template.jinja`` writes them. All are plain text of several tokens, not tokens of their own.
"""

ASSISTANT = "<|assistant|>"
"""Begins an assistant's turn."""
REASONING_OPENING = "Here are my reasoning steps:"
"""Ends the prompt, so that an answer begins behind it."""
RESPONSE_OPENING, RESPONSE_CLOSING = "[BEGIN FINAL RESPONSE]", "[END FINAL RESPONSE]"
CALLS_OPENING, CALLS_CLOSING = "<tool_calls>", "</tool_calls>"
"""Around a JSON list of ``{"name": ..., "arguments": {...}}``, at the end of the final response."""
END_OF_TURN = "<|end|>"
